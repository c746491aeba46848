"""Where judged groups wait to be trained on.

Our own work is back-pressured: the producers wait when `own_capacity` groups are waiting. Peers' work is dropped,
oldest first, and from the origin that has most of them waiting: a peer can neither make us wait nor push others out.

Freshness is enforced here, when groups are drawn, because a bounded queue does not bound staleness: a slow rollout is
overtaken while it is being sampled. Own groups age by our policy versions. A peer's version number says nothing about
ours, so foreign groups age by our versions since they arrived, and by the clock.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from node.algorithms import PoolConfig
from node.experience import Experience
from node.rl.share import share_of
from swarm.types import PeerId, PolicyVersion, Task

#: demand(group, our present value of its task) >= 0: how much we want it. 0 is never drawn.
Demand = Callable[[Experience, float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLevel:
    """Groups waiting."""

    own: int
    foreign: int


class RolloutPool:
    """`counters` are incremented: stale_groups and dropped_groups."""

    def __init__(self, config: PoolConfig, rng: random.Random, counters: Counter[str]) -> None:
        self._config = config
        self._share = share_of(config)
        self._counters = counters
        self._rng = rng
        self._own: asyncio.Queue[Experience] = asyncio.Queue(config.own_capacity)
        self._foreign: dict[PeerId, deque[Experience]] = {}
        self._waiting = 0  # foreign groups over all origins

    @property
    def level(self) -> PoolLevel:
        return PoolLevel(own=self._own.qsize(), foreign=self._waiting)

    async def put_own(self, experience: Experience) -> None:
        """Waits while the pool is full."""
        await self._own.put(experience)

    def put_foreign(self, experience: Experience) -> None:
        """Never waits; the fullest origin loses its oldest group when there is no room."""
        if self._waiting >= self._config.foreign_capacity:
            fullest = max(self._foreign, key=lambda origin: len(self._foreign[origin]))
            self._foreign[fullest].popleft()
            self._waiting -= 1
            self._counters["dropped_groups"] += 1
        self._foreign.setdefault(experience.group.origin, deque()).append(experience)
        self._waiting += 1

    async def draw(
        self, version: PolicyVersion, clock: Callable[[], float], value: Callable[[Task], float], demand: Demand
    ) -> list[Experience]:
        """I own groups, oldest first, and up to J foreign ones (`config.share`); each group is handed out once.

        Waits for own groups only; `clock` (monotonic seconds) is read afterwards. `version` is ours; `value` is the
        tracker's, read again for foreign groups because we may have learned since they arrived.
        """
        own = [await self._next_fresh(version) for _ in range(self._config.own_groups)]
        self._drop_stale(version, clock())
        wanted = self._wanted(value, demand)
        groups = self._share.groups(version, own, self._first(wanted, self._config.foreign_groups))
        foreign = self._first(wanted, groups)
        self._remove({experience.id for experience in foreign})
        return own + foreign

    async def _next_fresh(self, version: PolicyVersion) -> Experience:
        while version - (experience := await self._own.get()).version > self._config.max_lag:
            self._counters["stale_groups"] += 1
        return experience

    def _wanted(self, value: Callable[[Task], float], demand: Demand) -> list[tuple[Experience, float]]:
        """All that are wanted at all, each with its task's present value. The first n are a weighted sample without
        replacement (Efraimidis and Spirakis 2006: largest u^(1/w))."""
        keyed = []
        for experience in (e for waiting in self._foreign.values() for e in waiting):
            current = value(experience.task)
            if (weight := demand(experience, current)) > 0:
                keyed.append((math.log(1.0 - self._rng.random()) / weight, current, experience))
        keyed.sort(key=lambda candidate: candidate[0], reverse=True)
        return [(experience, current) for _, current, experience in keyed]

    def _first(self, wanted: Sequence[tuple[Experience, float]], groups: int) -> list[Experience]:
        """The first `groups` of them, capped per origin."""
        share, taken, drawn = self._origin_share(groups), dict[PeerId, int](), list[Experience]()
        for experience, current in wanted:
            origin = experience.group.origin
            if len(drawn) == groups:
                break
            if taken.get(origin, 0) < share:
                taken[origin] = taken.get(origin, 0) + 1
                drawn.append(replace(experience, value=current))
        return drawn

    def _origin_share(self, groups: int) -> int:
        """Of so many groups, per origin: `peer_share`, or a fair part where there are fewer origins than that needs."""
        origins = max(1, len(self._foreign))
        return max(1, math.ceil(groups * max(self._config.peer_share, 1 / origins)))

    def _drop_stale(self, version: PolicyVersion, now: float) -> None:
        for waiting in self._foreign.values():
            while waiting and self._is_stale(waiting[0], version, now):
                waiting.popleft()
                self._waiting -= 1
                self._counters["stale_groups"] += 1
        self._foreign = {origin: waiting for origin, waiting in self._foreign.items() if waiting}

    def _is_stale(self, experience: Experience, version: PolicyVersion, now: float) -> bool:
        late = version - experience.version > self._config.foreign_max_lag
        return late or now - experience.arrived_at > self._config.foreign_max_age_s

    def _remove(self, ids: set[str]) -> None:
        for origin, waiting in self._foreign.items():
            self._foreign[origin] = deque(e for e in waiting if e.id not in ids)
        self._waiting = sum(map(len, self._foreign.values()))
