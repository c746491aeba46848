"""The real engine on a tiny policy: what is sampled, and what is recorded of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from node.config import VllmEngine
from node.engine.base import Completion
from swarm.types import FinishReason, SamplingParams, end_of_stop
from tests.policies import save_tiny_policy
from tests.vllm_rig import BLOCK, EXACT, LONG, MARKS, MAX_LENGTH, PROMPT, SLOTS, Rig, rig, until

pytestmark = [*MARKS, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    policy: Path = save_tiny_policy(tmp_path_factory.mktemp("policy"), head_dim=32)
    async with rig(policy, VllmEngine(sleep=True)) as up:
        yield up


async def test_a_response_ends_with_end_of_sequence_or_is_as_long_as_it_may_be(up: Rig) -> None:
    codec, completions = up.learner.policy.codec, await up.sample(64, LONG)
    by_finish = {finish: [c for c in completions if c.finish is finish] for finish in FinishReason}
    assert len(by_finish[FinishReason.STOP]) + len(by_finish[FinishReason.LENGTH]) == 64
    assert all(by_finish[finish] for finish in (FinishReason.STOP, FinishReason.LENGTH))
    for completion in by_finish[FinishReason.STOP]:
        assert completion.ids[-1] == codec.eos_id
        assert codec.decode(completion.ids)[1][-1] == 0
        assert codec.eos_id not in completion.ids[:-1]
    for completion in by_finish[FinishReason.LENGTH]:
        assert codec.eos_id not in completion.ids
        assert len(completion.ids) == LONG
    for completion in completions:
        assert completion.ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert len(completion.ids) == len(completion.logprobs)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
async def test_logprobs_are_the_learners_at_the_sampling_temperature(up: Rig, temperature: float) -> None:
    for completion in await up.sample(32, 50, temperature=temperature):
        assert up.learner.error(PROMPT, completion, temperature) < EXACT


@pytest.mark.parametrize(("top_p", "temperature"), [(0.5, 1.0), (0.9, 0.7)])
async def test_logprobs_are_those_of_what_top_p_leaves(up: Rig, top_p: float, temperature: float) -> None:
    """The smallest set that reaches it, renormalised; what lies on its edge may be rounded in or out."""
    for completion in await up.sample(16, 50, top_p=top_p, temperature=temperature):
        ids = np.concatenate([PROMPT, completion.ids])
        every = up.learner.distributions(ids, up.learner.version, temperature)[len(PROMPT) - 1 :]
        for logprobs, token, recorded in zip(every, completion.ids, completion.logprobs, strict=True):
            more_likely = logprobs.exp()[logprobs > logprobs[token]].sum()
            assert more_likely < top_p + 1e-5
            ordered = logprobs.exp().sort(descending=True).values
            before = ordered.cumsum(-1) - ordered
            kept = torch.stack([ordered[before < top_p + rounding].sum() for rounding in (-1e-5, 1e-5)])
            assert (logprobs[token] - kept.log() - float(recorded)).abs().min() < EXACT


async def test_samples_differ(up: Rig) -> None:
    completions = await up.sample(32, 20)
    assert len({completion.ids.tobytes() for completion in completions}) == 32


async def test_a_slow_member_holds_up_its_own_group_only(up: Rig) -> None:
    slow = asyncio.create_task(up.sample(8, LONG, prompt=PROMPT))
    await up.under_way(8)
    quick = [len((await up.sample(2, 1))[0].ids) for _ in range(5)]
    assert quick == [1] * 5
    assert not slow.done()
    assert len(await slow) == 8


async def test_groups_are_handed_out_in_the_order_in_which_they_finish(up: Rig) -> None:
    async def finished(tokens: int) -> int:
        await up.sample(2, tokens, stop=())
        return tokens

    asked = [200, 60, 2]
    assert [await each for each in asyncio.as_completed([finished(tokens) for tokens in asked])] == asked[::-1]


async def test_more_requests_than_slots_are_all_served(up: Rig) -> None:
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, up.unfinished)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    groups = await asyncio.gather(*(up.sample(n, 12) for n in range(1, 13)))
    watching.cancel()
    assert [len(group) for group in groups] == list(range(1, 13))
    assert all(len(completion.ids) for group in groups for completion in group)
    assert most == SLOTS <= up.generator.in_flight
    assert up.generator.gauges()["engine_in_flight"] == 0


async def test_giving_up_a_call_gives_up_its_requests(up: Rig) -> None:
    calls = [asyncio.create_task(up.sample(8, LONG)) for _ in range(8)]
    await until(lambda: up.unfinished == SLOTS)
    for call in calls:
        call.cancel()
    assert all(
        isinstance(error, asyncio.CancelledError) for error in await asyncio.gather(*calls, return_exceptions=True)
    )
    assert up.unfinished == 0
    assert up.generator.gauges()["engine_in_flight"] == 0
    assert len(await up.sample(SLOTS, 2)) == SLOTS


async def test_a_request_that_takes_too_long_fails_alone(up: Rig) -> None:
    warnings: list[str] = []
    hasty = up.beside(VllmEngine(request_timeout_s=0.02), warnings)
    patient = asyncio.create_task(up.whole(4, LONG))
    (late,) = await hasty.sample(PROMPT, 1, SamplingParams(max_new_tokens=LONG))
    assert late.finish is FinishReason.ERROR
    assert (len(late.ids), len(late.logprobs), late.versions) == (0, 0, ())
    assert warnings == ["a request took longer than engine.request_timeout_s = 0.02"]
    for completion in await patient:
        assert up.learner.error(PROMPT, completion) < EXACT
    assert up.unfinished == 0


async def test_what_does_not_fit_is_refused(up: Rig) -> None:
    refused = up.counters["refused_prompts"]
    fits = np.resize(PROMPT, MAX_LENGTH - 10)
    failed = await up.sample(3, 11, prompt=fits)
    assert [(c.finish, len(c.ids), c.versions) for c in failed] == [(FinishReason.ERROR, 0, ())] * 3
    assert up.counters["refused_prompts"] == refused + 1
    (completion,) = await up.sample(1, 10, prompt=fits)
    assert completion.finish is FinishReason.STOP or len(completion.ids) == 10
    assert up.learner.error(fits, completion) < EXACT
    assert up.counters["refused_prompts"] == refused + 1


def ends(completion: Completion, up: Rig, stop: tuple[str, ...]) -> bool:
    """Whether its last token completes one of the stop strings, and none before does."""
    text, lengths = up.learner.policy.codec.decode(completion.ids)
    end = end_of_stop(text, stop)
    return end is not None and int(lengths[:-1].sum()) < end <= int(lengths.sum())


@contextmanager
def busy() -> Iterator[None]:
    """Inside, the event loop has little time for the engine: tokens are seen several at once."""
    loop = asyncio.get_running_loop()
    handles: list[asyncio.Handle] = []

    def work() -> None:
        time.sleep(0.03)
        handles[:] = [loop.call_later(0.002, work)]

    work()
    try:
        yield
    finally:
        handles[0].cancel()


async def test_a_stop_string_ends_a_response(up: Rig) -> None:
    stop = ("e", "</answer>", "7", "Q")
    with busy():
        completions = await up.sample(64, 200, stop=stop)
    stopped = [c for c in completions if c.finish is FinishReason.STOP_STRING]
    assert len(stopped) > 32
    for completion in completions:
        ended = completion.finish is FinishReason.STOP_STRING
        assert ends(completion, up, stop) == ended
        assert sum(span.length for span in completion.versions) == len(completion.ids) == len(completion.logprobs)
        assert up.learner.error(PROMPT, completion) < EXACT
        if not ended:
            assert end_of_stop(up.learner.policy.codec.decode(completion.ids)[0], stop) is None
    assert up.unfinished == 0


async def test_a_stop_string_saves_the_rest(up: Rig) -> None:
    before = up.engine.pulse.tokens
    completions = await up.sample(8, LONG, stop=tuple(chr(letter) for letter in range(33, 97)))
    sampled = sum(len(completion.ids) for completion in completions)
    await up.sample(1, 1)
    assert sampled < up.engine.pulse.tokens - before < sampled + 8 * 10


async def test_a_second_turn_goes_on_from_the_tokens_of_the_first(up: Rig) -> None:
    codec = up.learner.policy.codec
    for first in await up.sample(8, 60):
        ended = first.ids if first.finish is FinishReason.STOP else np.append(first.ids, codec.eos_id)
        prompt = np.concatenate([PROMPT, ended, codec.next_turn("And backwards?")]).astype(np.int32)
        (second,) = await up.sample(1, 40, prompt=prompt)
        assert up.learner.error(prompt, second) < EXACT


async def test_requests_go_on_after_making_room(up: Rig) -> None:
    sampling = asyncio.create_task(up.whole(8, LONG))
    await up.under_way(8)
    async with up.generator.make_room():
        tokens = up.engine.pulse.tokens
        assert await up.engine.llm.is_sleeping()
        await asyncio.sleep(0.1)
        assert up.engine.pulse.tokens - tokens <= 8  # a step that was under way
        assert not sampling.done()
    for completion in await sampling:
        assert up.learner.error(PROMPT, completion) < EXACT


async def test_the_prefix_cache_is_used(up: Rig) -> None:
    prompt = np.resize(PROMPT, 200)
    first, again = [await up.cached_tokens(prompt) for _ in range(2)]
    assert (first, again) == (0, BLOCK)


async def test_nothing_was_wrong(up: Rig) -> None:
    """In all of these, which a fallback may otherwise hide."""
    assert (up.counters["engine_restarts"], up.counters["resampled"], up.counters["parity_failures"]) == (0, 0, 0)
    assert up.warnings == []
    assert len(up.engines) == 1
