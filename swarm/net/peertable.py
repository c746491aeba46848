"""Who is alive. A plain table, bounded; its clock (monotonic seconds) is an argument."""

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
