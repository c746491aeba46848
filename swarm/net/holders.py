"""Who keeps our records: found by a lookup, and asked again without one. Pure.

A record is renewed with every heartbeat, and the peers nearest to its key are the same for many of them. To look them
up each time is most of what a node says in the DHT, and what grows with the swarm. So a lookup is good for HOLDERS_S,
in which newcomers nearer to the key hold nothing yet: readers ask more peers than there are replicas, and find the
others. It is good for nothing more when MAX_MISSED of the holders do not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from swarm.types import PeerId

HOLDERS_S = 120.0
MAX_MISSED = 2
"""Of a heartbeat's stores, that are in vain: with one less a record is as safe as before."""


class Holders:
    """The clock is in monotonic seconds. Keys are our own, a few; those that we no longer store are forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._found: dict[Hashable, tuple[float, tuple[PeerId, ...]]] = {}

    def of(self, key: Hashable) -> tuple[PeerId, ...] | None:
        """None if they have to be looked up."""
        found = self._found.get(key)
        return found[1] if found is not None and self._clock() < found[0] else None

    def found(self, key: Hashable, holders: Sequence[PeerId]) -> None:
        now = self._clock()
        self._found = {key: found for key, found in self._found.items() if now < found[0]}
        self._found[key] = now + HOLDERS_S, tuple(holders)

    def missed(self, key: Hashable, count: int) -> None:
        """So many of them could not be stored with."""
        if count >= MAX_MISSED:
            self._found.pop(key, None)
