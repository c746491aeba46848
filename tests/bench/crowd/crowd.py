"""The population: who comes and goes, what is counted, and how a useful group spreads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from swarm.net.lookup import REPLICAS
from swarm.types import PeerId, Reason
from tests.bench.crowd.groups import Made, Sizes, Verdicts, make
from tests.bench.crowd.hostile import KINDS, Hostile
from tests.bench.crowd.keys import Believed, Places
from tests.bench.crowd.node import Node
from tests.bench.crowd.presence import Presence
from tests.bench.crowd.world import Counts, Plan, World

RECENT = 200
TELL_S = 15.0
PROBE_LASTS_S = 40.0
"""The last useful group has so long to spread."""
TICK_S = 5.0


@dataclass(slots=True)
class Probe:
    """One useful group: who was to get it, and when who got it."""

    at: float
    wanted: set[PeerId]
    came: dict[PeerId, float] = field(default_factory=dict)
    hops: dict[PeerId, int] = field(default_factory=dict)


class Crowd:
    def __init__(self, plan: Plan) -> None:
        self.world = World(plan)
        self.plan, self.body = plan, bytes(plan.body_bytes)
        self.members: dict[PeerId, Presence] = {}
        self.places, self.believed, self.verdicts = Places(), Believed(self.world.clock), Verdicts()
        self.recent: deque[Made] = deque(maxlen=RECENT)
        self.probes: dict[str, Probe] = {}
        self._number = 0
        self.alive: list[Presence] = []
        self._costs: list[int] = []
        self._kinds = 0

    # Who is there -----------------------------------------------------------------------------------------------------

    @property
    def honest(self) -> list[Node]:
        return [it for it in self.alive if isinstance(it, Node)]

    def live(self, tell: Callable[[Crowd], None] | None = None) -> None:
        """From the first node's start to the end of the plan. `tell` is called every TELL_S of what is measured."""
        plan, world = self.plan, self.world
        hostile = round(plan.nodes * plan.hostile)
        joining = [*[True] * hostile, *[False] * (plan.nodes - hostile)]
        world.rng.shuffle(joining)
        for number, is_hostile in enumerate(joining):
            world.at(number / plan.nodes * plan.warm_s / 3, self._join, is_hostile)
        world.run(plan.warm_s / 3)
        self._costs = self.places.lookup_costs(plan.lost, world.rng)
        self._replace_later()
        world.run(plan.warm_s)
        self._measure()
        probes = int((plan.seconds - plan.warm_s - PROBE_LASTS_S) / plan.probe_s) + 1
        for number in range(max(probes, 1)):
            world.at(number * plan.probe_s, self._probe)
        while world.now < plan.seconds:
            world.run(min(world.now + TELL_S, plan.seconds))
            if tell is not None:
                tell(self)

    def _join(self, hostile: bool) -> None:
        kind = KINDS[self._kinds % len(KINDS)] if hostile else Node
        self._kinds += hostile
        self._add(kind(self, self.next_number()))

    def _add(self, it: Presence) -> None:
        assert isinstance(it, Node | Hostile)
        self.members[it.peer] = it
        self.places.add(it.peer)
        self.alive.append(it)
        it.begin()

    def _replace_later(self) -> None:
        per_s = self.plan.nodes * self.plan.replaced_per_h / 3600.0
        if per_s:
            self.world.at(self.world.rng.expovariate(per_s), self._replace)

    def remove(self, gone: Presence) -> None:
        self.alive.remove(gone)
        self.places.remove(gone.peer)
        self.believed.forget(gone.peer)
        gone.leave()

    def _replace(self) -> None:
        """One goes, another of its kind comes."""
        gone = self.alive[self.world.rng.randrange(len(self.alive))]
        self.remove(gone)
        self._add(type(gone)(self, self.next_number()))
        self._replace_later()

    # The directory ----------------------------------------------------------------------------------------------------

    def holders(self, key: int) -> list[Presence]:
        return [self.members[peer] for peer in self.places.holders(key)]

    def look_up(self, by: Presence, key: int) -> None:
        """What it costs to find the replicas of a key; the records that they answer with are counted apart."""
        asked = self.world.rng.choice(self._costs) if self._costs else REPLICAS
        others = self.world.rng.choices(self.alive, k=asked)
        for other in others:
            self.call(by, other, Sizes.find, Sizes.found)

    def call(self, by: Presence, to: Presence, size: int, answer: int) -> None:
        """One request and its answer, if anybody is there; counted only."""
        by.traffic.sent(size)
        if not to.alive:
            self.world.counts.directory_messages += self.world.measuring
            self.world.counts.directory_bytes += size * self.world.measuring
            return
        to.traffic.got(size)
        to.traffic.sent(answer)
        by.traffic.got(answer)
        if self.world.measuring:
            self.world.counts.directory_messages += 2
            self.world.counts.directory_bytes += size + answer

    def answer(self, by: Presence, to: Presence, size: int) -> None:
        """Records in an answer that was counted already."""
        by.traffic.sent(size, 0)
        to.traffic.got(size, 0)
        self.world.counts.directory_bytes += size * self.world.measuring

    # Groups -----------------------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def typical_use(self) -> float:
        """Half of all groups have nothing to teach, the others something."""
        rng = self.world.rng
        return 0.0 if rng.random() < 0.5 else rng.uniform(0.0, 0.25)

    def make(self, by: Presence, use: float, rare: bool = False) -> Made:
        group = make(self.next_number(), by.peer, self.world.wall, self.body, use, by.hostile, rare)
        if not by.hostile:
            self.recent.append(group)
        return group

    def _probe(self) -> None:
        honest = self.honest
        author = self.world.rng.choice(honest)
        group = self.make(author, 0.9, rare=True)
        self.probes[group.id] = Probe(self.world.now, {node.peer for node in honest if node is not author})
        author.offer_own(group)

    def reached(self, group: Made, node: Node, hops: int) -> None:
        probe = self.probes.get(group.id)
        if probe is not None:
            probe.came[node.peer] = self.world.now - probe.at
            probe.hops[node.peer] = hops

    # Counting ---------------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        self.world.measuring, self.world.counts = True, Counts()
        for it in self.alive:
            it.traffic.reset()
        self._tick()

    def _tick(self) -> None:
        self.world.counts.node_seconds += TICK_S * len(self.alive)
        self.world.counts.honest_seconds += TICK_S * len(self.honest)
        self.world.at(TICK_S, self._tick)

    def count_read(self) -> None:
        self.world.counts.reads += 1

    def count_store(self) -> None:
        self.world.counts.stores += 1

    def count_checked(self) -> None:
        self.world.counts.checked += 1

    def count_repeated(self) -> None:
        self.world.counts.delivered += 1
        self.world.counts.duplicates += 1

    def count_delivered(self, group: Made, sender: PeerId) -> None:
        counts = self.world.counts
        counts.delivered += 1
        counts.hostile_bodies += group.hostile or self.members[sender].hostile

    def count_verdict(self, group: Made, reason: Reason) -> None:
        counts = self.world.counts
        if reason is Reason.ADMITTED:
            counts.new += 1
            counts.from_hostile += group.hostile
        elif reason is Reason.DUPLICATE:
            counts.duplicates += 1
        else:
            counts.refused += 1
