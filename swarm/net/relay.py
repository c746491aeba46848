"""Passing on what peers made: what to offer, and what to ask of whom. Pure; `swarm.net.relay_streams` moves the bytes.

A group is signed by its origin, so it may come from anybody. Each node offers the ids of groups that it found useful
itself (peers', and where readers skip most of its log, the best of its own), the best first where its rate does not
allow all, and its readers choose. So a useful group spreads from reader to reader, also to those who cannot reach its
origin, and nobody gets one twice that knows the first.

A relay can lie. About hops and age: then a group spreads further, until it is too old by its own signed word. About the
id: the body that comes is hashed. About having it: it is asked for elsewhere after ASK_S, and who delivers nothing at
all earns a strike. About anything, in numbers: a peer's offers push out only its own.

Times are monotonic seconds (`now`), and unix seconds (`wall`) where a group's own age is meant.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter

from swarm.errors import WireError
from swarm.net.base import Received
from swarm.net.rates import TokenBucket
from swarm.types import GroupId, PeerId, SignedGroup
from swarm.wire.relay import Offer

MAX_CANDIDATES = 256
"""Useful groups that the rate has no room for at the moment; the least useful goes."""
CANDIDATE_BYTES = 32_000_000
USES = 256
"""Groups that tell what is outstanding."""
FIRST_OFFERS, FIRST_S = 32, 60.0
"""What a reader that comes is offered. What is older was offered when it was here before, or has had its time: a reader
that is short would ask every new relay for what was outstanding minutes ago, and keep the news waiting."""
SHELF_GROUPS = 512
SHELF_BYTES = 32_000_000
MAX_OFFERED = 128
"""Offers of one peer that are remembered; its oldest goes."""
MAX_ASKED = 32
"""Groups that a peer is asked for at a time."""
MAX_WISHES = 4096
"""Groups that are on their way from somebody, or came lately."""
ASK_S = 10.0
"""For a wanted group to come; then another peer is asked."""
HOLD_S = 30.0
"""A group that came is not asked for again for so long. By then the journal knows it, or it was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    me: PeerId
    max_hops: int
    max_age_s: float
    """Older ones are neither offered nor asked for."""
    outstanding: float = 1 / 16
    """Of what we admit, the share that is passed on where all have more than they can take. Times the readers that a
    node has on average, it must be below 1: then what is like everything else dies out, and what nearly everybody finds
    among its best reaches everybody."""
    max_clock_skew_s: float
    """How far ahead of ours an origin's clock may be."""

    def fresh(self, created_at: float, wall: float) -> bool:
        return -self.max_clock_skew_s <= wall - created_at <= self.max_age_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shelved:
    """A peer's group that we pass on."""

    offer: Offer
    received: Received
    """As it came, for that is how it is passed on; decoded it would take several times as much memory. Its sender needs
    no offer."""
    number: int
    """In the order of being put on the shelf, from 1."""
    at: float


