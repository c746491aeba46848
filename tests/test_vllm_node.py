"""A whole node that samples with the real engine: loops, learner, weights in flight, checkpoint."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from node.config import NodeConfig
from node.operated import RunningNode
from tests.policies import save_tiny_policy
from tests.test_node import config_of, running, until
from tests.vllm_rig import MARKS, engine_processes, none_alive

pytestmark = MARKS


def vllm_node(tmp_path: Path, **policy: object) -> NodeConfig:
    directory = save_tiny_policy(tmp_path / "policy", head_dim=32)
    return config_of(
        directory,
        tmp_path / "node",
        policy={"model": str(directory), "device": "cpu", **policy},
        engine={"type": "vllm", "max_in_flight": 32},
        sampler={"group_size": 4, "max_new_tokens": 6, "max_prompt_tokens": 32},
        threads=1,
    )


def of_vllm() -> list[psutil.Process]:
    """The judges are processes of the node, too."""
    return [process for process in engine_processes() if any("VLLM" in word for word in process.cmdline())]


async def steps(node: RunningNode, more: int) -> None:
    wanted = node.learning.steps + more
    await until(lambda: node.learning.steps >= wanted, node)


async def updates(node: RunningNode, wanted: int) -> None:
    """Fewer than steps: of the versions that come while the engine takes one over, it takes the newest only."""
    await until(lambda: node.status().counters["weight_updates"] >= wanted, node)


async def test_a_node_learns_with_it_and_goes_on_when_it_dies(tmp_path: Path) -> None:
    async with running(vllm_node(tmp_path)) as node:
        await steps(node, 5)
        await updates(node, 2)
        status = node.status()
        assert status.counters["parity_failures"] == 0
        assert status.metrics["engine_deviation"] < 1e-4
        assert status.metrics["engine_version"] >= 1
        processes = of_vllm()
        assert len(processes) == 2, "its core and its worker"
        processes[0].kill()
        await until(lambda: node.status().counters["engine_restarts"] == 1, node)
        assert await node.learning.checkpoint()
        await steps(node, 5)
        await until(lambda: node.status().metrics["engine_version"] >= node.learning.steps - 8, node)
        processes += of_vllm()
    assert none_alive(processes)


async def test_a_node_with_an_adapter_resumes_with_it(tmp_path: Path) -> None:
    config = vllm_node(tmp_path, adapter={"type": "lora", "rank": 4})
    async with running(config) as node:
        await steps(node, 4)
        await updates(node, 2)
    (checkpoint,) = config.data_dir.glob("checkpoints/step-*")
    assert (checkpoint / "model" / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model" / "model.safetensors").exists()
    async with running(config) as node:
        before = node.learning.steps
        assert before >= 4
        await steps(node, 2)
        await updates(node, node.status().counters["weight_updates"] + 1)
        assert node.status().metrics["engine_deviation"] < 1e-4


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        ({"kv_cache_gib": 1e6}, "does not fit"),
        ({"max_length": 4096}, r"engine\.max_length = 4096 is not allowed; the policy has 256 positions"),
    ],
)
async def test_what_cannot_work_is_said_before_anything_is_started(
    tmp_path: Path, engine: dict[str, object], complaint: str
) -> None:
    config = vllm_node(tmp_path)
    table = config.engine.model_copy(update=engine)
    with pytest.raises(Exception, match=complaint):
        async with running(config.model_copy(update={"engine": table})):
            raise AssertionError("it is up")
    assert of_vllm() == []
