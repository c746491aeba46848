"""Where judged groups wait to be trained on.

Our own work is back-pressured: the producers wait when `own_capacity` groups are waiting. Peers' work is dropped,
oldest first, and from the origin that has most of them waiting, in the lineage that has: a peer can neither make us
wait nor push others out. Newcomers have a room of their own, and push out nobody else.

Freshness is enforced here, when groups are drawn, because a bounded queue does not bound staleness: a slow rollout is
overtaken while it is being sampled. Own groups age by our policy versions. A peer's version number says nothing about
ours, so foreign groups age by our versions since they arrived, and by the clock. After a crash our groups may be of
versions that are not there any more: they are as far from us as if they were behind.

A group counts from the moment when it comes in: who is to hear of it (`heard`) hears of it then and not before, so that
what a node knows and what waits in its pool always belong together.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from node.algorithms import PoolConfig
from node.experience import Experience
from node.precedents import Precedents
from node.quotas import Quotas, Standing, at_least_one, newcomers
from node.rl.share import share_of
from node.waiting import Load, Waiting
from swarm.types import PeerId, PolicyVersion, Task

#: demand(group, our present value of its task) >= 0: how much we want it. 0 is never drawn.
Demand = Callable[[Experience, float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLevel:
    """Groups waiting."""

    own: int
    foreign: int
    newcomers: int
    """Of the foreign ones: of origins that have not taught us anything yet."""
    foreign_bytes: int
    """Memory that the foreign ones take."""


class RolloutPool:
    """`counters` are incremented: stale_groups and dropped_groups."""

    def __init__(
        self,
        config: PoolConfig,
        rng: random.Random,
        counters: Counter[str],
        standing: Standing,
        precedents: Precedents,
        heard: Callable[[Experience], None],
    ) -> None:
        """`precedents` and whoever `heard` are told of all that comes in."""
        self._config = config
        self._standing = standing
        self.precedents = precedents
        self._heard = heard
        self._share = share_of(config)
        self._counters = counters
        self._rng = rng
        self._own = deque[Experience]()
        self._come = self._gone = 0  # own groups, ever
        self._changed = asyncio.Event()  # one of the two
        self._foreign = Waiting()
        self._max_bytes = int(config.foreign_mib * (1 << 20))

    @property
    def level(self) -> PoolLevel:
        new = newcomers(self._config, self._standing, self._foreign.origins)
        waiting = self._foreign.total
        return PoolLevel(
            own=min(len(self._own), self._config.own_capacity),
            foreign=waiting.groups,
            newcomers=self._foreign.load(new).groups,
            foreign_bytes=waiting.size,
        )

    @property
    def waiting(self) -> Sequence[Experience]:
        """All of them, also those that producers still wait with: own ones in their order, then each origin's."""
        return [*self._own, *self._foreign]

    def restore(self, waiting: Sequence[Experience]) -> None:
        """Puts back what was `waiting`. They were heard of then."""
        for experience in waiting:
            self.precedents.add(experience)
            if experience.own:
                self._come += 1
                self._own.append(experience)
            else:
                self._foreign.append(experience)
        self._tell()

    async def put_own(self, experience: Experience) -> None:
        """It is there at once; returns when there is room for another one."""
        self.precedents.add(experience)
        self._heard(experience)
        self._own.append(experience)
        self._come = number = self._come + 1
        self._tell()
        while number - self._gone > self._config.own_capacity:
            await self._changed.wait()

    def put_foreign(self, experience: Experience) -> None:
        """Never waits; the fullest origin loses its oldest groups when there is no room."""
        self.precedents.add(experience)
        self._heard(experience)
        while crowd := self._crowd(experience):
            self._drop_from(crowd)
        self._foreign.append(experience)

    async def draw(
        self,
        version: PolicyVersion,
        clock: Callable[[], float],
        value: Callable[[Task], float],
        demand: Demand,
        since: PolicyVersion = PolicyVersion(0),  # noqa: B008
    ) -> list[Experience]:
        """I own groups, oldest first, and up to J foreign ones (`config.share`); each group is handed out once.

        Waits for own groups only; `clock` (monotonic seconds) is read afterwards. `version` is ours; `value` is the
        tracker's, read again for foreign groups because we may have learned since they arrived. Own groups of versions
        before `since` are stale however few versions ago that is: those were given up.
        """
        while self._num_fresh(version, since) < self._config.own_groups:
            await self._changed.wait()
        own = [self._own.popleft() for _ in range(self._config.own_groups)]
        self._gone += len(own)
        self._tell()
        self._drop_stale(version, clock())
        wanted = self._wanted(value, demand)
        groups = self._share.groups(version, own, self._first(wanted, self._config.foreign_groups))
        foreign = self._first(wanted, groups)
        self._foreign.remove({experience.id for experience in foreign})
        return own + foreign

    def _num_fresh(self, version: PolicyVersion, since: PolicyVersion) -> int:
        """Own groups, the others being dropped. None is taken before there are enough: a draw that is cancelled has
        changed nothing."""
        oldest, newest = max(version - self._config.max_lag, since), version + self._config.max_lag
        fresh = deque(e for e in self._own if oldest <= e.version <= newest)
        if stale := len(self._own) - len(fresh):
            self._own = fresh
            self._gone += stale
            self._counters["stale_groups"] += stale
            self._tell()
        return len(fresh)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _wanted(self, value: Callable[[Task], float], demand: Demand) -> list[tuple[Experience, float]]:
        """All that are wanted at all, each with its task's present value. The first n are a weighted sample without
        replacement (Efraimidis and Spirakis 2006: largest u^(1/w))."""
        keyed = []
        for experience in self._foreign:
            current = value(experience.task)
            if (weight := demand(experience, current)) > 0:
                keyed.append((math.log(1.0 - self._rng.random()) / weight, current, experience))
        keyed.sort(key=lambda candidate: candidate[0], reverse=True)
        return [(experience, current) for _, current, experience in keyed]

    def _first(self, wanted: Sequence[tuple[Experience, float]], groups: int) -> list[Experience]:
        """The first `groups` of them, as far as everybody's quota goes."""
        quotas = Quotas(self._config, self._standing, groups, self._foreign.origins)
        drawn = [(e, current) for e, current in wanted if quotas.take(e.group.origin)]
        surplus = quotas.surplus(self._config.own_groups)
        kept = list[Experience]()
        for experience, current in reversed(drawn):  # the least wanted newcomers' go
            if surplus and quotas.is_newcomer(experience.group.origin):
                surplus -= 1
            else:
                kept.append(replace(experience, value=current))
        return kept[::-1]

    def _crowd(self, coming: Experience) -> Collection[PeerId]:
        """Among whom there is a group too many when `coming` comes as well; empty while there is room. In the order in
        which they came, so that what happens among equals does not depend on their ids' hashes."""
        share, waiting, origin = self._config.newcomer_share, self._foreign.total, coming.group.origin
        if self._fits(waiting, coming, share):
            return ()
        origins = self._foreign.origins
        new = newcomers(self._config, self._standing, {*origins, origin})
        of_newcomers = self._foreign.load(new)
        newcomers_here = [each for each in origins if each in new]
        if origin in new and not self._fits(of_newcomers, coming, share):
            return newcomers_here
        if self._fits(waiting, coming, 1.0):
            return ()
        # Newcomers beyond their room were none when they came in.
        room, size = at_least_one(share, self._config.foreign_capacity), share * self._max_bytes
        beyond = of_newcomers.groups > room or of_newcomers.size > size
        return newcomers_here if beyond else [each for each in origins if each not in new] or origins

    def _fits(self, waiting: Load, coming: Experience, share: float) -> bool:
        """Whether `share` of the pool has room for one more; for one group it always has."""
        groups = at_least_one(share, self._config.foreign_capacity)
        size = waiting.size + coming.size
        return not waiting.groups or (waiting.groups < groups and size <= share * self._max_bytes)

    def _drop_from(self, crowd: Collection[PeerId]) -> None:
        lineages = {origin: self._standing.lineage(origin) or origin for origin in crowd}
        fullness = {origin: self._fullness(origin) for origin in crowd}
        crowding = defaultdict[str, float](float)
        for origin, lineage in lineages.items():
            crowding[lineage] += fullness[origin]
        # of equals the one that came first
        fullest = max(lineages, key=lambda origin: (crowding[lineages[origin]], fullness[origin]))
        self._foreign.drop_oldest(fullest)
        self._counters["dropped_groups"] += 1

    def _fullness(self, origin: PeerId) -> float:
        """The share of the pool that it has, in groups or in memory, whichever is more."""
        load = self._foreign.load((origin,))
        return max(load.groups / self._config.foreign_capacity, load.size / self._max_bytes)

    def _drop_stale(self, version: PolicyVersion, now: float) -> None:
        self._counters["stale_groups"] += self._foreign.drop_while(lambda e: self._is_stale(e, version, now))

    def _is_stale(self, experience: Experience, version: PolicyVersion, now: float) -> bool:
        late = version - experience.version > self._config.foreign_max_lag
        return late or now - experience.arrived_at > self._config.foreign_max_age_s