class Shelf:
    """What we pass on: at most `rate` groups a second, the most useful of those that there are."""

    def __init__(self, rules: Rules, rate: float, now: float) -> None:
        self._rules = rules
        self._bucket = TokenBucket(rate, now)
        self._uses: deque[float] = deque(maxlen=USES)
        self._candidates: list[tuple[float, Received, Offer]] = []  # the most useful last
        self._candidate_bytes = 0
        self._shelved: OrderedDict[GroupId, Shelved] = OrderedDict()
        self._bytes = 0
        self.head = 0
        """Number of the newest."""

    def add(
        self, received: Received, signed: SignedGroup, use: float, now: float, wall: float, short: bool = False
    ) -> None:
        """A group that we admitted and kept. `use`: what there was to learn from it; if nothing, it ends here. `short`:
        we cannot take in all that there is, and so can nobody: then only what is outstanding goes on."""
        self._uses.append(use)
        if (short and use < self._among_best()) or signed.group.origin == self._rules.me:
            return
        self._consider(received, signed, use, now, wall)

    def made(self, own: Received, signed: SignedGroup, use: float, now: float, wall: float) -> None:
        """A group of our own, which our log holds, as if we had sent it. Readers that are short skip most of a log, and
        a group that nobody has read yet goes with the rest: an outstanding one is offered as well, so that they can
        choose it."""
        self._uses.append(use)
        if use >= self._among_best():
            self._consider(own, signed, use, now, wall)

    def fill(self, now: float, wall: float) -> float | None:
        """Puts the best candidates on the shelf, as the rate allows, and takes off what is too old. Returns the seconds
        until there may be more to do, None if nothing waits."""
        self._clear(now, wall)
        while self._candidates:
            _, received, offer = self._candidates[-1]
            if self._rules.fresh(offer.created_at, wall):
                if wait := self._bucket.wait_s(1, now):
                    return wait
                self._bucket.take(1, now)
                self._put(received, offer, now)
            self._take_candidate(-1)
        return None

    def _take_candidate(self, index: int) -> None:
        _, received, _ = self._candidates.pop(index)
        self._candidate_bytes -= len(received.body)

    def after(self, number: int, reader: PeerId, wall: float) -> list[Offer]:
        """What was put here after `number` and may be news to `reader`, oldest first."""
        offers = []
        for shelved in reversed(self._shelved.values()):
            if shelved.number <= number:
                break
            offer = shelved.offer
            if reader not in (offer.origin, shelved.received.sender) and self._rules.fresh(offer.created_at, wall):
                offers.append(offer)
        return offers[::-1]

    def start(self, now: float) -> int:
        """The number after which a reader that comes begins: with the newest FIRST_OFFERS, none older than FIRST_S."""
        number = self.head
        for shelved in reversed(self._shelved.values()):
            if self.head - shelved.number >= FIRST_OFFERS or now - shelved.at > FIRST_S:
                break
            number = shelved.number - 1
        return number

    def get(self, id: GroupId) -> Shelved | None:
        return self._shelved.get(id)

    def _consider(self, received: Received, signed: SignedGroup, use: float, now: float, wall: float) -> None:
        rules = self._rules
        if use > 0 and received.hops < rules.max_hops and rules.fresh(signed.group.created_at, wall):
            insort(self._candidates, (use, received, _offer_of(received, signed)), key=itemgetter(0))
            self._candidate_bytes += len(received.body)
            while len(self._candidates) > MAX_CANDIDATES or self._candidate_bytes > CANDIDATE_BYTES:
                self._take_candidate(0)
            self.fill(now, wall)

    def _among_best(self) -> float:
        """The use of the last of the best. Nothing is known to be outstanding before there was enough to compare it
        with: a newcomer's first group is its best so far, its n-th with a probability of 1/n, and a swarm in which all
        have just come would be busy with those for minutes."""
        best = math.ceil(len(self._uses) * self._rules.outstanding)
        enough = len(self._uses) * self._rules.outstanding >= 1
        return sorted(self._uses)[-best] if enough else math.inf

    def _put(self, received: Received, offer: Offer, now: float) -> None:
        if offer.id in self._shelved:
            return
        self.head += 1
        self._shelved[offer.id] = Shelved(offer=offer, received=received, number=self.head, at=now)
        self._bytes += offer.size
        while len(self._shelved) > SHELF_GROUPS or self._bytes > SHELF_BYTES:
            self._take_off()

    def _clear(self, now: float, wall: float) -> None:
        """An origin's clock may be ahead of ours: nothing stays longer than it might have by ours, either."""
        while self._shelved:
            oldest = next(iter(self._shelved.values()))
            if now - oldest.at <= self._rules.max_age_s and self._rules.fresh(oldest.offer.created_at, wall):
                return
            self._take_off()

    def _take_off(self) -> None:
        _, shelved = self._shelved.popitem(last=False)
        self._bytes -= shelved.offer.size


def _offer_of(received: Received, signed: SignedGroup) -> Offer:
    """Of a group that we would be the next to pass on."""
    return Offer(
        id=signed.id,
        origin=signed.group.origin,
        hops=received.hops + 1,
        size=len(received.body),
        created_at=signed.group.created_at,
        source=signed.group.task.source,
    )


@dataclass(slots=True)
class _Wish:
    """A group that `peer` was asked for, or that came from it, at that time."""

    peer: PeerId
    at: float
    came: bool


