"""Every group of the journal is learned from once: whatever was checkpointed, whenever the node went away."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node.algorithms import PoolConfig
from node.backlog import Backlog
from node.experience import Experience, Judged
from node.journal import Journal
from node.loops import replay
from node.pool import RolloutPool
from node.precedents import Precedents
from swarm.net.standing import Standing
from swarm.types import GroupId, PolicyVersion, RolloutGroup, SampledTokens, Turn
from swarm.wire.codec import seal
from tests.builders import EchoJudge, group, identity, judged, rollout, signed

PEER = identity(9)
POOL = PoolConfig(own_groups=3, own_capacity=4, foreign_groups=2, newcomer_share=1.0, distinct=False)


class Mind:
    """What a node knows, as far as it matters here: which groups it has heard of and which it was trained on."""

    def __init__(self) -> None:
        self.heard: list[GroupId] = []
        self.trained: list[GroupId] = []

    def hear(self, experience: Experience) -> None:
        self.heard.append(experience.id)


class Life:
    """From a start to a crash."""

    def __init__(self, journal: Journal, judge: EchoJudge, checkpoint: str | None, max_age_s: float = 900.0) -> None:
        self.mind, self.counters = Mind(), Counter[str]()
        self.state = None if checkpoint is None else json.loads(checkpoint)
        if self.state is not None:
            self.mind.heard, self.mind.trained = list(self.state["heard"]), list(self.state["trained"])
        self.journal = journal
        standing = Standing(lambda: 0.0)
        self.pool = RolloutPool(POOL, random.Random(0), self.counters, standing, Precedents(POOL), self.mind.hear)
        self.backlog = Backlog(journal, self.pool, judge, ours=lambda group, own: True, max_age_s=max_age_s)
        self.drawn: Sequence[Experience] = ()

    def checkpoint(self) -> str:
        known = {"heard": self.mind.heard, "trained": self.mind.trained}
        return json.dumps(known | dict(self.backlog.state(self.drawn)))

    async def draw(self) -> None:
        self.drawn = await self.pool.draw(PolicyVersion(0), lambda: 0.0, lambda task: 0.5, lambda e, v: 1.0)

    def train(self) -> None:
        self.mind.trained += [e.id for e in self.drawn]
        self.drawn = ()


@asynccontextmanager
async def life(directory: Path, checkpoint: str | None = None, **settings: float) -> AsyncIterator[Life]:
    async with Journal.open(directory / "journal.db", 10_000) as journal:
        living = Life(journal, EchoJudge(size=10**9), checkpoint, **settings)
        await living.backlog.restore(living.state)
        yield living


def own(number: int) -> Judged:
    return judged(signed(number), value=number / 1000)


def foreign(number: int) -> Judged:
    return judged(signed(number, PEER), own=False)


async def produce(living: Life, made: Judged) -> None:
    await living.journal.keep(made)
    await living.pool.put_own(made.experience)


async def gather(living: Life, made: Judged) -> None:
    if await living.journal.keep(made):
        living.pool.put_foreign(made.experience)


async def replayed(living: Life) -> list[GroupId]:
    """What is replayed, without regard to the pool's room."""
    return [experience.id async for experience in living.backlog.replay()]


async def test_what_waits_comes_back_as_it_was_and_in_its_order(tmp_path: Path) -> None:
    async with life(tmp_path) as first:
        groups = [own(n) for n in range(6)] + [foreign(n) for n in range(100, 103)]
        producers = [asyncio.create_task(produce(first, made)) for made in groups[:6]]
        for made in groups[6:]:
            await gather(first, made)
        while len(first.pool.waiting) < 9:  # noqa: ASYNC110 - two of the producers wait for room
            await asyncio.sleep(0.001)
        before, checkpoint = first.pool.waiting, first.checkpoint()
        for producer in producers:
            producer.cancel()
    async with life(tmp_path, checkpoint) as second:
        after = second.pool.waiting
        assert [e.id for e in after] == [e.id for e in before] == [made.signed.id for made in groups]
        for one, other in zip(before, after, strict=True):
            assert (one.own, one.value, one.version, one.task) == (other.own, other.value, other.version, other.task)
            assert (one.scores, one.use) == (other.scores, other.use)
        assert await replayed(second) == []
        assert sorted(second.mind.heard) == sorted(made.signed.id for made in groups), "each once"
        assert second.backlog.replayed.is_set()


async def test_own_tokens_come_back_to_the_last_bit_though_the_body_has_neither_all_of_them_nor_all_bits(
    tmp_path: Path,
) -> None:
    logprobs = np.array([-1 / 3, -2 / 3], np.float32)

    def exact(turn: Turn, ids: bool) -> Turn:
        assert turn.sampled is not None
        return replace(turn, sampled=replace(turn.sampled, logprobs=logprobs, ids=turn.sampled.ids if ids else None))

    whole = group(*(replace(r, turns=(exact(r.turns[0], ids=True),)) for r in (rollout("7"), rollout("8"))))
    shared = replace(whole, rollouts=tuple(replace(r, turns=(exact(r.turns[0], ids=False),)) for r in whole.rollouts))
    made = judged(replace(seal(shared, identity()), group=whole))
    async with life(tmp_path) as first:
        await produce(first, made)
        checkpoint = first.checkpoint()
    async with life(tmp_path, checkpoint) as second:
        (back,) = second.pool.waiting
    for one, other in zip(tokens_of(whole), tokens_of(back.group), strict=True):
        assert one.ids is not None
        assert other.ids is not None
        assert one.logprobs.tobytes() == other.logprobs.tobytes()
        assert one.ids.tolist() == other.ids.tolist()
        assert one.byte_lengths.tolist() == other.byte_lengths.tolist()
        assert one.versions == other.versions


