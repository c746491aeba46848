"""An evaluation that the real engine samples for."""

from __future__ import annotations

from pathlib import Path

from node.commands.evaluate_policy import evaluate_policy
from node.config import NodeConfig
from tests.policies import save_tiny_policy
from tests.vllm_rig import MARKS, engine_processes

pytestmark = MARKS


async def test_both_engines_are_asked_the_same_and_say_the_same(tmp_path: Path) -> None:
    directory = save_tiny_policy(tmp_path / "policy", head_dim=32)
    tables = {
        "threads": 1,
        "data_dir": str(tmp_path / "node"),
        "tasks": [{"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}],
        "sampler": {"max_new_tokens": 2},
        "policy": {"device": "cpu"},
    }
    vllm, transformers = [
        await evaluate_policy(
            str(directory), NodeConfig.model_validate(tables | {"engine": {"type": engine}}), tasks=32, samples=16
        )
        for engine in ("vllm", "transformers")
    ]
    assert (vllm.engine, transformers.engine) == ("vllm", "transformers")
    assert (vllm.digest, vllm.fingerprint) == (transformers.digest, transformers.fingerprint)
    assert vllm.overall.unscored == 0
    # half of an untrained policy's first characters are plain; 512 samples each
    assert abs(vllm.overall.pass_at_1 - transformers.overall.pass_at_1) < 0.15
    assert 0 < vllm.overall.pass_at_1 < 1
    assert not [process for process in engine_processes() if any("VLLM" in word for word in process.cmdline())]
    assert not (tmp_path / "node").exists(), "a node may be running there"
