"""Whom to follow: k peers, half of them by chance, half of them because of what they brought. Pure; no network.

One of the places by chance goes to a peer that hardly anybody reads, by its own word: what nobody reads cannot spread.

What a peer is worth to us is its use per group: the decayed mean of max(reward - our value, 0)^2 over the groups that
it handed over. It is taken together with PRIOR_GROUPS groups of the average peer, so that one lucky group proves little
and old evidence fades into "like the others". A peer that had a place and brought nothing gets the same number of
groups of no use at all: silence is evidence too.

Of a peer that was never tried we have its claims only. For each cell (source, difficulty) that it says it scores p in
and we score o, its successes would be worth p * (1 - o)^2 by the same measure: that is comparative advantage, large
where it is strong and we are weak. The mean over its cells, by the mass that it gives them, is what it may be worth,
but no more than the average peer has proved to be; and with its first group, or without one when its time is over,
what it says is forgotten.
"""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarm.net.peertable import MAX_PEERS, PeerTable
from swarm.net.standing import Standing
from swarm.types import CellValue, PeerId

HALF_LIFE_S = 600.0
"""Of a group's say in what its sender is worth."""
PRIOR_GROUPS = 4.0
TERM_S = 180.0
"""How long a place is kept before it is looked at again, give or take a third: not all at once."""
FIRST_TERM_S = 20.0
"""The same for who has just come, and knows hardly anybody to choose from; longer the longer it has been here."""
HYSTERESIS = 1.25
"""How many times as useful as one that has a place another must be to get it."""
FEW_READERS = 2
"""Who says that fewer peers read it is lonely. Not one: the only reader may be somebody who passes nothing on."""
LONELY_FOLLOW = 4
"""Who follows fewer peers has no place for the lonely."""


@dataclass(slots=True)
class _Evidence:
    use: float
    groups: float
    """Both decayed, up to `at`."""
    at: float
    last_group: float


class Uses:
    """What peers' groups were worth to us. Bounded; the clock is in monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._peers: OrderedDict[PeerId, _Evidence] = OrderedDict()
        self._all = _Evidence(0.0, 0.0, clock(), 0.0)

    def thanked(self, peer: PeerId, use: float) -> None:
        """It handed over a group of that use."""
        self._add(self._of(peer), use, 1.0)
        self._add(self._all, use, 1.0)
        self._peers[peer].last_group = self.clock()

    def missed(self, peer: PeerId) -> None:
        """It had a place, and nothing that we could use came of it."""
        self._add(self._of(peer), 0.0, PRIOR_GROUPS)

    def silent_since(self, peer: PeerId, since: float) -> bool:
        """Whether nothing that was kept has come from it after that moment."""
        evidence = self._peers.get(peer)
        return evidence is None or evidence.last_group < since

    @property
    def average(self) -> float | None:
        """Use per group; None if there was none yet."""
        return self._all.use / self._all.groups if self._all.groups else None

    def worth(self, peer: PeerId, claimed: float) -> float:
        """Expected use of its next group. `claimed`: what it would be if its announcement were true."""
        evidence, average = self._peers.get(peer), self.average
        if evidence is None:
            return claimed if average is None else min(claimed, average)
        kept = self._decay(evidence)
        return (PRIOR_GROUPS * (average or 0.0) + kept * evidence.use) / (PRIOR_GROUPS + kept * evidence.groups)

    def _of(self, peer: PeerId) -> _Evidence:
        evidence = self._peers.pop(peer, None) or _Evidence(0.0, 0.0, self.clock(), float("-inf"))
        self._peers[peer] = evidence
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return evidence

    def _add(self, evidence: _Evidence, use: float, groups: float) -> None:
        kept = self._decay(evidence)
        evidence.use, evidence.groups = kept * evidence.use + groups * use, kept * evidence.groups + groups
        evidence.at = self.clock()

    def _decay(self, evidence: _Evidence) -> float:
        return 0.5 ** ((self.clock() - evidence.at) / HALF_LIFE_S)


def advantage(ours: Iterable[CellValue], theirs: Iterable[CellValue]) -> float:
    """What a peer's successes would be worth to us if what it says of itself were true, in [0, 1]. Where we have no
    value for a cell, our mean over its source counts; sources that we know nothing of do not."""
    cells: dict[tuple[str, str], float] = {}
    sources: defaultdict[str, list[float]] = defaultdict(list)
    for cell in ours:
        cells[cell.source, cell.difficulty] = cell.value
        sources[cell.source].append(cell.value)
    total = mass = 0.0
    for cell in theirs:
        if cell.source not in sources:
            continue
        mean = sum(sources[cell.source]) / len(sources[cell.source])
        own = cells.get((cell.source, cell.difficulty), mean)
        total += cell.mass * cell.value * (1.0 - own) ** 2
        mass += cell.mass
    return total / mass if mass > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A peer that is followed."""

    peer: PeerId
    useful: bool
    """Chosen for what it brought or promises, not by chance."""
    lonely: bool = False
    """Chosen because hardly anybody reads it."""
    since: float
    until: float
    """Monotonic seconds; then somebody else may get the place."""


