"""How many keys there are, who announces under which, and what can be told of a swarm's size from a few of them."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from swarm.net.lookup import BEAM, MAX_ASKED, MAX_TOLD, nearest
from swarm.net.shards import (
    FIRST_SHARDS,
    FULL,
    LEVELS,
    MAX_READINGS,
    SPARSE,
    SwarmSize,
    levels_of,
    presence,
    shard_of,
    shards_at,
    top_level,
)
from swarm.types import PeerId
from tests.builders import identity


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def peers(count: int) -> list[PeerId]:
    return [PeerId(f"peer {number}") for number in range(count)]


# Levels ---------------------------------------------------------------------------------------------------------------


def test_each_level_has_four_times_the_shards_and_divides_the_one_below() -> None:
    assert [shards_at(level) for level in range(LEVELS)] == [8, 32, 128, 512, 2048, 8192, 32768]
    for peer in peers(200):
        for level in range(1, LEVELS):
            assert shard_of(peer, level) % shards_at(level - 1) == shard_of(peer, level - 1)
    assert set(Counter(shard_of(peer) for peer in peers(8000)).values()) <= set(range(880, 1121))
    # The place of a record is part of the protocol.
    expected = int.from_bytes(hashlib.sha256(identity().peer_id.encode()).digest()[:8], "little") % 32
    assert shard_of(identity().peer_id, 1) == expected


@pytest.mark.parametrize(
    ("size", "level"),
    [(0, 0), (1, 0), (128, 0), (129, 1), (512, 1), (513, 2), (10_000, 4), (FULL * shards_at(6), 6), (10**9, 6)],
)
def test_the_top_level_is_the_first_with_room_for_all(size: int, level: int) -> None:
    assert top_level(size) == level


def test_all_announce_on_the_top_level_and_a_few_on_those_below() -> None:
    assert [presence(10_000, level) for level in range(LEVELS)] == [0.0064, 0.0256, 0.1024, 0.4096, 1.0, 0.0, 0.0]
    for size in (1, 64, 129, 1000, 10_000, 100_000, 500_000):
        loads = [size * presence(size, level) / shards_at(level) for level in range(LEVELS)]
        top = top_level(size)
        assert loads[:top] == pytest.approx([SPARSE] * top)
        assert loads[top] <= FULL
        assert top == 0 or loads[top] > FULL / 4
        assert sum(presence(size, level) for level in range(LEVELS)) < 5 / 3


def test_a_peer_draws_once_for_each_level() -> None:
    assert levels_of(10_000, [0.005, 0.03, 0.1, 0.5, 0.99, 0.0, 0.0]) == [0, 2, 4]
    assert levels_of(0, [0.99] * LEVELS) == [0]


# Size -----------------------------------------------------------------------------------------------------------------


def test_the_size_is_the_shards_times_the_median_of_what_they_held() -> None:
    size = SwarmSize(60.0, Clock())
    assert size.estimate == 0
    for records in (4, 6, 5, 64, 64):
        size.saw(1, records)
    assert size.density(1) == 6
    assert size.estimate == 32 * 6
    size.saw(2, 0)
    assert size.estimate == 32 * 6


def test_old_readings_are_forgotten_and_their_number_is_bounded() -> None:
    clock = Clock()
    size = SwarmSize(60.0, clock)
    size.saw(3, 16)
    clock.now = 60.0
    assert size.estimate == 512 * 16
    clock.now = 60.1
    assert size.density(3) is None
    for _ in range(MAX_READINGS):
        size.saw(0, 16)
    for _ in range(MAX_READINGS // 2 + 1):
        size.saw(0, 2)
    assert size.estimate == 8 * 2


def test_a_small_swarm_is_read_whole_and_a_larger_one_shard_by_shard() -> None:
    size, rng = SwarmSize(60.0, Clock()), random.Random(0)
    everything = [(0, shard) for shard in range(FIRST_SHARDS)]
    assert size.to_read(rng) == everything
    for _ in everything:
        size.saw(0, 3)
    assert size.to_read(rng) == everything
    for _ in range(MAX_READINGS):
        size.saw(0, 9)
    assert size.unseen == 1
    [(level, shard)] = size.to_read(rng)
    assert (level, 0 <= shard < 32) == (1, True)
    size.saw(1, 0)
    assert size.unseen is None
    assert {size.to_read(rng)[0][0] for _ in range(20)} == {0}
    assert {size.to_read(rng)[0][1] for _ in range(200)} == set(range(8))


class Directory:
    """Records of all shards of all levels, for a swarm whose members all believe in a size of their own."""

    def __init__(self, beliefs: Sequence[float], rng: random.Random) -> None:
        self.shards: Counter[tuple[int, int]] = Counter()
        self.keys = 0
        for peer, size in zip(peers(len(beliefs)), beliefs, strict=True):
            levels = levels_of(size, [rng.random() for _ in range(LEVELS)])
            self.keys += len(levels)
            self.shards.update((level, shard_of(peer, level)) for level in levels)

    def read(self, size: SwarmSize, rng: random.Random) -> int:
        """One reading; how many records it brought."""
        found = [((level, shard), self.shards[level, shard]) for level, shard in size.to_read(rng)]
        for (level, _), records in found:
            size.saw(level, records)
        return sum(records for _, records in found)


@pytest.mark.parametrize("count", [3, 50, 128, 700, 3000, 10_000, 30_000])
def test_a_newcomer_finds_somebody_at_once_and_knows_the_size_after_ten_readings(count: int) -> None:
    rng = random.Random(count)
    directory = Directory([count] * count, rng)
    estimates = []
    for _ in range(20):
        size = SwarmSize(300.0, Clock())
        assert directory.read(size, rng) > 0
        for _ in range(9):
            directory.read(size, rng)
        estimates.append(size.estimate)
    assert 0.5 * count - 4 <= sorted(estimates)[10] <= 1.5 * count + 8
    assert max(estimates) <= 2.5 * count + 8


def test_a_node_pays_no_more_in_a_swarm_of_ten_thousand_than_in_one_of_a_hundred() -> None:
    def cost(count: int) -> tuple[float, float, float]:
        """Keys announced, shards read and records found, per heartbeat of two readings, once the size is known."""
        rng = random.Random(1)
        directory = Directory([count] * count, rng)
        size = SwarmSize(300.0, Clock())
        for _ in range(30):
            directory.read(size, rng)
        records = sum(directory.read(size, rng) for _ in range(400)) / 200
        return directory.keys / count, 2.0 * len(size.to_read(rng)), records

    keys, reads, records = zip(cost(100), cost(10_000), strict=True)
    assert keys[1] + reads[1] <= 1.2 * (keys[0] + reads[0])
    assert records[1] <= 1.2 * records[0]


def test_a_swarm_of_newcomers_agrees_on_its_size_and_so_does_one_that_shrinks() -> None:
    rng = random.Random(0)
    clock = Clock()
    for count in (2000, 60):
        sizes = [SwarmSize(15.0, clock) for _ in range(count)]
        for size in sizes:
            for _ in range(8 if count == 60 else 0):
                size.saw(2, 16)
        for _ in range(25):
            clock.now += 1.0
            directory = Directory([size.estimate for size in sizes], rng)
            for size in sizes:
                directory.read(size, rng)
        estimates = sorted(size.estimate for size in sizes)
        assert 0.6 * count <= estimates[count // 2] <= 1.5 * count
        assert estimates[count // 10] >= 0.3 * count


def test_lies_make_a_swarm_look_larger_only_with_as_many_identities() -> None:
    rng = random.Random(0)
    count = 2000
    directory = Directory([count] * count, rng)
    for number in range(500):  # Present on every level, which nobody honest is.
        liar = PeerId(f"liar {number}")
        directory.shards.update((level, shard_of(liar, level)) for level in range(LEVELS))
    for shard in range(50):  # And a few shards stuffed by ids that were made for them.
        directory.shards[2, shard] += 1000
    size = SwarmSize(300.0, Clock())
    for _ in range(40):
        directory.read(size, rng)
    assert count * 0.7 <= size.estimate <= 1.6 * (count + 500)


# Lookups --------------------------------------------------------------------------------------------------------------


def place(peer: PeerId) -> int:
    return int.from_bytes(hashlib.sha1(peer.encode()).digest(), "big")


class Network:
    """Peers that know some at random, and those near themselves."""

    def __init__(self, count: int) -> None:
        rng = random.Random(0)
        self.peers = sorted(peers(count), key=place)
        self.knows = {
            peer: [*rng.sample(self.peers, min(40, count)), *self.peers[max(at - 10, 0) : at + 10]]
            for at, peer in enumerate(self.peers)
        }
        self.asked: list[PeerId] = []
        self.dead: set[PeerId] = set()
        self.target = 0

    async def ask(self, peer: PeerId) -> Sequence[PeerId] | None:
        self.asked.append(peer)
        if peer in self.dead:
            return None
        return sorted(self.knows[peer], key=self.distance)[:MAX_TOLD]

    def distance(self, peer: PeerId) -> int:
        return place(peer) ^ self.target


async def test_a_lookup_ends_with_the_nearest_that_answer_after_few_questions() -> None:
    network = Network(2000)
    for number in range(20):
        network.asked, network.target = [], place(PeerId(f"target {number}"))
        by_distance = sorted(network.peers, key=network.distance)
        network.dead = set(by_distance[:2])
        start = network.knows[network.peers[100 * number]]
        found = await nearest(network.target, start, network.ask, place, 10.0)
        assert found[:5] == by_distance[2:7]
        assert len(found) == BEAM
        assert len(network.asked) == len(set(network.asked)) <= MAX_ASKED


async def test_a_lookup_that_is_led_on_ends_all_the_same() -> None:
    asked: list[PeerId] = []

    async def always_nearer(peer: PeerId) -> Sequence[PeerId]:
        """Whoever is asked names a thousand more, each nearer than all before."""
        asked.append(peer)
        return [PeerId(str(int(peer) - 1 - number)) for number in range(1000)]

    found = await nearest(0, [PeerId(str(10**9))], always_nearer, int, 10.0)
    assert len(asked) == MAX_ASKED
    assert len(found) == BEAM


async def test_who_never_answers_costs_a_lookup_its_deadline_at_most() -> None:
    async def ask(peer: PeerId) -> Sequence[PeerId] | None:
        if peer == "peer 0":
            return [PeerId(f"silent {number}") for number in range(20)]
        await asyncio.Event().wait()
        return None

    assert await nearest(place(PeerId("silent 0")), peers(1), ask, place, 0.05) == ["peer 0"]
    assert await nearest(0, [], ask, place, 10.0) == []
    await asyncio.sleep(0)  # The cancelled end.
    assert asyncio.all_tasks() == {asyncio.current_task()}
