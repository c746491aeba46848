import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from swarm.net.base import Exchange, GroupLog, LogEntry, Received
from swarm.net.memory import PAGE, Hub, MemoryExchange, MemoryLog
from swarm.types import PeerId, Reason, SignedGroup, Verdict
from tests.builders import announcement, cell_value, identity, signed

A, B, C = (PeerId(name) for name in "ABC")


def filled(count: int, author: int = 1) -> tuple[MemoryLog, list[SignedGroup]]:
    log = MemoryLog()
    groups = [signed(index, identity(author)) for index in range(count)]
    for each in groups:
        log.append(each)
    return log, groups


async def take(exchange: MemoryExchange, count: int) -> list[Received]:
    """The next groups, all of them taken: the iterator is asked for one more that does not come."""
    stream = exchange.receive()
    received = [await anext(stream) for _ in range(count)]
    more = asyncio.ensure_future(anext(stream))
    await settle()
    assert not more.done(), "there was more"
    more.cancel()
    await asyncio.wait([more])
    return received


async def settle() -> None:
    """Until nothing in this loop can go on by itself. Everything here is in memory: a few turns of the loop do."""
    for _ in range(50):
        await asyncio.sleep(0)


class StoppedLog(MemoryLog):
    """Has something, and never gives it."""

    async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
        await asyncio.Event().wait()
        raise AssertionError


class BrokenLog(MemoryLog):
    async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
        raise OSError("disk on fire")


class ForgottenLog(MemoryLog):
    """Its head is ahead of what it still has."""

    async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
        return []


# The log --------------------------------------------------------------------------------------------------------------


async def test_a_log_is_read_from_a_cursor() -> None:
    log, groups = filled(5)
    entries = await log.read(1, 3)
    assert [entry.cursor for entry in entries] == [2, 3, 4]
    assert [entry.body for entry in entries] == [group.body for group in groups[1:4]]
    assert list(await log.read(5, 3)) == []
    assert log.head == 5


async def test_a_full_log_forgets_the_oldest() -> None:
    log = MemoryLog(capacity=2)
    for index in range(5):
        log.append(signed(index))
    assert [entry.cursor for entry in await log.read(0, 10)] == [4, 5]
    assert [entry.cursor for entry in await log.read(4, 10)] == [5]


async def test_waiting_for_a_log_to_grow() -> None:
    log, _ = filled(1)
    assert await log.wait(0) == 1
    waiting = [asyncio.ensure_future(log.wait(cursor)) for cursor in (1, 2)]
    await settle()
    assert not any(task.done() for task in waiting)
    log.append(signed(1))
    assert await waiting[0] == 2
    assert not waiting[1].done()
    log.append(signed(2))
    assert await waiting[1] == 3


def test_epochs_differ() -> None:
    assert len(MemoryLog().epoch) == 16
    assert MemoryLog().epoch != MemoryLog().epoch


# The exchange ---------------------------------------------------------------------------------------------------------


async def test_everybody_gets_everything_of_the_others_and_nothing_of_their_own() -> None:
    hub = Hub()
    logs = {peer: filled(3, author) for author, peer in enumerate((A, B, C), start=1)}
    async with hub.join(A, logs[A][0]) as a, hub.join(B, logs[B][0]) as b, hub.join(C, logs[C][0]) as c:
        for exchange in (a, b, c):
            received = await take(exchange, 6)
            for other in {A, B, C} - {exchange.peer_id}:
                bodies = [r.body for r in received if r.sender == other]
                assert bodies == [group.body for group in logs[other][1]]


async def test_it_is_an_exchange_and_its_log_a_log() -> None:
    async with Hub().join(A, MemoryLog()) as a:
        exchange: Exchange = a
        log: GroupLog = a.log
        assert (exchange.peer_id, log.head) == (A, 0)
        assert (exchange.state, exchange.addresses, list(exchange.peers())) == ("off", (), [])


async def test_one_who_has_much_does_not_crowd_out_one_who_has_little() -> None:
    hub = Hub()
    much, _ = filled(100, 2)
    little, _ = filled(2, 3)
    async with hub.join(A, MemoryLog()) as a, hub.join(B, much), hub.join(C, little), aclosing(a.receive()) as stream:
        await settle()
        senders = [(await anext(stream)).sender for _ in range(5)]
    assert senders.count(C) == 2


@pytest.mark.parametrize("kind", [StoppedLog, ForgottenLog])
async def test_a_stopped_member_stalls_nobody(kind: type[MemoryLog]) -> None:
    hub, stopped, (log, _) = Hub(), kind(), filled(20)
    stopped.append(signed())
    async with hub.join(B, stopped), hub.join(A, MemoryLog()) as a, hub.join(C, log):
        assert len(await take(a, 20)) == 20


