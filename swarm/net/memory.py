"""An exchange without a network: every member of a hub pulls from every other's log, in one process and one event loop.

It keeps the promises of `swarm.net.base` and needs no clock to do so: nothing here polls or sleeps.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice

from swarm.limits import Limits
from swarm.net.base import GroupLog, LogEntry, PeerInfo, Received
from swarm.types import Announcement, PeerId, Reason, SignedGroup, Verdict

#: Groups that are read from a log at a time.
PAGE = 8

logger = logging.getLogger(__name__)


class MemoryLog:
    """A `GroupLog` that keeps its newest `capacity` groups and ends with the process."""

    def __init__(self, capacity: int = 1024, epoch: bytes | None = None) -> None:
        self.epoch = secrets.token_bytes(16) if epoch is None else epoch
        self.head = 0
        self._entries: deque[LogEntry] = deque(maxlen=capacity)
        self._grown = asyncio.Event()

    def append(self, signed: SignedGroup) -> int:
        """Publishes a group; returns its cursor. The oldest goes when the log is full."""
        self.head += 1
        self._entries.append(LogEntry(cursor=self.head, body=signed.body, signature=signed.signature))
        self._grown.set()
        self._grown = asyncio.Event()
        return self.head

    async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
        oldest = self.head - len(self._entries) + 1
        start = max(cursor + 1 - oldest, 0)
        return list(islice(self._entries, start, start + limit))

    async def wait(self, cursor: int) -> int:
        while self.head <= cursor:
            await self._grown.wait()
        return self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class _Position:
    epoch: bytes
    cursor: int


class Hub:
    """One swarm in one process. Remembers how far each reader got, so that one who comes back goes on from there."""

    def __init__(
        self,
        max_group_bytes: int = Limits().max_group_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_group_bytes = max_group_bytes
        self.clock = clock
        self._members: dict[PeerId, MemoryExchange] = {}
        self._positions: dict[tuple[PeerId, PeerId], _Position] = {}

    @asynccontextmanager
    async def join(self, peer_id: PeerId, log: GroupLog) -> AsyncIterator[MemoryExchange]:
        """A member as long as the context is open. Raises ValueError if there is one of that id already."""
        if peer_id in self._members:
            raise ValueError(f"{peer_id} is in this hub already")
        joined = MemoryExchange(self, peer_id, log)
        others = list(self._members.values())
        self._members[peer_id] = joined
        try:
            for other in others:
                joined._follow(other)
                other._follow(joined)
            yield joined
        finally:
            del self._members[peer_id]
            stopped = joined._stop() + [other._forget(peer_id) for other in self._members.values()]
            if stopped:
                await asyncio.wait(stopped)

    def others(self, peer_id: PeerId) -> list[MemoryExchange]:
        """Every member but this one."""
        return [member for member in self._members.values() if member.peer_id != peer_id]

    def cursor(self, reader: PeerId, publisher: MemoryExchange) -> int:
        """How far `reader` got in the publisher's log; 0 in a log of another epoch."""
        position = self._positions.get((reader, publisher.peer_id))
        return position.cursor if position and position.epoch == publisher.log.epoch else 0

    def move_cursor(self, reader: PeerId, publisher: MemoryExchange, cursor: int) -> None:
        self._positions[reader, publisher.peer_id] = _Position(epoch=publisher.log.epoch, cursor=cursor)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Offer:
    """One publisher's next group, on its way to the reader."""

    publisher: MemoryExchange
    entry: LogEntry
    taken: asyncio.Event


