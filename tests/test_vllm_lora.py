"""Adapters in the real engine: each version beside the ones before it, on weights that never change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from node.config import Lora, PolicyConfig, VllmEngine
from node.engine.policy import load_policy
from tests.policies import save_tiny_policy
from tests.vllm_rig import EXACT, LONG, MARKS, PROMPT, Rig, rig, spec_of

from node.engine.vllm.handoff import Adapters  # isort: skip  # the rig skips where there is no vLLM

pytestmark = [*MARKS, pytest.mark.asyncio(loop_scope="module")]

LIVE = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    directory = save_tiny_policy(tmp_path_factory.mktemp("policy"), head_dim=32)
    policy = load_policy(PolicyConfig(model=str(directory), device="cpu", adapter=Lora(rank=4)))
    assert policy.adapter is not None
    config = VllmEngine()
    hand_off = Adapters(policy.adapter.save, live=LIVE, timeout_s=config.update_timeout_s)
    spec = spec_of(directory, lora_rank=4, lora_targets=policy.adapter.lora.targets, live_adapters=LIVE)
    async with rig(directory, config, spec=spec, policy=policy, hand_off=hand_off) as up:
        yield up


async def test_the_adapter_that_nobody_trained_changes_nothing(up: Rig) -> None:
    for completion in await up.sample(4, 20):
        assert up.learner.error(PROMPT, completion) < EXACT


async def test_every_version_is_sampled_with_exactly(up: Rig) -> None:
    seen = []
    for _ in range(2 * LIVE):
        await up.load(up.learner.learn())
        (completion,) = await up.sample(1, 30)
        assert up.learner.error(PROMPT, completion) < EXACT
        assert [(span.version, span.length) for span in completion.versions] == [
            (up.learner.version, len(completion.ids))
        ]
        seen.append(completion.logprobs[0])
    assert len(set(seen)) == len(seen), "the versions differ"


async def test_old_adapters_are_removed(up: Rig) -> None:
    for _ in range(2 * LIVE):
        await up.load(up.learner.learn())
    assert len(await up.engine.llm.list_loras()) <= 2, "the one in use, and at most the one before it"


async def test_a_request_keeps_the_adapter_that_it_began_with(up: Rig) -> None:
    before = up.learner.version
    long = asyncio.create_task(up.sample(4, LONG))
    await up.under_way(4)
    await up.load(up.learner.learn())
    for completion in await long:
        assert {span.version for span in completion.versions} == {before}
        assert up.learner.error(PROMPT, completion) < EXACT
    (after,) = await up.sample(1, 10)
    assert {span.version for span in after.versions} == {before + 1}


async def test_adapters_in_use_hold_up_newer_ones_and_the_newest_follows(up: Rig) -> None:
    """More versions than there is room for, while requests use them: some are skipped, the last is not."""
    updates = up.counters["weight_updates"]
    load = [asyncio.create_task(up.sample(8, LONG)) for _ in range(4)]
    for _ in range(4 * LIVE):
        await up.generator.load(up.learner.learn())
        await asyncio.sleep(0)
    await up.generator.keeper.reached(up.learner.version)  # type: ignore[arg-type]
    await asyncio.gather(*load)
    assert up.counters["weight_updates"] - updates < 4 * LIVE
    (completion,) = await up.sample(1, 20)
    assert up.learner.error(PROMPT, completion) < EXACT
    assert (up.counters["parity_failures"], up.counters["engine_restarts"]) == (0, 0)


async def test_a_new_engine_gets_the_newest_adapter(up: Rig) -> None:
    await up.load(up.learner.learn())
    up.engine.kill()
    completions = await up.sample(4, 20)
    assert len(up.engines) == 2
    for completion in completions:
        assert up.learner.error(PROMPT, completion) < EXACT
        assert {span.version for span in completion.versions} == {up.learner.version}
