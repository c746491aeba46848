"""Who is alive, and who is worth a stream. Plain tables, bounded; their clock (monotonic seconds) is an argument."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from swarm.types import Announcement, PeerId

MAX_PEERS = 4096
HEARTBEATS = 3
"""A peer that was not heard of for so many heartbeats is gone."""


@dataclass(slots=True)
class _Known:
    announcement: Announcement
    last_seen: float


class PeerTable:
    """The newest announcement of every peer that was heard of lately, ourselves excluded."""

    def __init__(self, own: PeerId, heartbeat_s: float, clock: Callable[[], float]) -> None:
        self._own = own
        self._lifetime_s = HEARTBEATS * heartbeat_s
        self._clock = clock
        self._known: OrderedDict[PeerId, _Known] = OrderedDict()
        self.changed = asyncio.Event()
        """Set when a peer is new; whoever waits for it clears it."""

    def announced(self, announcement: Announcement) -> None:
        """A checked announcement. One that is not newer than what we have is no sign of life: anybody can repeat it."""
        if announcement.peer == self._own:
            return
        known = self._known.pop(announcement.peer, None)
        if known is not None and known.announcement.issued_at >= announcement.issued_at:
            self._known[announcement.peer] = known
            return
        self._known[announcement.peer] = _Known(announcement, self._clock())
        if known is None:
            self.changed.set()
        if len(self._known) > MAX_PEERS:
            self._known.popitem(last=False)

    def heard(self, peer: PeerId) -> None:
        """It sent us something over a connection of its own."""
        if (known := self._known.get(peer)) is not None:
            known.last_seen = self._clock()

    def get(self, peer: PeerId) -> Announcement | None:
        known = self._known.get(peer)
        return None if known is None else known.announcement

    def alive(self) -> list[tuple[Announcement, float]]:
        """Announcement and when it was last heard of, of everybody who still is."""
        oldest = self._clock() - self._lifetime_s
        for peer in [peer for peer, known in self._known.items() if known.last_seen < oldest]:
            del self._known[peer]
        return [(known.announcement, known.last_seen) for known in self._known.values()]


@dataclass(slots=True)
class _Record:
    strikes: float
    at: float
    excluded_until: float = 0.0


class Strikes:
    """How often a peer did what no honest one does. Enough of it excludes the peer: for a minute, then longer each
    time, up to an hour. Strikes fade with a half-life of ten minutes; the oldest offenders are forgotten first."""

    LIMIT = 4.5
    """The fifth in a minute and a half is one too many."""
    HALF_LIFE_S = 600.0
    SHORTEST_S = 60.0
    LONGEST_S = 3600.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: OrderedDict[PeerId, _Record] = OrderedDict()

    def add(self, peer: PeerId) -> None:
        now = self._clock()
        record = self._records.pop(peer, None) or _Record(0.0, now)
        record.strikes = self._faded(record, now) + 1
        record.at = now
        if record.strikes >= self.LIMIT:
            exclusion = self.SHORTEST_S * 2.0 ** min(record.strikes - self.LIMIT, 10)
            record.excluded_until = now + min(exclusion, self.LONGEST_S)
        self._records[peer] = record
        if len(self._records) > MAX_PEERS:
            self._records.popitem(last=False)

    def rest(self, peer: PeerId, seconds: float) -> None:
        """Excludes a peer that is no offender, only useless at the moment."""
        now = self._clock()
        record = self._records.setdefault(peer, _Record(0.0, now))
        record.excluded_until = max(record.excluded_until, now + seconds)
        if len(self._records) > MAX_PEERS:
            self._records.popitem(last=False)

    def excluded(self, peer: PeerId) -> bool:
        record = self._records.get(peer)
        return record is not None and self._clock() < record.excluded_until

    def _faded(self, record: _Record, now: float) -> float:
        return record.strikes * 0.5 ** ((now - record.at) / self.HALF_LIFE_S)
