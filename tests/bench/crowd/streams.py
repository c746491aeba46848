"""Streams as callbacks: one end opens, asks and is answered, until it breaks; then it opens again (`Attempts`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from swarm.errors import WireError
from swarm.net.following import LAST_RETRY_S, MAX_WINDOW, WINDOW_S, Attempts, backlog
from swarm.net.rates import Ticket
from swarm.net.relay import ASK_S, MAX_ASKED, Asked
from swarm.net.relay_reader import ASK_BATCH, RECHECK_S
from swarm.types import GroupId
from swarm.wire.codec import Pull
from swarm.wire.relay import Offer
from tests.bench.crowd.groups import FRAME, Made, Sizes
from tests.bench.crowd.world import DEAD_S
from tests.builders import MANIFEST

if TYPE_CHECKING:
    from tests.bench.crowd.node import Node
    from tests.bench.crowd.presence import Presence


class Stream(ABC):
    """From `reader` to `publisher`. What belongs to an earlier opening (`age`) is not heard of any more."""

    relayed = False

    def __init__(self, reader: Node, publisher: Presence) -> None:
        self.reader, self.publisher, self.world = reader, publisher, reader.world
        self.peer = publisher.peer
        self.attempts = Attempts(self.world.rng)
        self.age, self.closed = 0, False
        self._opened, self._groups = 0.0, 0
        self._ticket: Ticket | None = None

    @abstractmethod
    def begin(self) -> None: ...

    def open(self) -> None:
        if not self.closed:
            self._opened, self._groups = self.world.now, 0
            self.begin()

    def is_current(self, age: int) -> bool:
        return age == self.age and not self.closed

    def end(self, age: int, broken: bool) -> None:
        if not self.is_current(age):
            return
        self._clear()
        pause = self.attempts.ended(self._groups, self.world.now - self._opened, broken)
        if self.attempts.hopeless:
            self.gave_up()
        else:
            self.world.at(pause, self.open)

    @abstractmethod
    def gave_up(self) -> None:
        """It has failed too often in a row."""

    def close(self) -> None:
        self._clear()
        self.closed = True

    def _clear(self) -> None:
        self.age += 1
        if self._ticket is not None:
            self.reader.turns.withdraw(self._ticket)

    def turn(self, groups: int, act: Callable[..., None]) -> None:
        """`act(groups, age)` when our turn has come."""
        self._ticket = self.reader.turns.take(self.peer, groups, self.relayed, act, groups, self.age)

    def ask(self, size: int, act: Callable[..., None], *args: Any) -> None:
        self._say(self.reader, self.publisher, size, act, args)

    def answer(self, size: int, act: Callable[..., None], *args: Any) -> None:
        self._say(self.publisher, self.reader, size, act, args)

    def _say(self, by: Presence, to: Presence, size: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        by.traffic.sent(size)
        if not to.alive:
            self.world.at(DEAD_S, self.end, self.age, True)
        elif self.world.lost():
            self.world.at(self.world.latency(), self.end, self.age, True)
        else:
            self.world.at(self.world.latency(), self._hear, self.age, to, size, act, args)

    def _hear(self, age: int, to: Presence, size: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.is_current(age):
            to.traffic.got(size)
            act(*args)


class PullStream(Stream):
    """As `swarm.net.streams.pull`."""

    def __init__(self, reader: Node, publisher: Presence) -> None:
        super().__init__(reader, publisher)
        appetite = self.world.plan.appetite
        self._window = min(max(int(appetite * WINDOW_S), 1), MAX_WINDOW)
        self._credit = 0

    def begin(self) -> None:
        self._credit = 0
        self.turn(self._window, self._request)

    def _request(self, groups: int, age: int) -> None:
        if not self.is_current(age):
            return
        self._credit = groups
        epoch, cursor = self.reader.cursors.get(self.peer, (b"", 0))
        behind = backlog(self.world.plan.appetite, self.reader.seats.taken)
        request = Pull(swarm=MANIFEST.id, epoch=epoch, cursor=cursor, max_groups=groups, max_backlog=behind)
        self.ask(Sizes.pull, self.publisher.serve_pull, self, request)

    def got(self, group: Made, epoch: bytes, cursor: int) -> None:
        reader = self.reader
        reader.cursors[self.peer] = epoch, cursor
        reader.turns.charge(self.peer, 0, len(group.body), self.relayed)
        reader.wishes.came(self.peer, group.id, self.world.now)
        self._groups += 1
        reader.received(group, self.peer, 0)
        self._credit -= 1
        if self._credit < self._window // 2 + 1:
            self.turn(self._window - self._credit, self._grant)

    def _grant(self, groups: int, age: int) -> None:
        if self.is_current(age):
            self._credit += groups
            self.ask(Sizes.credit, self.publisher.credited, self, groups)

    def gave_up(self) -> None:
        self.reader.given_up(self.peer)


class RelayStream(Stream):
    """As `swarm.net.relay_reader.RelayReader.read`. Looks again at what others were asked for when that is overdue or
    their stream breaks, and not every second."""

    relayed = True

    def __init__(self, reader: Node, publisher: Presence) -> None:
        super().__init__(reader, publisher)
        self._asked, self._waits = Asked(), False

    def begin(self) -> None:
        self._asked, self._waits = Asked(), False
        self.ask(Sizes.relay_request, self.publisher.serve_relay, self)

    def _clear(self) -> None:
        super()._clear()
        self.reader.wishes.left(self.peer)
        if self._asked.waiting:
            self.world.at(self.world.rng.uniform(0, RECHECK_S), self.reader.look_again)
            self._asked = Asked()

    def gave_up(self) -> None:
        """Its log decides whether it is followed."""
        self.world.at(LAST_RETRY_S, self.open)

    def offered(self, offers: Sequence[Offer]) -> None:
        for offer in offers:
            self.reader.wishes.offered(self.peer, offer)
        self.look()

    def look(self) -> None:
        if self._waits or self.closed:
            return
        try:
            self._asked.check(self.world.now)
        except WireError:
            self._fault()
            return
        offers = self._worth_asking(min(MAX_ASKED - len(self._asked.waiting), ASK_BATCH, self.reader.turns.burst))
        if offers:
            self._waits = True
            self.turn(len(offers), self._wants)

    def _wants(self, groups: int, age: int) -> None:
        if not self.is_current(age):
            return
        self._waits = False
        reader, now = self.reader, self.world.now
        offers = self._worth_asking(groups)
        for offer in offers:
            reader.wishes.ask(self.peer, offer.id, now)
            self._asked.waiting[offer.id] = offer, now
        reader.turns.charge(self.peer, len(offers) - groups, sum(offer.size for offer in offers), self.relayed)
        if offers:
            self.ask(FRAME + len(offers) * Sizes.want, self.publisher.wanted, self, [offer.id for offer in offers])
            self.world.at(ASK_S + 0.01, reader.look_again)
        self.look()

    def came(self, id: GroupId, group: Made | None) -> None:
        reader = self.reader
        try:
            offer = self._asked.answered(id)
        except WireError:
            self._fault()
            return
        if group is None:
            reader.wishes.missing(self.peer, id)
        else:
            self._asked.came_at = self.world.now
            if reader.wishes.came(self.peer, id, self.world.now):
                self._groups += 1
                reader.received(group, self.peer, offer.hops)
            else:
                reader.repeated()
        self.look()

    def _fault(self) -> None:
        self.reader.strike(self.peer)
        self.end(self.age, True)

    def _worth_asking(self, limit: int) -> list[Offer]:
        wishes = self.reader.wishes
        while True:
            waits = self.reader.turns.log_waits(self.peer)
            offers = wishes.choose(self.peer, limit, self.world.now, self.world.wall, waits)
            known = [offer.id for offer in offers if offer.id in self.reader.known]
            if not known:
                return offers
            for id in known:
                wishes.forget(self.peer, id)
