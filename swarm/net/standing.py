"""Who has earned what: strikes for what no honest peer does. Bounded; the clock (monotonic seconds) is an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from swarm.net.peertable import MAX_PEERS
from swarm.types import PeerId


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
