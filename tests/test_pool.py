"""The pool: back-pressure for our own work, bounds for peers', freshness and fairness at the draw."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import numpy as np
import pytest

from node.algorithms import PoolConfig, ScheduledShare, ShareConfig, UsefulShare
from node.experience import Experience
from node.pool import RolloutPool
from swarm.types import GroupId, PeerId, PolicyVersion, RolloutGroup, SamplingParams, Task, TaskRef

TASK = Task(
    ref=TaskRef(source="reasoning_gym/x", version="1", config="{}", seed=0, index=0),
    prompt="?",
    answer="!",
    difficulty="{}",
)


def experience(name: str, *, own: bool, version: int = 0, at: float = 0.0, origin: str = "p") -> Experience:
    group = RolloutGroup(
        swarm="s",
        origin=PeerId(origin),
        task=TASK.ref,
        rollouts=(),
        model="m",
        tokenizer="t",
        sampling=SamplingParams(),
        created_at=0.0,
    )
    return Experience(
        id=GroupId(name),
        group=group,
        task=TASK,
        rewards=np.ones(1, dtype=np.float32),
        scored=np.ones(1, dtype=bool),
        own=own,
        value=0.5,
        version=PolicyVersion(version),
        arrived_at=at,
    )


def pool_of(**settings: float | ShareConfig) -> tuple[RolloutPool, Counter[str]]:
    counters: Counter[str] = Counter()
    return RolloutPool(PoolConfig(**settings), random.Random(0), counters), counters  # type: ignore[arg-type]


async def draw(pool: RolloutPool, version: int = 0, now: float = 0.0, demand=lambda e, v: 1.0) -> list[str]:
    drawn = await asyncio.wait_for(pool.draw(PolicyVersion(version), lambda: now, lambda task: 0.25, demand), timeout=5)
    return [e.id for e in drawn]


async def test_own_groups_come_in_order_and_the_producer_waits_for_room():
    pool, _ = pool_of(own_groups=2, own_capacity=2)
    await pool.put_own(experience("a", own=True))
    await pool.put_own(experience("b", own=True))
    third = asyncio.create_task(pool.put_own(experience("c", own=True)))
    await asyncio.sleep(0)
    assert not third.done()
    assert await draw(pool) == ["a", "b"]
    await asyncio.wait_for(third, timeout=5)
    assert pool.level.own == 1


async def test_stale_own_groups_are_dropped_at_the_draw():
    pool, counters = pool_of(own_groups=1, max_lag=8)
    await pool.put_own(experience("old", own=True, version=1))
    await pool.put_own(experience("new", own=True, version=2))
    assert await draw(pool, version=10) == ["new"]
    assert counters["stale_groups"] == 1


async def test_an_empty_foreign_pool_is_not_waited_for():
    pool, _ = pool_of(own_groups=1, foreign_groups=4)
    await pool.put_own(experience("a", own=True))
    assert await draw(pool) == ["a"]


async def test_foreign_groups_are_handed_out_once_with_our_present_value():
    pool, _ = pool_of(own_groups=1, foreign_groups=4)
    await pool.put_own(experience("a", own=True))
    await pool.put_own(experience("b", own=True))
    pool.put_foreign(experience("f", own=False))
    drawn = await pool.draw(PolicyVersion(0), lambda: 0.0, lambda task: 0.25, lambda e, v: 1.0)
    assert [(e.id, e.value) for e in drawn] == [("a", 0.5), ("f", 0.25)]
    assert await draw(pool) == ["b"]


async def test_what_nobody_wants_is_never_drawn():
    pool, _ = pool_of(own_groups=1, foreign_groups=4)
    await pool.put_own(experience("a", own=True))
    pool.put_foreign(experience("f", own=False))
    assert await draw(pool, demand=lambda e, v: 0.0) == ["a"]
    assert pool.level.foreign == 1


async def test_foreign_groups_age_while_the_draw_waits_for_own_ones():
    pool, counters = pool_of(own_groups=1, foreign_groups=8, foreign_max_age_s=60.0)
    pool.put_foreign(experience("clock", own=False, at=0.0, origin="p"))
    now = 0.0
    waiting = asyncio.create_task(pool.draw(PolicyVersion(0), lambda: now, lambda task: 0.5, lambda e, v: 1.0))
    await asyncio.sleep(0)
    now = 61.0
    await pool.put_own(experience("a", own=True))
    assert [e.id for e in await waiting] == ["a"]
    assert counters["stale_groups"] == 1


async def test_foreign_groups_age_by_our_steps_and_by_the_clock():
    pool, counters = pool_of(own_groups=1, foreign_groups=8, foreign_max_lag=4, foreign_max_age_s=60.0)
    await pool.put_own(experience("a", own=True, version=10))
    pool.put_foreign(experience("steps", own=False, version=5, at=100.0, origin="p"))
    pool.put_foreign(experience("clock", own=False, version=10, at=30.0, origin="q"))
    pool.put_foreign(experience("fresh", own=False, version=6, at=100.0, origin="r"))
    assert await draw(pool, version=10, now=100.0) == ["a", "fresh"]
    assert counters["stale_groups"] == 2
    assert pool.level.foreign == 0


async def test_a_flooding_peer_pushes_out_its_own_groups_only():
    pool, counters = pool_of(own_groups=1, foreign_groups=8, foreign_capacity=4, peer_share=1.0)
    pool.put_foreign(experience("quiet", own=False, origin="q"))
    for i in range(100):
        pool.put_foreign(experience(f"loud{i}", own=False, origin="l"))
    assert pool.level.foreign == 4
    assert counters["dropped_groups"] == 97
    await pool.put_own(experience("a", own=True))
    assert sorted(await draw(pool)) == ["a", "loud97", "loud98", "loud99", "quiet"]


@pytest.mark.parametrize(
    ("origins", "expected"),
    [(1, {"p0": 8}), (2, {"p0": 4, "p1": 4}), (3, None), (4, {f"p{i}": 2 for i in range(4)})],
)
async def test_no_origin_gets_more_than_its_share(origins: int, expected: dict[str, int] | None):
    pool, _ = pool_of(own_groups=1, foreign_groups=8, peer_share=0.25)
    for i in range(origins):
        for j in range(20):
            pool.put_foreign(experience(f"{i}.{j}", own=False, origin=f"p{i}"))
    await pool.put_own(experience("a", own=True))
    drawn = await pool.draw(PolicyVersion(0), lambda: 0.0, lambda task: 0.5, lambda e, v: 1.0)
    counts = Counter(e.group.origin for e in drawn if not e.own)
    assert counts.total() == 8
    if expected is None:  # three origins: at most ceil(8 / 3) each
        assert max(counts.values()) == 3
    else:
        assert counts == expected


async def test_a_step_takes_the_share_of_its_version():
    share = ScheduledShare(start_step=0, end_step=4, final_groups=0)
    pool, _ = pool_of(own_groups=1, foreign_groups=4, foreign_max_lag=100, share=share)
    for i in range(20):
        pool.put_foreign(experience(f"f{i}", own=False))
    drawn = []
    for version in range(6):
        await pool.put_own(experience("a", own=True, version=version))
        drawn.append(len(await draw(pool, version=version)) - 1)
    assert drawn == [4, 3, 2, 1, 0, 0]
    assert pool.level.foreign == 10


async def test_the_share_judges_what_would_be_drawn_by_our_present_values():
    # Own: reward 1 of a value of .5. Peers' groups are all 1, too: their use is 1 - v = .125 on the wanted tasks, and
    # nobody wants the others.
    pool, _ = pool_of(own_groups=1, foreign_groups=8, share=UsefulShare())
    for i in range(20):
        pool.put_foreign(experience(f"f{i}", own=False, origin=f"p{i % 4}"))
    await pool.put_own(experience("a", own=True))
    drawn = await pool.draw(PolicyVersion(0), lambda: 0.0, lambda task: 0.875, lambda e, v: float(e.id < "f15"))
    assert [e.value for e in drawn] == [0.5, 0.875, 0.875]
    assert all(e.id < "f15" for e in drawn)
    assert pool.level.foreign == 18


async def test_no_origin_gets_more_than_its_share_of_a_smaller_step():
    share = ScheduledShare(start_step=0, end_step=1, final_groups=4)
    pool, _ = pool_of(own_groups=1, foreign_groups=16, peer_share=0.25, share=share)
    for i in range(4):
        for j in range(20):
            pool.put_foreign(experience(f"{i}.{j}", own=False, origin=f"p{i}"))
    await pool.put_own(experience("a", own=True, version=9))
    assert sorted(name[0] for name in (await draw(pool, version=9))[1:]) == ["0", "1", "2", "3"]


async def test_demand_decides_who_is_drawn_more_often():
    picks: Counter[str] = Counter()
    for seed in range(400):
        pool = RolloutPool(PoolConfig(own_groups=1, foreign_groups=1), random.Random(seed), Counter())
        pool.put_foreign(experience("wanted", own=False, origin="p"))
        pool.put_foreign(experience("less", own=False, origin="q"))
        await pool.put_own(experience("a", own=True))
        drawn = await pool.draw(
            PolicyVersion(0), lambda: 0.0, lambda t: 0.5, lambda e, v: 3.0 if e.id == "wanted" else 1.0
        )
        picks[drawn[1].id] += 1
    assert 260 < picks["wanted"] < 340  # 300 expected, sd 8.7
