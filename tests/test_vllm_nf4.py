"""Beside a base in NF4 the real engine samples from what the learner computes: it holds the base as NF4 rounds it."""

from __future__ import annotations

from pathlib import Path

from node.config import Lora, PolicyConfig, VllmEngine
from node.engine.policy import load_policy
from tests.policies import needs_bitsandbytes, save_tiny_policy
from tests.vllm_rig import EXACT, MARKS, PROMPT, rig, spec_of

from node.engine.vllm.handoff import Adapters  # isort: skip  # the rig skips where there is no vLLM
from node.engine.vllm.opening import _model_of  # isort: skip

pytestmark = MARKS


@needs_bitsandbytes
async def test_every_version_is_sampled_with_exactly(tmp_path: Path) -> None:
    directory = save_tiny_policy(tmp_path / "policy", head_dim=32)
    policy = load_policy(PolicyConfig(model=str(directory), device="cpu", adapter=Lora(rank=4, base="nf4")))
    full = load_policy(PolicyConfig(model=str(directory), device="cpu", adapter=Lora(rank=4)))
    assert policy.adapter is not None
    size, as_full = policy.size, full.size
    assert (size.parameters, size.trainable) == (as_full.parameters, as_full.trainable)
    assert (size.quantised, as_full.quantised) == (4 * 32 * 64 + 3 * 32 * 64, 0)

    config = VllmEngine()
    model = _model_of(policy, "float32", tmp_path / "engine")
    assert _model_of(full, "float32", tmp_path / "engine") == str(directory)
    hand_off = Adapters(policy.adapter.save, live=2, timeout_s=config.update_timeout_s)
    spec = spec_of(Path(model), lora_rank=4, lora_targets=policy.adapter.lora.targets, live_adapters=2)
    async with rig(directory, config, spec=spec, policy=policy, hand_off=hand_off) as up:
        for _ in range(3):
            for completion in await up.sample(4, 30):
                assert up.learner.error(PROMPT, completion) < EXACT
            await up.load(up.learner.learn())
        assert (up.counters["parity_failures"], up.counters["engine_restarts"]) == (0, 0)
