"""Following: a few peers' logs are pulled, and what they relay is read, at a time. Each by a task of its own, all into
one bounded queue, and no faster than we have an appetite for."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from swarm.errors import NetworkError, WireError
from swarm.limits import Limits
from swarm.membership import Membership
from swarm.net.base import Received
from swarm.net.frames import end
from swarm.net.peertable import MAX_PEERS, PeerTable
from swarm.net.rates import Meter
from swarm.net.relay_reader import RelayReader
from swarm.net.relaying import RELAY
from swarm.net.selection import Seats, Uses
from swarm.net.stack import Stack
from swarm.net.standing import Standing
from swarm.net.streams import CATCH_UP, PULL, pull
from swarm.types import CellValue, PeerId
from swarm.wire.codec import Pull

QUEUE_GROUPS = 32
"""Groups that wait for `receive`. When it is full the streams wait: a peer's own log is its buffer."""
WINDOW_S, MAX_WINDOW = 0.1, 256
"""Groups that a publisher may send before we say more: what we want in so long."""
BACKLOG_S, MIN_BACKLOG = 30.0, 1
"""When more are waiting in a log than we want of it in so long, the oldest are skipped. How many are read is a matter
of what we want, whichever they are; the newest are those that nobody has passed on yet, and that are worth most to a
learner. So a reader that is short has a backlog of one, and what it skips comes by the relay if it is outstanding
(`Shelf.made`). Half a minute lets a reader whose stream broke go on without a gap."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0
MAX_FAILURES = 6
"""In a row, about a minute: then another peer gets the place."""
FIRST_FAILURES = 2
"""The same of one that was never met: to announce identities that are nowhere is cheap."""
REST_S = 60.0
SHORT_STREAM_S = 1.0
"""A stream that ends sooner and brought nothing is a failure, or two peers could keep each other busy with nothing."""
RECONCILE_S = 1.0

logger = logging.getLogger(__name__)


class Attempts:
    """Streams of one kind with one peer, one after the other."""

    def __init__(self, rng: random.Random, *, was_there: bool = False) -> None:
        self._rng = rng
        self.failures = 0
        """In a row."""
        self.was_there = was_there
        """It said something, be it wrong."""

    @property
    def hopeless(self) -> bool:
        return self.failures >= (MAX_FAILURES if self.was_there else FIRST_FAILURES)

    def ended(self, groups: int, seconds: float, broken: bool) -> float:
        """A stream ended that lasted so long and brought so many groups. Returns the seconds until the next."""
        failed = not groups and (broken or seconds < SHORT_STREAM_S)
        self.was_there |= not failed
        self.failures = self.failures + 1 if failed else 0
        # A pause is for the peer's sake, from one attempt to the next: after a stream of minutes there need be none.
        delay = min(FIRST_RETRY_S * 2 ** min(self.failures, 10), LAST_RETRY_S) - seconds if failed else 0.0
        return max(delay, FIRST_RETRY_S / 10) * self._rng.uniform(0.5, 1.5)


def backlog(rate: float, logs: int) -> int:
    """Groups behind the head of one of `logs` logs that share `rate` groups per second."""
    return min(max(int(rate * BACKLOG_S / max(logs, 1)), MIN_BACKLOG), CATCH_UP)


class CursorStore(Protocol):
    """How far each peer's log has been read. Kept across restarts by whoever implements it (the journal)."""

    def cursor(self, peer: PeerId) -> tuple[bytes, int]:
        """Epoch of the log and cursor in it; (b"", 0) if it was never read."""
        ...

    def set_cursor(self, peer: PeerId, epoch: bytes, cursor: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pulled:
    """One group, and where in its sender's log it was found."""

    received: Received
    position: tuple[bytes, int] | None
    """Epoch and cursor; None of what was relayed."""


class Following:
    """Who is followed, and how far their logs have been pulled. Outlives stacks; `run` needs one."""

    def __init__(
        self,
        *,
        me: PeerId,
        membership: Membership,
        follow: int,
        limits: Limits,
        table: PeerTable,
        standing: Standing,
        cursors: CursorStore,
        meter: Meter,
        appetite: Callable[[], float],
        relays: RelayReader | None,
        uses: Uses,
        worth: Callable[[], Sequence[CellValue]],
        rng: random.Random,
        deflate: bool = True,
    ) -> None:
        """`meter`: what we take in; `appetite`: groups per second that we want of it. `relays` None: from logs only.
        `uses`: what peers brought so far; `worth`: our own values, for what peers might bring. `deflate`: let them
        pack what they send."""
        self._me, self._membership, self._limits = me, membership, limits
        self._table, self._standing, self._cursors, self._rng = table, standing, cursors, rng
        self._meter, self._appetite, self._relays, self._deflate = meter, appetite, relays, deflate
        self._seats = Seats(follow, table, standing, uses, worth, rng)
        self.queue: asyncio.Queue[Pulled | None] = asyncio.Queue(QUEUE_GROUPS)
        """None is nothing but a reason to look up (`wake`)."""
        # Ahead of the stored cursors by what is in the queue.
        self._positions: OrderedDict[PeerId, tuple[bytes, int]] = OrderedDict()

    def wake(self) -> None:
        """Lets whoever waits for a group go on without one."""
        if self.queue.empty():
            self.queue.put_nowait(None)

    async def run(self, stack: Stack) -> None:
        """Never returns. Keeps those under way who have a place (`swarm.net.selection`)."""
        followed: dict[PeerId, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._table.changed.clear()
                followed = {peer: task for peer, task in followed.items() if not task.done()}
                chosen = self._seats.review()
                for peer, task in followed.items():
                    if peer not in chosen:
                        task.cancel()
                for peer in chosen:
                    if peer not in followed:
                        followed[peer] = group.create_task(self._follow_peer(stack, peer))
                with suppress(TimeoutError):
                    async with asyncio.timeout(RECONCILE_S):
                        await self._table.changed.wait()

    async def _follow_peer(self, stack: Stack, peer: PeerId) -> None:
        """Its log, and what it relays, until its log has failed too often in a row."""
        beside = None
        if self._relays is not None:
            relayed = partial(self._relayed, stack, peer, self._relays)
            beside = asyncio.create_task(self._keep(peer, relayed, patient=True))
        try:
            await self._keep(peer, partial(self._pull, stack, peer), patient=False)
        finally:
            if beside is not None:
                await end(beside)
        with suppress(NetworkError):
            await stack.value(peer, False)
        self._standing.rest(peer, REST_S)

    async def _keep(self, peer: PeerId, open_stream: Callable[[], AsyncGenerator[Pulled, None]], patient: bool) -> None:
        """One stream after the other, until they have failed too often in a row; with patience, also after that: whom
        we read the log of may have been slow to start, and what only it passes on would not come for minutes."""
        loop = asyncio.get_running_loop()
        attempts = Attempts(self._rng, was_there=self._table.has_met(peer))
        while (patient or not attempts.hopeless) and not self._standing.excluded(peer):
            started, groups, reason = loop.time(), 0, ""
            try:
                async with aclosing(open_stream()) as stream:
                    async for pulled in stream:
                        await self.queue.put(pulled)
                        self._table.heard(peer)
                        groups += 1
            except WireError as error:
                reason = str(error)
                attempts.was_there = True
                self._standing.strike(peer)
            except NetworkError as error:
                reason = str(error)
            # One exchange with one peer: whatever it managed to break, it is its own stream.
            except Exception as error:
                reason = repr(error)
                logger.exception("following %s", peer)
            pause = attempts.ended(groups, loop.time() - started, broken=bool(reason))
            if attempts.failures:
                logger.debug("%s: failure %d: %s", peer, attempts.failures, reason or "it had nothing to say")
            if patient or not attempts.hopeless:
                await asyncio.sleep(pause)

    async def _pull(self, stack: Stack, peer: PeerId) -> AsyncGenerator[Pulled, None]:
        """One stream of its log. A group that the next one was asked for after has been taken. Raises NetworkError,
        WireError."""
        rate = self._appetite()
        window = min(max(int(rate * WINDOW_S), 1), MAX_WINDOW)
        await self._meter.take(peer, window)
        epoch, cursor = self._positions.get(peer) or self._cursors.cursor(peer)
        reader, writer = await self._open(stack, peer, PULL)
        try:
            request = Pull(
                swarm=self._membership.swarm,
                epoch=epoch,
                cursor=cursor,
                max_groups=window,
                membership=self._membership.proof(self._me),
                max_backlog=backlog(rate, self._seats.taken),
                deflate=self._deflate,
            )
            allowed = partial(self._meter.take, peer)
            async with aclosing(pull(reader, writer, request, self._limits, allowed)) as responses:
                async for epoch, entry in responses:
                    self._meter.charge(peer, size=len(entry.body))
                    if self._relays is not None:
                        self._relays.pulled(peer, entry.body)
                    received = Received(sender=peer, body=entry.body, signature=entry.signature)
                    yield Pulled(received=received, position=(epoch, entry.cursor))
                    self._advance(peer, epoch, entry.cursor)
        finally:
            writer.close()

    async def _relayed(self, stack: Stack, peer: PeerId, relays: RelayReader) -> AsyncGenerator[Pulled, None]:
        """One stream of what it relays. Raises as `_pull`."""
        reader, writer = await self._open(stack, peer, RELAY)
        try:
            async with aclosing(relays.read(peer, reader, writer)) as groups:
                async for received in groups:
                    yield Pulled(received=received, position=None)
        finally:
            writer.close()

    async def _open(
        self, stack: Stack, peer: PeerId, protocol: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        announcement = self._table.get(peer)
        await stack.connect(peer, announcement.addresses if announcement is not None else ())
        await stack.value(peer, True)
        return await stack.open_stream(peer, protocol)

    def _advance(self, peer: PeerId, epoch: bytes, cursor: int) -> None:
        self._positions[peer] = (epoch, cursor)
        self._positions.move_to_end(peer)
        if len(self._positions) > MAX_PEERS:
            self._positions.popitem(last=False)