async def test_a_broken_log_is_its_owners_affair(caplog: pytest.LogCaptureFixture) -> None:
    hub, broken, (log, _) = Hub(), BrokenLog(), filled(2)
    broken.append(signed())
    async with hub.join(A, MemoryLog()) as a, hub.join(B, broken), hub.join(C, log):
        assert len(await take(a, 2)) == 2
    assert "the log of B failed" in caplog.text


async def test_the_cursor_moves_when_the_reader_asks_for_the_next() -> None:
    hub, (log, groups) = Hub(), filled(3)
    async with hub.join(A, MemoryLog()) as a, hub.join(B, log) as b:
        async with aclosing(a.receive()) as stream:
            await anext(stream)
            assert hub.cursor(A, b) == 0
            await anext(stream)
            assert hub.cursor(A, b) == 1
        # The reader left with the second in its hands: it was not taken, and comes first.
        received = await take(a, 2)
        assert [r.body for r in received] == [group.body for group in groups[1:]]


async def test_a_reader_that_does_not_read_costs_one_page_and_one_group() -> None:
    class Counted(MemoryLog):
        given = 0

        async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
            entries = await super().read(cursor, limit)
            self.given += len(entries)
            return entries

    hub, log = Hub(), Counted()
    for index in range(100):
        log.append(signed(index))
    async with hub.join(A, MemoryLog()), hub.join(B, log):
        await settle()
        assert log.given == PAGE


async def test_groups_come_while_one_waits() -> None:
    hub, log = Hub(), MemoryLog()
    async with hub.join(A, MemoryLog()) as a, hub.join(B, log), aclosing(a.receive()) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await settle()
        assert not waiting.done()
        log.append(signed())
        assert (await waiting).body == signed().body


async def test_leaving_and_coming_back() -> None:
    hub, (log, groups) = Hub(), filled(3)
    async with hub.join(A, MemoryLog()) as a:
        async with hub.join(B, log):
            assert a.state == "up"
            assert len(await take(a, 3)) == 3
        assert a.state == "off"
        log.append(signed(3))
        assert await take(a, 0) == []
        async with hub.join(B, log):
            assert [r.body for r in await take(a, 1)] == [signed(3).body]
        async with hub.join(B, filled(2)[0]):  # another epoch: from its beginning
            assert [r.body for r in await take(a, 2)] == [group.body for group in groups[:2]]


async def test_a_reader_that_comes_back_goes_on_where_it_was() -> None:
    hub, (log, groups) = Hub(), filled(3)
    async with hub.join(B, log):
        async with hub.join(A, MemoryLog()) as a, aclosing(a.receive()) as stream:
            await anext(stream)
            await anext(stream)
        async with hub.join(A, MemoryLog()) as a:
            assert [r.body for r in await take(a, 2)] == [group.body for group in groups[1:]]


async def test_what_a_member_had_offered_goes_with_it() -> None:
    hub = Hub()
    async with hub.join(A, MemoryLog()) as a:
        async with hub.join(B, filled(3)[0]):
            await settle()
        assert await take(a, 0) == []


async def test_nobody_is_in_a_hub_twice() -> None:
    hub = Hub()
    async with hub.join(A, MemoryLog()):
        with pytest.raises(ValueError, match="A is in this hub already"):
            async with hub.join(A, MemoryLog()):
                pass


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    hub = Hub()
    async with hub.join(A, filled(3)[0]), hub.join(B, StoppedLog()), hub.join(C, filled(3)[0]) as c:
        await take(c, 3)
    assert asyncio.all_tasks() == before


async def test_what_is_too_large_is_passed_over() -> None:
    small, large = signed(1), signed(10**6)
    assert len(large.body) > len(small.body)
    hub, log = Hub(max_group_bytes=len(small.body)), MemoryLog()
    for each in (large, small):
        log.append(each)
    async with hub.join(A, MemoryLog()) as a, hub.join(B, log) as b:
        assert [r.body for r in await take(a, 1)] == [small.body]
        assert a.verdicts == {(B, Reason.TOO_LARGE): 1}
        assert hub.cursor(A, b) == 2


async def test_peers_are_those_who_announced_themselves_and_are_there() -> None:
    hub = Hub(clock=lambda: 42.0)
    async with hub.join(A, MemoryLog()) as a:
        async with hub.join(B, filled(3)[0]) as b:
            assert list(a.peers()) == []
            await b.announce(announcement(head=3, name="bee", values=(cell_value("rg/spell", 0.5),)))
            await take(a, 3)
            (info,) = a.peers()
            assert (info.peer, info.name, info.last_seen, info.head, info.cursor) == (B, "bee", 42.0, 3, 3)
            assert info.addresses == announcement().addresses
            assert info.values == (cell_value("rg/spell", 0.5),)
        assert list(a.peers()) == []


async def test_blame_is_counted() -> None:
    async with Hub().join(A, MemoryLog()) as a:
        for _ in range(2):
            a.blame(B, Verdict(reason=Reason.BAD_SIGNATURE))
        assert a.verdicts == {(B, Reason.BAD_SIGNATURE): 2}