def review(
    places: Sequence[Place],
    worth: Mapping[PeerId, float],
    k: int,
    now: float,
    rng: random.Random,
    lonely: Collection[PeerId] = (),
    term_s: float = TERM_S,
) -> list[Place]:
    """At most k places. `worth`: expected use of everybody who could be followed; who is not in it loses its place.
    `lonely`: those that say that hardly anybody reads them. `term_s`: of the new places, give or take a third.

    A place whose term is not over is kept. The k // 2 useful ones go to whoever is worth most, where one whose term is
    over counts HYSTERESIS times; the others to anybody, each peer with the same chance, and before those whose term is
    over. So nobody leaves for the sake of an empty place. One of the others goes to the lonely: chance leaves some
    e^-(k/2) of a large swarm unread, whatever they make. Whoever says so without need has that one place of ours.
    """
    kept = [place for place in places if place.peer in worth and now < place.until]
    over = {place.peer: place.useful for place in places if now >= place.until}
    free = sorted(worth.keys() - {place.peer for place in kept})
    free = rng.sample(free, len(free))
    room = max(k - len(kept), 0)
    useful_room = min(max(k // 2 - sum(place.useful for place in kept), 0), room)

    def rank(peer: PeerId) -> float:
        return worth[peer] * (HYSTERESIS if over.get(peer) else 1.0)

    useful = sorted((peer for peer in free if worth[peer] > 0), key=rank, reverse=True)[:useful_room]
    others = sorted((peer for peer in free if peer not in useful), key=over.__contains__)
    alone: list[PeerId] = []
    if k >= LONELY_FOLLOW and len(useful) < room and not any(place.lonely for place in kept):
        alone = [peer for peer in others if peer in lonely and peer not in over][:1]
    others = [*alone, *(peer for peer in others if peer not in alone)][: room - len(useful)]
    new = [(peer, True) for peer in useful] + [(peer, False) for peer in others]
    return [*kept, *(_place(peer, is_useful, peer in alone, now, term_s, rng) for peer, is_useful in new)]


class Seats:
    """The places of one node, of which it knows `table` and `standing`. `worth`: our own values, for what peers might
    bring."""

    def __init__(
        self,
        k: int,
        table: PeerTable,
        standing: Standing,
        uses: Uses,
        worth: Callable[[], Sequence[CellValue]],
        rng: random.Random,
    ) -> None:
        self._k, self._table, self._standing = k, table, standing
        self._uses, self._worth, self._rng = uses, worth, rng
        self._places: list[Place] = []
        self._since: float | None = None
        """Of our first review."""

    @property
    def taken(self) -> int:
        return len(self._places)

    def review(self) -> list[PeerId]:
        """Who has a place now, of those alive and not excluded."""
        now, places = self._uses.clock(), self._places
        if len(places) == self._k and all(now < place.until and self._may_stay(place.peer) for place in places):
            return [place.peer for place in places]
        worthy = {peer.peer: peer for peer, _ in self._table.alive() if not self._standing.excluded(peer.peer)}
        kept = [place for place in places if now < place.until and place.peer in worthy]
        if len(kept) == min(self._k, len(worthy)):
            self._places = kept
        else:
            for place in places:
                if now >= place.until and self._uses.silent_since(place.peer, place.since):
                    self._uses.missed(place.peer)
            ours = self._worth()
            worth = {peer: self._uses.worth(peer, advantage(ours, it.values)) for peer, it in worthy.items()}
            lonely = {peer for peer, it in worthy.items() if it.readers < FEW_READERS}
            self._since = now if self._since is None else self._since
            term_s = min(FIRST_TERM_S + now - self._since, TERM_S)
            self._places = review(places, worth, self._k, now, self._rng, lonely, term_s)
        chosen = [place.peer for place in self._places]
        self._table.follow(chosen)
        return chosen

    def _may_stay(self, peer: PeerId) -> bool:
        return self._table.is_alive(peer) and not self._standing.excluded(peer)


def _place(peer: PeerId, useful: bool, lonely: bool, now: float, term_s: float, rng: random.Random) -> Place:
    until = now + term_s * rng.uniform(2 / 3, 4 / 3)
    return Place(peer=peer, useful=useful, lonely=lonely, since=now, until=until)