def tokens_of(group: RolloutGroup) -> list[SampledTokens]:
    return [turn.sampled for r in group.rollouts for turn in r.turns if turn.sampled is not None]


async def test_what_was_drawn_and_not_trained_on_waits_too(tmp_path: Path) -> None:
    async with life(tmp_path) as first:
        for number in range(4):
            await produce(first, own(number))
        await first.draw()
        checkpoint = first.checkpoint()
    async with life(tmp_path, checkpoint) as second:
        assert [e.id for e in second.pool.waiting] == [own(n).signed.id for n in range(4)]


async def test_a_draw_that_is_cancelled_has_taken_nothing(tmp_path: Path) -> None:
    async with life(tmp_path) as first:
        for number in range(2):
            await produce(first, own(number))
        drawing = asyncio.create_task(first.draw())
        await asyncio.sleep(0)
        drawing.cancel()
        await asyncio.wait([drawing])
        assert [e.id for e in first.pool.waiting] == [own(n).signed.id for n in range(2)]


async def test_what_came_after_the_checkpoint_is_heard_of_again_in_its_order(tmp_path: Path) -> None:
    async with life(tmp_path) as first:
        await produce(first, own(0))
        checkpoint = first.checkpoint()
        for number in range(1, 4):
            await gather(first, foreign(100 + number))
            await produce(first, own(number))
    async with life(tmp_path, checkpoint) as second:
        assert second.mind.heard == [own(0).signed.id]
        replaying = asyncio.create_task(replay(second.backlog, second.pool, second.counters))
        async with asyncio.timeout(10):
            await replaying
        since = [made.signed.id for n in range(1, 4) for made in (foreign(100 + n), own(n))]
        assert second.mind.heard == [own(0).signed.id, *since]
        assert second.counters["replayed_groups"] == 6


async def test_without_a_checkpoint_everything_is_since(tmp_path: Path) -> None:
    async with life(tmp_path) as first:
        for number in range(3):
            await produce(first, own(number))
    async with life(tmp_path) as second:
        assert await replayed(second) == [own(n).signed.id for n in range(3)]


async def test_a_checkpoint_that_does_not_say_leaves_nothing_to_be_learned_from_again(tmp_path: Path) -> None:
    async with life(tmp_path) as first:
        await produce(first, own(0))
    async with life(tmp_path, json.dumps({"heard": [], "trained": []})) as second:
        assert (await replayed(second), second.pool.waiting) == ([], [])


async def test_all_of_a_journal_that_began_after_the_checkpoint_is_since(tmp_path: Path) -> None:
    async with life(tmp_path / "..") as first:
        await produce(first, own(0))
        checkpoint = first.checkpoint()
    async with life(tmp_path) as second:
        await produce(second, own(1))
    async with life(tmp_path, checkpoint) as third:
        assert third.pool.waiting == []
        assert await replayed(third) == [own(1).signed.id]


async def test_peers_groups_that_are_too_old_and_groups_of_another_life_are_passed_over(tmp_path: Path) -> None:
    async with life(tmp_path) as first:
        await gather(first, foreign(1))
        await first.journal.append(signed(2), [1.0, 0.0], own=True)  # without what is private
        await produce(first, own(3))
    async with life(tmp_path, max_age_s=0.0) as second:
        second.backlog._ours = lambda group, own: group.task.index != 3
        assert await replayed(second) == []


async def test_groups_that_are_not_there_any_more_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with life(tmp_path) as first:
        await produce(first, own(0))
        state = json.loads(first.checkpoint())
    state["experience"]["waiting"].append("0" * 64)
    async with life(tmp_path, json.dumps(state)) as second:
        assert len(second.pool.waiting) == 1
    assert "1 groups that were waiting are not in the journal any more" in caplog.text


@pytest.mark.parametrize("seed", range(6))
async def test_every_group_is_learned_from_once_wherever_the_node_crashes(tmp_path: Path, seed: int) -> None:
    """Producers and gatherers are cut off at any moment, also between a commit and its return."""
    rng = random.Random(seed)
    checkpoint, numbers = None, iter(range(10**6))
    for _ in range(8):
        async with life(tmp_path, checkpoint) as living:
            tasks = [asyncio.create_task(replay(living.backlog, living.pool, living.counters))]
            for _ in range(rng.randrange(60)):
                match rng.randrange(5):
                    case 0 | 1:
                        tasks.append(asyncio.create_task(produce(living, own(next(numbers)))))
                    case 2:
                        tasks.append(asyncio.create_task(gather(living, foreign(next(numbers)))))
                    case 3 if not living.drawn and living.pool.level.own >= POOL.own_groups:
                        await living.draw()
                        if rng.random() < 0.8:
                            living.train()
                    case _:
                        await asyncio.sleep(rng.choice((0, 0, 0.002)))
                if living.drawn and rng.random() < 0.5:
                    living.train()
                if rng.random() < 0.08:
                    checkpoint = living.checkpoint()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if rng.random() < 0.3:  # it was stopped in order
                checkpoint = living.checkpoint()
    async with life(tmp_path, checkpoint) as living:
        waiting = [e.id for e in living.pool.waiting]
        since = await replayed(living)
        rows = [row.id for _, row in await living.journal.rows_after(0)]
    accounted = Counter(living.mind.trained + waiting + since)
    assert accounted == Counter(rows)
    assert Counter(living.mind.heard) == Counter(rows) - Counter(since)
    assert rows
