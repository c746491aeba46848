"""Weights that change under a real engine: what is sampled meanwhile, what goes wrong, and how it is noticed."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from node.engine.base import Completion
from swarm.errors import EngineError
from tests.policies import save_tiny_policy
from tests.vllm_rig import BLOCK, EXACT, LONG, MARKS, PROMPT, SLOTS, Rig, SpoiledTransport, rig, until

pytestmark = [*MARKS, pytest.mark.asyncio(loop_scope="module")]

Spoil = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
GROUP = 12
K_PROJ = "model.layers.0.self_attn.k_proj.weight"
"""The engine has it in one matrix with two others."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"), head_dim=32)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(policy: Path) -> AsyncIterator[Rig]:
    async with rig(policy) as up:
        yield up


def wrong(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return {**tensors, K_PROJ: torch.randn_like(tensors[K_PROJ])}


def not_numbers(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return {**tensors, K_PROJ: torch.full_like(tensors[K_PROJ], torch.nan)}


async def under_updates(up: Rig) -> list[Completion]:
    """Sampled while one version after the other is loaded."""
    sampling = asyncio.create_task(up.whole(GROUP, LONG))
    await up.under_way(GROUP)
    while not sampling.done():
        await up.load(up.learner.learn(0.01))
    return sampling.result()


async def test_new_weights_are_sampled_with(up: Rig) -> None:
    for _ in range(3):
        await up.load(up.learner.learn())
        for completion in await up.whole(4, 50):
            assert up.learner.error(PROMPT, completion) < EXACT
            assert [span.version for span in completion.versions] == [up.learner.version]


async def test_every_token_says_which_version_it_is_of(up: Rig) -> None:
    """Later spans see what the versions before left in the KV cache: that is the distribution they come from."""
    completions = await under_updates(up)
    several = [completion for completion in completions if len(completion.versions) > 1]
    assert len(several) > GROUP / 2
    for completion in completions:
        assert max(error.max() for error in up.learner.errors(PROMPT, completion, recomputed=False)) < EXACT
    assert max(up.learner.error(PROMPT, completion) for completion in several) > 100 * EXACT


async def test_a_recomputed_kv_cache_is_that_of_the_new_weights(up: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up.hand_off, "_recompute_kv", True)
    completions = await under_updates(up)
    assert len([completion for completion in completions if len(completion.versions) > 1]) > GROUP / 2
    for completion in completions:
        assert up.learner.error(PROMPT, completion) < EXACT


async def test_the_prefix_cache_is_of_one_version(up: Rig) -> None:
    prompt = np.resize(PROMPT, BLOCK + 50)
    for _ in range(3):
        for completion in await up.sample(4, 20, prompt=prompt):
            assert up.learner.error(prompt, completion) < EXACT
        assert await up.cached_tokens(prompt) == BLOCK
        await up.load(up.learner.learn())
        assert await up.cached_tokens(prompt) == 0


async def test_the_latest_version_wins(up: Rig) -> None:
    before = up.counters["weight_updates"]
    for _ in range(40):
        await up.generator.load(up.learner.learn(0.01))
        await asyncio.sleep(0.002)
    await until(lambda: up.generator.gauges()["engine_version"] == up.learner.version)
    assert 1 <= up.counters["weight_updates"] - before < 40
    (completion,) = await up.whole(1, 50)
    assert up.learner.error(PROMPT, completion) < EXACT


async def test_an_older_version_is_ignored(up: Rig) -> None:
    old = up.learner.weights()
    await up.load(up.learner.learn())
    before = up.counters["weight_updates"]
    await up.generator.load(old)
    for completion in await up.whole(4, LONG):
        assert [span.version for span in completion.versions] == [up.learner.version]
        assert up.learner.error(PROMPT, completion) < EXACT
    assert up.counters["weight_updates"] == before


async def test_a_failed_update_is_tried_again(up: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed in the middle: some layers are new, others old."""
    failures = fail_halfway(up, monkeypatch, times=1)
    sampling = asyncio.create_task(up.whole(SLOTS, LONG))
    await up.under_way(SLOTS)
    await up.load(up.learner.learn())
    assert failures == [up.learner.version]
    for completion in await sampling:
        assert up.learner.errors(PROMPT, completion)[0].max() < EXACT
    (completion,) = await up.whole(1, 50)
    assert up.learner.error(PROMPT, completion) < EXACT
    assert len(up.engines) == 1


async def test_nothing_was_wrong_so_far(up: Rig) -> None:
    """In all of these, which a fallback may otherwise hide."""
    assert (up.counters["engine_restarts"], up.counters["resampled"], up.counters["parity_failures"]) == (0, 0, 0)
    assert up.warnings == []


@pytest.mark.parametrize(("spoil", "difference"), [(wrong, r"[\d.e-]+"), (not_numbers, "inf")])
async def test_a_parameter_that_went_wrong_is_named_and_mended(up: Rig, spoil: Spoil, difference: str) -> None:
    """Nothing of the wrong weights is handed out: neither what was under way, nor what began and ended with them."""
    before = up.counters.copy()
    weights = up.learner.learn()
    under_way = asyncio.create_task(up.whole(GROUP, LONG))
    await up.under_way(GROUP)
    unfinished = up.unfinished
    up.warnings.clear()
    up.transport.spoil, up.transport.times = spoil, 1
    loading, short = asyncio.create_task(up.load(weights)), []
    while not loading.done():
        short += await up.whole(SLOTS - GROUP, 2)
    assert len(up.warnings) == 1
    assert re.fullmatch(
        rf"vLLM and the learner differ by {difference} nats in version {up.learner.version}, at most 0.0001 is allowed:"
        rf" wrong is {K_PROJ}; all weights are loaded anew",
        up.warnings[0],
    )
    for completion in [*short, *await under_way]:
        assert up.learner.error(PROMPT, completion) < EXACT
    counted = up.counters - before
    assert counted["parity_failures"] == 1
    assert counted["resampled"] > unfinished
    assert counted["engine_restarts"] == 0


async def test_an_update_that_keeps_failing_costs_the_engine(up: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go on with the next one."""
    before = up.counters.copy()
    failures = fail_halfway(up, monkeypatch, times=1000)
    sampling = asyncio.create_task(up.whole(SLOTS, LONG))
    await up.under_way(SLOTS)
    await up.load(up.learner.learn())
    assert failures == [up.learner.version] * 2
    for completion in await sampling:
        assert up.learner.error(PROMPT, completion) < EXACT
    counted = up.counters - before
    assert counted["resampled"] == len([c for c in sampling.result() if c.versions[-1].version == up.learner.version])
    assert counted["resampled"] > SLOTS / 2
    assert counted["engine_restarts"] == 1
    assert len(up.engines) == 2
    assert up.warnings[-1] == "the engine is started again: vLLM failed: half of the weights"


async def test_weights_that_stay_wrong_are_the_end(up: Rig) -> None:
    """The last test of this engine."""
    sampling = asyncio.create_task(up.whole(SLOTS, LONG))
    await up.under_way(SLOTS)
    up.transport.spoil, up.transport.times = wrong, math.inf
    await up.generator.load(up.learner.learn())
    for call in (sampling, asyncio.create_task(up.sample(1, 1))):
        with pytest.raises(EngineError, match=rf"wrong is {K_PROJ}; loading all weights anew did not help: .* nats"):
            await call
    assert len(up.engines) == 2


async def test_a_head_that_is_tied_and_not_handed_over_is_noticed(policy: Path) -> None:
    """The engine has a packed copy of it, which an update of the embedding leaves as it was."""
    transport = SpoiledTransport()
    transport.spoil = lambda tensors: {name: tensors[name] for name in tensors if name != "lm_head.weight"}
    transport.times = math.inf
    with pytest.raises(EngineError, match=r": wrong is lm_head\.weight; loading all weights anew did not help"):
        async with rig(policy, transport=transport):
            pytest.fail("it started")


def fail_halfway(up: Rig, monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Updates load half of the tensors and fail, so many times. Returns the versions of those that did."""
    update, failed = up.engine.llm.update_weights, list[int]()

    async def fail(request: Any) -> None:
        if len(failed) == times:
            await update(request)
            return
        fields = ("names", "dtypes", "shapes", "offsets")
        info = request.update_info
        half = {field: info[field][: len(info[field]) // 2] for field in fields}
        await update(type(request)(update_info=info | half))
        failed.append(up.learner.version)
        raise RuntimeError("half of the weights")

    monkeypatch.setattr(up.engine.llm, "update_weights", fail)
    return failed
