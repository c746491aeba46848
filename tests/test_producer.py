"""Own groups: what an operator hears when none comes about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from node.config import SamplerConfig, TrackerConfig
from node.engine.base import Completion, Weights
from node.engine.text import HfTextCodec
from node.ledger import Ledger
from node.producer import Author, Producer
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from node.seed.tokenizer import make_tokenizer
from swarm.tasks.base import SourceSpec
from swarm.types import FinishReason, PolicyVersion, SamplingParams, VersionSpan
from tests.builders import MANIFEST, EchoJudge, identity
from tests.plain_tasks import Plain

CODEC = HfTextCodec(make_tokenizer((), 256))


class Parrot:
    """A generator that says "?" to everything, which `EchoJudge` cannot score."""

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        await asyncio.sleep(0)
        ids = CODEC.encode("?", FinishReason.STOP)
        spans = (VersionSpan(version=PolicyVersion(0), length=len(ids)),)
        logprobs = np.zeros(len(ids), dtype=np.float32)
        return [Completion(ids=ids, logprobs=logprobs, versions=spans, finish=FinishReason.STOP)] * n

    async def load(self, weights: Weights) -> None: ...


class Heard(Ledger):
    def __init__(self) -> None:
        super().__init__()
        self.warned = asyncio.Event()

    def warn(self, text: str) -> None:
        super().warn(text)
        self.warned.set()


@asynccontextmanager
async def producing(config: SamplerConfig) -> AsyncIterator[Heard]:
    """A producer at work, whose judge answers without ever waiting; its ledger."""
    ledger, running = Heard(), asyncio.Event()
    running.set()
    judge = EchoJudge(sources=[Plain(SourceSpec(type="plain", name="plain"))], size=2**32)
    tracker = ValueTracker(TrackerConfig())
    producer = Producer(
        config=config,
        sampler=TaskSampler(judge.sources, [1.0], tracker, config, seed=0),
        tracker=tracker,
        judge=judge,
        generator=Parrot(),
        author=Author(
            identity=identity(),
            swarm=MANIFEST.id,
            model="model-a",
            codec=CODEC,
            sampling=SamplingParams(),
            share_ids=True,
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


@pytest.mark.timeout(90)
async def test_looking_in_vain_for_a_task_is_said_and_holds_nobody_up():
    async with producing(SamplerConfig(max_prompt_tokens=1)) as ledger:
        await asyncio.wait_for(ledger.warned.wait(), timeout=60)
    assert "sampler.max_prompt_tokens" in ledger.warnings[0]
    assert ledger.counters["skipped_prompts"] > 0


async def test_a_group_that_nobody_can_score_is_counted_and_said():
    async with producing(SamplerConfig(group_size=3)) as ledger:
        await asyncio.wait_for(ledger.warned.wait(), timeout=60)
    assert ledger.warnings[0].startswith("plain/plain: a group without any score: no answer")
    assert ledger.counters["failed_rollouts"] >= 3
    assert ledger.counters["own_groups"] == 0
