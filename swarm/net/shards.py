"""Under which keys peers announce themselves, and how large the swarm is. Pure: sizes and densities, no network.

The directory's keys come in levels: level l has S(l) = 8 * 4^l shards, and a peer's shard at a level follows from its
id. Whoever reads a random shard of a level sees a random sample of those who announce there. A swarm of N has a *top*
level, the first with N <= FULL * S, where everybody announces; on the levels below it each peer announces with
probability SPARSE * S(l) / N, above it nobody does. So with FULL = 16 and SPARSE = 8

* a shard of the top level holds N / S records: at most 16, and above level 0 more than 4 (the level below was full);
* a shard of a lower level holds 8 on average, in a swarm of any size: a newcomer that knows nothing reads level 0;
* a peer announces on 1 + sum over l < top of 8 * S(l) / N levels, which is less than 1 + (1/2 + 1/8 + ...) = 1.67;
* there are as many keys as peers, up to a factor: what a node stores and is asked for does not grow with N.

N itself is S(l) times the records in a shard of level l, where everybody announces there, and less on other levels:

    N = max over l of S(l) * median of the records that the last readings of level l found

The median, because a shard can be stuffed and a replica can lie: that moves nothing before half of the readings, which
were of random shards, lie alike. What it says of a level takes as many identities as the level has shards, times the
records that are to be seen: to make N look twice as large takes N identities. To look beyond the top level, which a
swarm that grew or a newcomer must, is worth a reading only while the level below it is not nearly empty (CLIMB).
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from swarm.types import PeerId

LEVELS = 7
"""Enough for 16 * 8 * 4^6 = 524,288 peers; beyond that shards overflow, and the directory is a sample of the swarm."""
FIRST_SHARDS, GROWTH = 8, 4
FULL = 16
"""Records in a shard of the top level, at most, before the next level opens."""
SPARSE = 8
"""Records in a shard of every level below."""
CLIMB = SPARSE / 2
"""With fewer in a shard, there is nothing to be found a level higher."""
SMALL_SWARM = 64
"""Up to so many, every shard is read and everybody is found at once."""
MAX_READINGS = 15
"""Of a level, that are remembered."""


def shards_at(level: int) -> int:
    return FIRST_SHARDS * GROWTH**level


def shard_of(peer: PeerId, level: int = 0) -> int:
    """In [0, shards_at(level)). Peers of one shard are of one shard on every level below too."""
    return int.from_bytes(hashlib.sha256(peer.encode()).digest()[:8], "little") % shards_at(level)


def shard_key(swarm: str, level: int, shard: int) -> str:
    return f"{swarm}:announce:{level}:{shard}"


def top_level(size: float) -> int:
    """Of a swarm of that size: the first level with at most FULL records in a shard."""
    return next((level for level in range(LEVELS) if size <= FULL * shards_at(level)), LEVELS - 1)


def presence(size: float, level: int) -> float:
    """The probability with which a peer announces itself on a level."""
    top = top_level(size)
    if level >= top:
        return float(level == top)
    return min(1.0, SPARSE * shards_at(level) / size)


def levels_of(size: float, draws: Sequence[float]) -> list[int]:
    """Where to announce, lowest first. `draws`: a number in [0, 1) for each level. They are kept for a while: a record
    outlives the heartbeat it came with, and with new draws for each, more of them would lie about than are meant to."""
    return [level for level, draw in zip(range(LEVELS), draws, strict=True) if draw < presence(size, level)]


class SwarmSize:
    """How many announce themselves, from the shards that were read lately. The clock is in monotonic seconds."""

    def __init__(self, memory_s: float, clock: Callable[[], float]) -> None:
        """Readings count for `memory_s` seconds."""
        self._memory_s, self._clock = memory_s, clock
        self._readings = [deque[tuple[float, int]](maxlen=MAX_READINGS) for _ in range(LEVELS)]

    def saw(self, level: int, records: int) -> None:
        """A random shard of the level held so many records."""
        self._readings[level].append((self._clock(), records))

    def density(self, level: int) -> float | None:
        """Records in a shard of the level: the median of what was read; None if nothing was."""
        oldest = self._clock() - self._memory_s
        fresh = [records for at, records in self._readings[level] if at >= oldest]
        return median(fresh) if fresh else None

    @property
    def estimate(self) -> float:
        """In peers; 0 if nothing is known."""
        return max(shards_at(level) * (self.density(level) or 0.0) for level in range(LEVELS))

    @property
    def unseen(self) -> int | None:
        """A level above the top one that may hold something and that nobody has looked at lately."""
        level = top_level(self.estimate)
        dense = (self.density(level) or 0.0) >= CLIMB
        return level + 1 if dense and level + 1 < LEVELS and self.density(level + 1) is None else None

    def to_read(self, rng: random.Random) -> list[tuple[int, int]]:
        """(level, shard) of the next reading: a random shard of the unseen level, if there is one, or of the top level;
        all of level 0 in a small swarm."""
        level = self.unseen
        if level is None:
            level = top_level(self.estimate)
            if level == 0 and self.estimate <= SMALL_SWARM:
                return [(0, shard) for shard in range(FIRST_SHARDS)]
        return [(level, rng.randrange(shards_at(level)))]
