"""Buckets, shares and who is next, by a clock that stands still until it is moved."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest

from swarm.net import virtual_time
from swarm.net.rates import MAX_PEERS, PEER_GROUPS, RESERVE_GROUPS, Meter, Rate, Shares, TokenBucket
from swarm.types import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def shares(groups: float = 10.0, size: float = 1000.0, peer_share: float = 1.0) -> Shares:
    return Shares(Rate(groups=groups, bytes=size), peer_share, 0.0)


def served(line: Shares, now: float) -> list[PeerId]:
    return [ticket.peer for ticket in line.granted(now)]


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(4.0, now=0.0)
    taken_at = []
    now = 0.0
    for _ in range(8):
        now += bucket.wait_s(1, now)
        bucket.take(1, now)
        taken_at.append(now)
    assert taken_at == [0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_bucket_saves_up_one_second_and_no_more() -> None:
    bucket = TokenBucket(4.0, now=0.0)
    bucket.take(4, 0.0)
    assert bucket.wait_s(4, 1000.0) == 0
    bucket.take(4, 1000.0)
    assert bucket.wait_s(1, 1000.0) == 0.25


def test_a_slow_bucket_holds_one() -> None:
    bucket = TokenBucket(0.1, now=0.0)
    assert bucket.wait_s(1, 0.0) == 0
    bucket.take(1, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(10)


def test_what_is_larger_than_the_bucket_takes_a_full_one_and_leaves_a_debt() -> None:
    bucket = TokenBucket(10.0, now=0.0)
    bucket.take(1, 0.0)
    assert bucket.wait_s(35, 0.0) == pytest.approx(0.1)
    bucket.take(35, 0.1)
    assert bucket.wait_s(0, 0.1) == pytest.approx(2.5)
    assert bucket.wait_s(1, 0.1) == pytest.approx(2.6)


def test_what_is_given_back_is_there_again_but_fills_no_bucket_over() -> None:
    bucket = TokenBucket(2.0, now=0.0)
    bucket.take(2, 0.0)
    bucket.take(-1, 0.0)
    assert bucket.wait_s(1, 0.0) == 0
    bucket.take(-10, 0.0)
    assert bucket.wait_s(2, 0.0) == 0
    bucket.take(2, 0.0)
    assert bucket.wait_s(1, 0.0) == 0.5


def test_a_bucket_that_nothing_flows_into_is_waited_for_in_vain() -> None:
    bucket = TokenBucket(5.0, now=0.0)
    bucket.retune(0.0, 0.0)
    bucket.take(1, 0.0)
    assert bucket.wait_s(1, 0.0) == math.inf
    bucket.retune(2.0, 100.0)
    assert bucket.wait_s(1, 100.0) == 0.5


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(1.0, now=10.0)
    bucket.take(1, 10.0)
    assert bucket.wait_s(1, 5.0) == 1.0
    assert bucket.wait_s(1, 11.0) == 0


def test_groups_and_bytes_are_both_limits() -> None:
    line = shares(groups=10, size=1000)
    line.ask(A, 1, 900, 0.0)
    assert served(line, 0.0) == [A]
    line.ask(A, 1, 600, 0.0)
    assert served(line, 0.0) == []
    assert line.wait_s(0.0) == pytest.approx(0.5)
    assert served(line, 0.5) == [A]
    line.ask(A, 10, 0, 0.5)
    assert line.wait_s(0.5) == pytest.approx(0.1)


def test_one_peer_has_its_share_and_leaves_the_rest_alone() -> None:
    line = shares(groups=10, peer_share=0.3)
    for _ in range(10):
        line.ask(A, 1, 0, 0.0)
    assert served(line, 0.0) == [A] * 3
    assert line.wait_s(0.0) == pytest.approx(1 / 3)
    line.ask(B, 1, 0, 0.0)
    assert served(line, 0.0) == [B]
    assert Counter(peer for second in range(1, 3) for peer in served(line, float(second))) == {A: 6}


def test_a_total_that_is_short_is_shared_however_much_one_asks_for() -> None:
    """A asked for a hundred before the others asked for one at a time: all three get the same."""
    line = shares(groups=10)
    for _ in range(100):
        line.ask(A, 1, 0, 0.0)
    counts = Counter(served(line, 0.0))
    assert counts == {A: 10}
    counts.clear()
    waiting = {B: 0, C: 0}
    for tick in range(1, 301):
        for peer in waiting:
            if not waiting[peer]:
                line.ask(peer, 1, 0, tick / 10)
                waiting[peer] = 1
        for peer in served(line, tick / 10):
            counts[peer] += 1
            waiting[peer] = 0
    assert sum(counts.values()) == 300
    assert counts[B] == pytest.approx(100, abs=2)
    assert counts[C] == pytest.approx(100, abs=2)


def test_shares_are_of_bytes_where_bytes_are_short() -> None:
    """Who sends large groups gets as many bytes, and so fewer groups."""
    line = shares(groups=1e6, size=1000)
    for _ in range(1000):
        line.ask(A, 1, 400, 0.0)
        line.ask(B, 1, 100, 0.0)
    counts: Counter[PeerId] = Counter()
    for tick in range(1, 401):
        counts.update(served(line, tick / 10))
    assert counts[A] * 400 == pytest.approx(counts[B] * 100, rel=0.05)


def test_who_was_silent_has_saved_nothing_up() -> None:
    line = shares(groups=10)
    for second in range(100):
        for _ in range(10):
            line.ask(A, 1, 0, float(second))
        assert served(line, float(second)) == [A] * 10
    for _ in range(50):
        line.ask(B, 1, 0, 100.0)
        line.ask(A, 1, 0, 100.0)
    counts = Counter(served(line, 100.0) + served(line, 101.0))
    assert abs(counts[A] - counts[B]) <= 2


def test_what_is_only_known_afterwards_is_waited_for_by_whoever_comes_next() -> None:
    line = shares(size=1000)
    line.charge(A, 0, 3000, 0.0)
    line.ask(B, 1, 0, 0.0)
    assert served(line, 0.0) == []
    assert line.wait_s(0.0) == pytest.approx(2.0)
    assert served(line, 2.0) == [B]


def test_a_large_request_at_the_head_is_not_overtaken_for_ever() -> None:
    line = shares(groups=10)
    line.ask(A, 10, 0, 0.0)
    line.granted(0.0)
    line.ask(B, 10, 0, 0.0)
    order = []
    for tick in range(1, 20):
        line.ask(C, 1, 0, tick / 10)
        order += served(line, tick / 10)
    assert B in order


def test_what_is_relayed_has_a_reserve_and_the_rest_pays_for_it() -> None:
    """Two groups a second, half of them in reserve, and a log that wants more than there is."""
    line = shares(groups=2.0)
    for _ in range(20):
        line.ask(A, 1, 0, 0.0)
    assert served(line, 0.0) == [A, A]
    line.ask(B, RESERVE_GROUPS, 0, 0.0, relayed=True)
    assert served(line, 0.0) == [B], "it waits for nobody"
    line.charge(B, 1 - RESERVE_GROUPS, 0, 0.0)
    line.ask(B, 1, 0, 0.0, relayed=True)
    assert served(line, 0.1) == [], "but a reserve ends"
    assert line.short
    assert served(line, 0.9) == [], "and what it took is missing for the log"
    assert line.wait_s(0.9) == pytest.approx(0.1)
    both = served(line, 1.0)
    assert sorted(both) in ([B], [A, B])
    assert [peer for second in range(11, 61) for peer in served(line, second / 10)].count(A) + both.count(A) == 10


def test_what_a_peer_passes_on_does_not_wait_behind_its_log() -> None:
    line = shares(groups=1.0)
    for _ in range(5):
        line.ask(A, 1, 0, 0.0)
    assert served(line, 0.0) == [A]
    ours, theirs = line.ask(A, 1, 0, 0.0, relayed=True), line.ask(B, 1, 0, 0.0, relayed=True)
    assert ours.start == theirs.start
    granted = [ticket for second in range(1, 20) for ticket in line.granted(float(second))]
    assert granted.index(ours) < 3


def test_a_slow_total_keeps_a_few_groups_in_reserve_and_one_peer_may_have_two_of_them() -> None:
    line = shares(groups=0.4, peer_share=0.5)
    peers = [PeerId(str(number)) for number in range(20)]
    line.ask(A, 1, 0, 0.0)
    line.ask(A, 1, 0, 0.0)
    assert served(line, 0.0) == [A], "the total holds one"
    assert line.log_waits(A)
    assert not line.log_waits(B)
    for peer in peers:
        for _ in range(3):
            line.ask(peer, 1, 0, 0.0, relayed=True)
    granted = Counter(served(line, 0.0))
    assert granted.total() == RESERVE_GROUPS
    assert max(granted.values()) <= PEER_GROUPS
    assert line.wait_s(0.0) == pytest.approx(1 / 0.2), "then a group of the reserve at a time"


def test_what_cannot_be_served_holds_up_what_came_later_and_needs_less() -> None:
    line = shares(groups=0.4)
    line.ask(A, RESERVE_GROUPS, 0, 0.0, relayed=True)
    assert served(line, 0.0) == [A]
    line.ask(B, 2, 0, 0.0, relayed=True)
    line.ask(C, 1, 0, 0.1, relayed=True)
    assert served(line, 5.0) == []
    assert served(line, 10.0) == [B]


def test_who_gives_up_is_not_in_the_line() -> None:
    line = shares(groups=1)
    line.charge(A, 1, 0, 0.0)
    ticket = line.ask(A, 1, 0, 0.0)
    line.ask(B, 1, 0, 0.0)
    line.withdraw(ticket)
    assert served(line, 5.0) == [B]
    line.withdraw(ticket)
    assert line.wait_s(5.0) == math.inf


def test_only_so_many_peers_are_remembered() -> None:
    line = shares(groups=1e9, peer_share=1e-9)
    for number in range(3 * MAX_PEERS):
        line.ask(PeerId(str(number)), 1, 0, 0.0)
        line.granted(0.0)
    assert len(line._peers) == MAX_PEERS


def test_a_meter_waits_as_long_as_it_must() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        meter = Meter(shares(groups=4), loop.time)
        times = []
        for _ in range(8):
            await meter.take(A, 1)
            times.append(loop.time())
        return times

    assert virtual_time.run(main()) == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0], abs=0.01)


def test_a_talkative_peer_leaves_the_others_their_part() -> None:
    """One peer with twenty coroutines, two with one: each gets a third of the total."""

    async def main() -> Counter[PeerId]:
        loop = asyncio.get_running_loop()
        meter = Meter(shares(groups=30), loop.time)
        counts: Counter[PeerId] = Counter()

        async def ask(peer: PeerId) -> None:
            while True:
                await meter.take(peer, 1)
                counts[peer] += 1

        tasks = [asyncio.create_task(ask(peer)) for peer in [*[A] * 20, B, C]]
        await asyncio.sleep(30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return counts

    counts = virtual_time.run(main())
    assert counts.total() == pytest.approx(30 * 31, rel=0.02)
    assert counts[B] == pytest.approx(300, rel=0.05)
    assert counts[C] == pytest.approx(300, rel=0.05)


def test_an_appetite_that_changes_is_followed() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        appetite = 10.0
        meter = Meter(shares(groups=10), loop.time, lambda: appetite)
        taken = 0

        async def ask() -> None:
            nonlocal taken
            while True:
                await meter.take(A, 1)
                taken += 1

        task = asyncio.create_task(ask())
        counts = []
        for appetite in (10.0, 0.0, 2.0):  # noqa: B007 - the meter looks at it
            await asyncio.sleep(1.5)  # for the change to be noticed
            before = taken
            await asyncio.sleep(10)
            counts.append(taken - before)
        task.cancel()
        await asyncio.wait({task})
        return counts

    assert virtual_time.run(main()) == [pytest.approx(100, abs=1), 0, pytest.approx(20, abs=1)]


def test_a_coroutine_that_is_cancelled_holds_up_nobody() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        meter = Meter(shares(groups=1), loop.time)
        await meter.take(A, 1)
        gone = asyncio.create_task(meter.take(C, 100))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait({gone})
        await meter.take(B, 1)
        return loop.time()

    assert virtual_time.run(main()) == pytest.approx(1.0, abs=0.01)
