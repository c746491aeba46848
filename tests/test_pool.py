"""The pool: back-pressure for our own work, bounds for peers', freshness and fairness at the draw."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from node.algorithms import PoolConfig, ScheduledShare, ShareConfig, UsefulShare
from node.experience import Experience
from node.pool import RolloutPool
from node.precedents import Precedents
from node.waiting import Waiting
from swarm.footprint import footprint
from swarm.net.standing import Standing
from swarm.types import GroupId, PeerId, PolicyVersion, Role, Rollout, RolloutGroup, SamplingParams, Task, TaskRef, Turn
from tests.builders import turn

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


def standing_of(*trusted: str, lineages: Mapping[str, str] | None = None) -> Standing:
    """Where these have earned a share of their own, and are reached at these addresses."""
    standing = Standing(lambda: 0.0)
    for origin in trusted:
        standing.credit(PeerId(origin), Standing.TRUSTED)
    for origin, address in (lineages or {}).items():
        standing.reached(PeerId(origin), address)
    return standing


def pool_of(standing: Standing | None = None, **settings: float | ShareConfig) -> tuple[RolloutPool, Counter[str]]:
    """Everybody is trusted, unless it is about standing."""
    counters: Counter[str] = Counter()
    if standing is None:
        settings = {"newcomer_share": 1.0} | settings
    config = PoolConfig(**settings)  # type: ignore[arg-type]
    precedents = Precedents(config)
    pool = RolloutPool(config, random.Random(0), counters, standing or standing_of(), precedents, lambda e: None)
    return pool, counters


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


async def test_own_groups_of_versions_that_were_given_up_are_stale():
    pool, counters = pool_of(own_groups=1, own_capacity=3, max_lag=8)
    for version in (6, 5, 7):
        await pool.put_own(experience(f"v{version}", own=True, version=version))
    (drawn,) = await pool.draw(
        PolicyVersion(8), lambda: 0.0, lambda task: 0.5, lambda e, v: 1.0, since=PolicyVersion(7)
    )
    assert (drawn.id, counters["stale_groups"]) == ("v7", 2)


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
        config = PoolConfig(own_groups=1, foreign_groups=1, newcomer_share=1.0)
        precedents = Precedents(config)
        pool = RolloutPool(config, random.Random(seed), Counter(), standing_of(), precedents, lambda e: None)
        pool.put_foreign(experience("wanted", own=False, origin="p"))
        pool.put_foreign(experience("less", own=False, origin="q"))
        await pool.put_own(experience("a", own=True))
        drawn = await pool.draw(
            PolicyVersion(0), lambda: 0.0, lambda t: 0.5, lambda e, v: 3.0 if e.id == "wanted" else 1.0
        )
        picks[drawn[1].id] += 1
    assert 260 < picks["wanted"] < 340  # 300 expected, sd 8.7


# Standing: who has earned a share of his own --------------------------------------------------------------------------

SYBILS = [f"sybil{i}" for i in range(1000)]


async def shares(pool: RolloutPool, own: int = 1) -> Counter[str]:
    """Foreign groups of one step, by origin."""
    for i in range(own):
        await pool.put_own(experience(f"own{i}", own=True))
    drawn = await pool.draw(PolicyVersion(0), lambda: 0.0, lambda task: 0.5, lambda e, v: 1.0)
    return Counter(e.group.origin for e in drawn if not e.own)


def fill(pool: RolloutPool, *origins: str, groups: int) -> None:
    for i in range(groups):
        for origin in origins:
            pool.put_foreign(experience(f"{origin}.{i}", own=False, origin=origin))


async def test_a_thousand_identities_get_one_newcomers_share():
    pool, _ = pool_of(standing_of("a", "b", "c", "d"), own_groups=1, own_capacity=1, foreign_groups=16)
    fill(pool, *SYBILS, groups=1)
    fill(pool, "a", "b", "c", "d", groups=10)
    drawn = await shares(pool)
    assert sum(drawn[origin] for origin in SYBILS) <= 4
    assert all(drawn[origin] <= 4 for origin in "abcd")
    assert drawn.total() == 16


async def test_what_others_leave_is_not_the_newcomers():
    # A quarter of what is trained on, not of what might have been: 12 own, so 4 of 16.
    pool, _ = pool_of(standing_of(), own_groups=12, own_capacity=12, foreign_groups=48)
    fill(pool, *SYBILS, groups=2)
    assert (await shares(pool, own=12)).total() == 4
    # 12 own and 3 of a friend's, so 5 of 20.
    pool, _ = pool_of(standing_of("friend"), own_groups=12, own_capacity=12, foreign_groups=48)
    fill(pool, *SYBILS, groups=2)
    fill(pool, "friend", groups=3)
    drawn = await shares(pool, own=12)
    assert (drawn.pop("friend"), drawn.total()) == (3, 5)


async def test_what_newcomers_leave_is_the_others():
    pool, _ = pool_of(standing_of("friend"), own_groups=1, own_capacity=1, foreign_groups=16)
    fill(pool, "friend", groups=20)
    assert await shares(pool) == {"friend": 16}


async def test_a_stranger_alone_still_gets_one_group():
    pool, _ = pool_of(standing_of(), own_groups=1, own_capacity=1, foreign_groups=2)
    fill(pool, "stranger", groups=5)
    assert await shares(pool) == {"stranger": 1}


async def test_two_friends_trust_each_other_after_some_tens_of_useful_groups():
    standing, useful, steps = standing_of(), 0, 0
    pool, _ = pool_of(standing, own_groups=32, own_capacity=32, foreign_groups=96)
    while not standing.trusted(PeerId("friend")):
        fill(pool, "friend", groups=96)
        drawn = (await shares(pool, own=32))["friend"]
        standing.credit(PeerId("friend"), 0.25 * drawn)  # a success where we succeed half of the time
        useful, steps = useful + drawn, steps + 1
    assert (useful, steps) == (20, 2)
    fill(pool, "friend", groups=96)
    assert (await shares(pool, own=32))["friend"] == 96


async def test_who_strikes_is_a_newcomer_again():
    standing = standing_of("friend", "other")
    pool, _ = pool_of(standing, own_groups=3, own_capacity=3, foreign_groups=8)
    fill(pool, "friend", "other", groups=20)
    assert await shares(pool, own=3) == {"friend": 4, "other": 4}
    standing.strike(PeerId("friend"))
    assert await shares(pool, own=3) == {"friend": 2, "other": 6}


async def test_sybils_of_one_network_leave_half_of_the_newcomers_share_to_honest_ones():
    lineages = {origin: f"/ip4/8.8.4.{i % 250 + 1}/tcp/1" for i, origin in enumerate(SYBILS[:100])}
    lineages |= {"one": "/ip4/9.9.9.9/tcp/1", "two": "/ip4/1.1.1.1/tcp/1"}
    pool, _ = pool_of(standing_of(lineages=lineages), own_groups=24, own_capacity=24, foreign_groups=32)
    fill(pool, *SYBILS[:100], groups=1)
    fill(pool, "one", "two", groups=20)
    drawn = await shares(pool, own=24)
    assert (drawn["one"], drawn["two"], drawn.total()) == (2, 2, 8)


async def test_trusted_origins_of_one_network_share_what_one_network_gets():
    lineages = {origin: f"/ip4/8.8.4.{i + 1}/tcp/1" for i, origin in enumerate("abcd")}
    standing = standing_of(*"abcdxyz", lineages=lineages)
    pool, _ = pool_of(standing, own_groups=1, own_capacity=1, foreign_groups=16)
    fill(pool, *"abcdxyz", groups=20)
    for _ in range(5):
        drawn = await shares(pool)
        assert sum(drawn[origin] for origin in "abcd") <= 8
        assert drawn.total() == 16


async def test_a_network_alone_has_all_of_it():
    lineages = {"a": "/ip4/8.8.4.1/tcp/1", "b": "/ip4/8.8.4.2/tcp/1"}
    pool, _ = pool_of(standing_of("a", "b", lineages=lineages), own_groups=1, own_capacity=1, foreign_groups=8)
    fill(pool, "a", "b", groups=20)
    assert await shares(pool) == {"a": 4, "b": 4}


async def test_a_flood_of_newcomers_pushes_out_newcomers_only():
    pool, counters = pool_of(standing_of("friend"), foreign_capacity=16)
    fill(pool, "friend", groups=12)
    fill(pool, *SYBILS, groups=1)
    assert (pool.level.foreign, pool.level.newcomers) == (16, 4)
    assert counters["dropped_groups"] == 996
    fill(pool, "friend", groups=12)
    assert (pool.level.foreign, pool.level.newcomers) == (16, 4)


async def test_newcomers_have_their_room_in_a_pool_full_of_friends():
    pool, _ = pool_of(standing_of("friend"), foreign_capacity=16)
    fill(pool, "friend", groups=20)
    fill(pool, "stranger", groups=1)
    assert (pool.level.foreign, pool.level.newcomers) == (16, 1)


async def test_a_flood_from_one_network_leaves_an_honest_newcomer_his_place():
    lineages = dict.fromkeys(SYBILS, "/ip4/8.8.4.1/tcp/1") | {"honest": "/ip4/9.9.9.9/tcp/1"}
    pool, _ = pool_of(standing_of(lineages=lineages), own_groups=3, own_capacity=3, foreign_capacity=16)
    fill(pool, "honest", groups=1)
    fill(pool, *SYBILS, groups=1)
    assert pool.level.newcomers == 4
    assert "honest" in pool._foreign.origins


async def test_a_pool_of_those_who_lost_their_standing_shrinks_to_the_newcomers_room():
    standing = standing_of("fallen", "friend")
    pool, _ = pool_of(standing, foreign_capacity=16)
    fill(pool, "fallen", groups=16)
    standing.strike(PeerId("fallen"))
    fill(pool, "friend", groups=40)
    assert (pool.level.foreign, pool.level.newcomers) == (16, 4)


async def test_all_that_comes_in_is_a_precedent_our_own_too():
    config = PoolConfig()
    precedents = Precedents(config)
    pool = RolloutPool(config, random.Random(0), Counter(), standing_of(), precedents, lambda e: None)
    own, foreign = experience("a", own=True, origin="me"), experience("f", own=False, origin="p")
    assert [precedents.copied(e.group) for e in (own, foreign)] == [None, None]
    await pool.put_own(own)
    pool.put_foreign(foreign)
    assert None not in [precedents.copied(e.group) for e in (own, foreign)]


# Memory ---------------------------------------------------------------------------------------------------------------


def large(name: str, mib: float, origin: str = "p") -> Experience:
    """A group whose text takes so much."""
    small = experience(name, own=False, origin=origin)
    text = Turn(role=Role.ASSISTANT, text="x" * int(mib * (1 << 20)))
    return replace(small, group=replace(small.group, rollouts=(Rollout(turns=(text,)),)))


def footprint_of(turn: Turn) -> int:
    return footprint(replace(experience("g", own=False).group, rollouts=(Rollout(turns=(turn,)),)))


def test_a_groups_size_is_what_it_takes_in_memory():
    wide = replace(turn("a\N{SNOWMAN}" * 1000), sampled=None, finish=None)  # a snowman makes all characters two bytes
    assert footprint_of(wide) - footprint_of(replace(wide, text="")) >= 4000
    sampled = turn("a" * 100)
    assert footprint_of(sampled) - footprint_of(replace(sampled, sampled=None, finish=None)) == 101 * 12 + 128


async def test_strangers_groups_are_bounded_in_bytes_the_fullest_origin_loses_its_oldest():
    pool, counters = pool_of(foreign_mib=10.0)
    for number in range(3):
        pool.put_foreign(large(f"quiet{number}", 0.5, "q"))
    for number in range(40):
        pool.put_foreign(large(f"loud{number}", 2.0, "l"))
        assert pool.level.foreign_bytes <= 10 << 20
    assert [e.id for e in pool._foreign] == ["quiet0", "quiet1", "quiet2", *(f"loud{n}" for n in range(36, 40))]
    assert counters["dropped_groups"] == 36


async def test_of_equals_the_one_who_came_first_loses():
    """And not the one whose id has some hash: runs of an experiment would differ from process to process."""
    for newcomer_share in (1.0, 0.5):
        pool, _ = pool_of(standing_of(), newcomer_share=newcomer_share, foreign_capacity=int(8 / newcomer_share))
        for number in range(12):
            pool.put_foreign(experience(f"{number}", own=False, origin=f"peer{number}"))
        assert [e.id for e in pool._foreign] == [f"{number}" for number in range(4, 12)]


async def test_newcomers_have_their_share_of_the_memory_only():
    pool, _ = pool_of(standing_of("friend"), newcomer_share=0.25, foreign_mib=16.0)
    for number in range(11):
        pool.put_foreign(large(f"f{number}", 1.0, "friend"))
    for number in range(20):
        pool.put_foreign(large(f"n{number}", 1.0, f"stranger{number}"))
    assert pool.level.newcomers == 3, "a quarter of 16 MiB is 3 groups of a little more than one"
    assert pool.level.foreign == 14


async def test_one_group_too_large_for_the_pool_is_taken_alone():
    pool, _ = pool_of(foreign_mib=1.0)
    for number in range(3):
        pool.put_foreign(large(f"{number}", 1.5))
    assert [e.id for e in pool._foreign] == ["2"]


def test_sums_stay_right_whatever_goes():
    waiting = Waiting()
    groups = [large(f"{n}", 0.001 * n, f"p{n % 3}") for n in range(12)]
    for group in groups:
        waiting.append(group)
    waiting.remove({"0", "3", "6", "9", "4"})  # all of p0
    waiting.drop_oldest(PeerId("p1"))
    assert waiting.drop_while(lambda e: e.id in ("2", "7", "5")) == 3
    left = [groups[n] for n in (10, 8, 11)]
    assert list(waiting) == left
    assert waiting.total == (3, sum(e.size for e in left))
    assert waiting.load([PeerId("p2"), PeerId("p0")]) == (2, groups[8].size + groups[11].size)
    assert set(waiting.origins) == {"p1", "p2"}
