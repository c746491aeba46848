"""Who may have a stream of ours: so many in total, so many of one peer, each for so long.

When all places are taken, a newcomer gets that of the stream that has been waiting for its peer longest: one that does
not send, does not read, or takes no more. Streams that are kept open and slow, however many, so keep nobody out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from swarm.errors import NetworkError
from swarm.types import PeerId


class Place:
    def __init__(self, peer: PeerId, deadline: asyncio.Timeout) -> None:
        self.peer = peer
        self.waits_since: float | None = None
        """By the loop's clock; None while it is we who have something to do."""
        self._deadline = deadline

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what only the peer can end."""
        self.waits_since = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self.waits_since = None

    def vacate(self) -> None:
        """Whoever has it gets a TimeoutError where it waits."""
        self._deadline.reschedule(asyncio.get_running_loop().time())


class Places:
    def __init__(self, total: int, per_peer: int) -> None:
        self._total, self._per_peer = total, per_peer
        self._taken: list[Place] = []

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def peers(self) -> set[PeerId]:
        """Who has one."""
        return {place.peer for place in self._taken}

    @asynccontextmanager
    async def take(self, peer: PeerId, seconds: float) -> AsyncIterator[Place]:
        """A place for at most `seconds`: then, or when another needs it, TimeoutError. Raises NetworkError if there is
        none."""
        if sum(place.peer == peer for place in self._taken) >= self._per_peer:
            raise NetworkError(f"{self._per_peer} streams already: no more for one peer")
        if len(self._taken) >= self._total:
            self._make_room()
        async with asyncio.timeout(seconds) as deadline:
            place = Place(peer, deadline)
            self._taken.append(place)
            try:
                yield place
            finally:
                if place in self._taken:
                    self._taken.remove(place)

    def _make_room(self) -> None:
        slowest = min(
            (place for place in self._taken if place.waits_since is not None),
            key=lambda place: place.waits_since or 0.0,
            default=None,
        )
        if slowest is None:
            raise NetworkError(f"all {self._total} streams are busy")
        slowest.vacate()
        self._taken.remove(slowest)
