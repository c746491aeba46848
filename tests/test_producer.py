"""Own groups: what an operator hears when none comes about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import pytest

from node.algorithms import TrackerConfig
from node.config import SamplerConfig
from node.engine.base import Completion, Weights
from node.engine.text import HfTextCodec
from node.holds import Holds
from node.ledger import Ledger
from node.producer import Author, Producer
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from node.seed.tokenizer import make_tokenizer
from swarm.limits import Limits
from swarm.types import FinishReason, PolicyVersion, SamplingParams, VersionSpan
from swarm.wire.codec import decode_group
from tests.builders import MEMBERSHIP, EchoJudge, group, identity, task, task_ref

CODEC = HfTextCodec(make_tokenizer((), 256))
PROMPT = len(CODEC.prompt(task(task_ref(0))))
"""Tokens of the only task that there is."""


@dataclass(frozen=True)
class OneTask:
    name: str = "test/echo"
    version: str = "1"
    config: str = "{}"
    size: int | None = 1


class Parrot:
    """A generator that says "?" to everything, which `EchoJudge` cannot score."""

    in_flight = 1

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        await asyncio.sleep(0)
        ids = CODEC.encode("?", FinishReason.STOP)
        spans = (VersionSpan(version=PolicyVersion(0), length=len(ids)),)
        logprobs = np.zeros(len(ids), dtype=np.float32)
        return [Completion(ids=ids, logprobs=logprobs, versions=spans, finish=FinishReason.STOP)] * n

    async def load(self, weights: Weights) -> None: ...

    def make_room(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def gauges(self) -> Mapping[str, float]:
        return {}


class Heard(Ledger):
    def __init__(self) -> None:
        super().__init__()
        self.warned = asyncio.Event()

    def warn(self, text: str) -> None:
        super().warn(text)
        self.warned.set()


@asynccontextmanager
async def producing(config: SamplerConfig, max_length: int) -> AsyncIterator[Heard]:
    """A producer at work, whose judge answers without ever waiting; its ledger."""
    ledger, running = Heard(), Holds()
    tracker = ValueTracker(TrackerConfig())
    producer = Producer(
        config=config,
        truncated="scored",
        sampler=TaskSampler([OneTask()], [1.0], tracker, config, seed=0),
        tracker=tracker,
        judge=EchoJudge(),
        generator=Parrot(max_length),
        author=Author(
            identity=identity(),
            membership=MEMBERSHIP,
            model="model-a",
            codec=CODEC,
            sampling=config.params,
        ),
        version=lambda: PolicyVersion(0),
        running=running,
        ledger=ledger,
    )
    working = asyncio.create_task(producer.next_group())
    try:
        yield ledger
        assert not working.done()
    finally:
        working.cancel()
        await asyncio.wait([working])


def test_token_ids_stay_at_home():
    author = Author(
        identity=identity(), membership=MEMBERSHIP, model="model-a", codec=CODEC, sampling=SamplerConfig().params
    )
    ours = group()
    signed = author.sign(ours)
    read = decode_group(signed.body, signed.signature, Limits()).group
    for made, sent in zip(ours.rollouts, read.rollouts, strict=True):
        (turn,), (other,) = made.turns, sent.turns
        assert turn.sampled is not None
        assert other.sampled is not None
        assert turn.sampled.ids is not None
        assert other.sampled.ids is None
        assert (other.text, other.sampled.byte_lengths.tolist()) == (turn.text, turn.sampled.byte_lengths.tolist())


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("config", "max_length", "expected"),
    [
        (SamplerConfig(max_prompt_tokens=PROMPT - 1), 1024, f"for sampler.max_prompt_tokens = {PROMPT - 1} or"),
        (SamplerConfig(max_new_tokens=64), PROMPT + 63, f"with max_new_tokens = 64, for the engine's {PROMPT + 63}"),
    ],
    ids=["too long", "no room for the response"],
)
async def test_looking_in_vain_for_a_task_is_said_and_holds_nobody_up(
    config: SamplerConfig, max_length: int, expected: str
):
    async with producing(config, max_length) as ledger:
        await asyncio.wait_for(ledger.warned.wait(), timeout=60)
    assert expected in ledger.warnings[0]
    assert ledger.counters["skipped_prompts"] > 0
    assert ledger.counters["failed_rollouts"] == 0


async def test_a_group_that_nobody_can_score_is_counted_and_said():
    just_fits = SamplerConfig(group_size=3, max_prompt_tokens=PROMPT, max_new_tokens=64)
    async with producing(just_fits, PROMPT + 64) as ledger:
        await asyncio.wait_for(ledger.warned.wait(), timeout=60)
    assert ledger.warnings[0].startswith("test/echo: a group without any score: no answer")
    assert ledger.counters["skipped_prompts"] == 0
    assert ledger.counters["failed_rollouts"] >= 3
    assert ledger.counters["own_groups"] == 0