class MemoryExchange:
    """A hub's member; made by `Hub.join`.

    Each followed log has a task of its own that offers one group and reads on when it was taken. So there is at most
    one offer per publisher, and taking them in the order in which they came is a round robin: nobody who is slow,
    stopped or talkative costs the others anything.
    """

    def __init__(self, hub: Hub, peer_id: PeerId, log: GroupLog) -> None:
        self.peer_id = peer_id
        self.log = log
        self.verdicts: Counter[tuple[PeerId, Reason]] = Counter()
        """What `blame` was told: who handed it over, and what came of it."""
        self._hub = hub
        self._announcement: Announcement | None = None
        self._announced_at = 0.0
        self._followed: dict[PeerId, asyncio.Task[None]] = {}
        self._offers: deque[_Offer] = deque()
        self._offered = asyncio.Event()

    @property
    def state(self) -> str:
        return "up" if self._hub.others(self.peer_id) else "off"

    @property
    def addresses(self) -> tuple[str, ...]:
        return ()

    def refresh(self) -> None:
        """Nothing gets old here."""

    def peers(self) -> Sequence[PeerInfo]:
        return [
            PeerInfo(
                peer=other.peer_id,
                name=other._announcement.name,
                addresses=other._announcement.addresses,
                last_seen=other._announced_at,
                head=other._announcement.head,
                cursor=self._hub.cursor(self.peer_id, other),
                values=other._announcement.values,
            )
            for other in self._hub.others(self.peer_id)
            if other._announcement is not None
        ]

    async def announce(self, announcement: Announcement) -> None:
        self._announcement = announcement
        self._announced_at = self._hub.clock()

    def blame(self, peer: PeerId, verdict: Verdict) -> None:
        self.verdicts[peer, verdict.reason] += 1

    def made(self, signed: SignedGroup, use: float) -> None:
        """Everybody reads every log from one end to the other: there is nothing to do."""

    def thank(self, received: Received, signed: SignedGroup, use: float) -> None:
        self.verdicts[signed.group.origin, Reason.ADMITTED] += 1

    async def receive(self) -> AsyncGenerator[Received, None]:
        while True:
            while not self._offers:
                self._offered.clear()
                await self._offered.wait()
            offer = self._offers.popleft()
            publisher, entry = offer.publisher, offer.entry
            taken = False
            try:
                yield Received(sender=publisher.peer_id, body=entry.body, signature=entry.signature)
                taken = True
            finally:
                if not taken and self._is_followed(publisher):
                    # The reader went away with it: it is the next reader's first.
                    self._offers.appendleft(offer)
                    self._offered.set()
            self._hub.move_cursor(self.peer_id, publisher, entry.cursor)
            offer.taken.set()

    def _is_followed(self, publisher: MemoryExchange) -> bool:
        return publisher in self._hub.others(self.peer_id)

    def _follow(self, publisher: MemoryExchange) -> None:
        name = f"{self.peer_id} follows {publisher.peer_id}"
        self._followed[publisher.peer_id] = asyncio.create_task(self._pull(publisher), name=name)

    async def _pull(self, publisher: MemoryExchange) -> None:
        try:
            while True:
                cursor = self._hub.cursor(self.peer_id, publisher)
                head = await publisher.log.wait(cursor)
                entries = await publisher.log.read(cursor, PAGE)
                for entry in entries:
                    await self._offer(publisher, entry)
                if not entries:  # all up to the head has gone already
                    self._hub.move_cursor(self.peer_id, publisher, head)
        except Exception:  # the boundary to one peer: its log's failure is not ours
            logger.warning("%s: the log of %s failed", self.peer_id, publisher.peer_id, exc_info=True)

    async def _offer(self, publisher: MemoryExchange, entry: LogEntry) -> None:
        """Returns when the group was taken."""
        if len(entry.body) > self._hub.max_group_bytes:
            self.blame(publisher.peer_id, Verdict(reason=Reason.TOO_LARGE, detail=f"{len(entry.body)} bytes"))
            self._hub.move_cursor(self.peer_id, publisher, entry.cursor)
            return
        offer = _Offer(publisher=publisher, entry=entry, taken=asyncio.Event())
        self._offers.append(offer)
        self._offered.set()
        await offer.taken.wait()

    def _forget(self, peer: PeerId) -> asyncio.Task[None]:
        """The peer left: what it had offered is offered again when it comes back. Returns the task that is ending."""
        self._offers = deque(offer for offer in self._offers if offer.publisher.peer_id != peer)
        task = self._followed.pop(peer)
        task.cancel()
        return task

    def _stop(self) -> list[asyncio.Task[None]]:
        return [self._forget(peer) for peer in list(self._followed)]