class Wishes:
    """What peers offer, and who was asked for what."""

    def __init__(self, rules: Rules, excluded: Callable[[PeerId], bool]) -> None:
        self._rules, self._excluded = rules, excluded
        self._offers: dict[PeerId, OrderedDict[GroupId, Offer]] = {}
        self._wishes: OrderedDict[GroupId, _Wish] = OrderedDict()

    def offered(self, peer: PeerId, offer: Offer) -> None:
        """Remembers it, if it is one to think of."""
        if offer.hops > self._rules.max_hops or offer.origin == self._rules.me:
            return
        offers = self._offers.setdefault(peer, OrderedDict())
        offers[offer.id] = offer
        offers.move_to_end(offer.id)
        if len(offers) > MAX_OFFERED:
            offers.popitem(last=False)

    def choose(self, peer: PeerId, limit: int, now: float, wall: float, log_waits: bool = True) -> list[Offer]:
        """The newest of the peer's offers that nobody is asked for, at most `limit`. What the peer made itself comes
        with its log, unless that has to wait (`log_waits`): then we may never get to it."""
        offers = self._offers.get(peer, OrderedDict())
        chosen: list[Offer] = []
        for offer in reversed(list(offers.values())):
            if len(chosen) == limit:
                break
            if not self._rules.fresh(offer.created_at, wall) or self._excluded(offer.origin):
                del offers[offer.id]
            elif self._free(offer.id, now) and (log_waits or offer.origin != peer):
                chosen.append(offer)
        return chosen

    def ask(self, peer: PeerId, id: GroupId, now: float) -> None:
        """`peer` is being asked for it: its offer is used up, and nobody else is asked for a while."""
        self.forget(peer, id)
        self._note(id, _Wish(peer, now, came=False))

    def forget(self, peer: PeerId, id: GroupId) -> None:
        """The peer's offer of what is known already."""
        self._offers.get(peer, {}).pop(id, None)

    def came(self, peer: PeerId, id: GroupId, now: float) -> bool:
        """By a relay or from the origin's log. Returns False for one that came before."""
        wish = self._wishes.get(id)
        if wish is not None and wish.came and now - wish.at < HOLD_S:
            return False
        self._note(id, _Wish(peer, now, came=True))
        return True

    def missing(self, peer: PeerId, id: GroupId) -> None:
        """The peer has it no more: somebody else may be asked."""
        wish = self._wishes.get(id)
        if wish is not None and wish.peer == peer and not wish.came:
            del self._wishes[id]

    def refused(self, peer: PeerId) -> None:
        """What `peer` handed over lately is not to be trusted to have been the real thing (a wrong signature can be put
        under a good body): it may be asked of others."""
        for id in [id for id, wish in self._wishes.items() if wish.peer == peer and wish.came]:
            del self._wishes[id]

    def left(self, peer: PeerId) -> None:
        """Its stream is over."""
        self._offers.pop(peer, None)
        for id in [id for id, wish in self._wishes.items() if wish.peer == peer and not wish.came]:
            del self._wishes[id]

    def _free(self, id: GroupId, now: float) -> bool:
        wish = self._wishes.get(id)
        return wish is None or now - wish.at >= (HOLD_S if wish.came else ASK_S)

    def _note(self, id: GroupId, wish: _Wish) -> None:
        self._wishes.pop(id, None)
        self._wishes[id] = wish
        if len(self._wishes) > MAX_WISHES:
            self._wishes.popitem(last=False)


@dataclass(slots=True)
class Asked:
    """What one relay was asked for on one stream."""

    waiting: dict[GroupId, tuple[Offer, float]] = field(default_factory=dict)
    late: dict[GroupId, Offer] = field(default_factory=dict)
    """Asked of somebody else by now; they may come all the same."""
    came_at: float = 0.0
    """When a group came last."""

    def answered(self, id: GroupId) -> Offer:
        """Raises WireError for what was never asked for: nobody pushes."""
        if id in self.late:
            return self.late.pop(id)
        if id not in self.waiting:
            raise WireError(f"group {id} was not asked for")
        offer, _ = self.waiting.pop(id)
        return offer

    def check(self, now: float) -> None:
        """Raises WireError if nothing at all comes of what was asked for."""
        overdue = [id for id, (_, at) in self.waiting.items() if now - at >= ASK_S]
        if overdue and self.came_at <= self.waiting[overdue[0]][1]:
            raise WireError(f"{len(overdue)} groups were offered and not sent for {ASK_S:g} s")
        for id in overdue:
            self.late[id], _ = self.waiting.pop(id)
