"""How much and how fast: token buckets, and how a total that is short is shared among peers.

`TokenBucket` and `Shares` are pure: time (monotonic seconds) is an argument. `Meter` waits for what they grant.

Whoever waits is served by start-time fair queueing: each peer has a virtual time that its requests move on by what they
cost, and the request that started first by it is next. So a peer that asks for much is served after those that ask for
little, and one that was silent has saved nothing up. A request costs the larger of its share of the groups and of the
bytes that the total allows in a second.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from swarm.types import PeerId

BURST_S = 1.0
"""A bucket holds what flows into it in so long."""
MAX_PEERS = 1024
"""Whose use is remembered; the one longest silent is forgotten first."""
RESERVED = 0.5
"""Of the total, the share that relayed groups need not wait for: somebody has found them useful. What they take of it
is missing for the others. A half, because a relay that is short passes on 1/16 of what it takes in (`Rules.outstanding`
for eight readers): eight of them offer half of what one node takes in, so a reserve of half never stays behind."""
RESERVE_GROUPS = 8.0
"""That the reserve holds at least. What is outstanding comes when it comes, and would wait some seconds at every hop
for a share of half a group a second that nobody needed in the minute before."""
PEER_GROUPS = 2.0
"""That one peer may have at once, however slow the total is: one from its log, one that it passes on."""
RECHECK_S = 1.0
"""An allowance that is a matter of appetite is looked up again after so long."""
_ROUNDING = 1e-9


class TokenBucket:
    """`rate` tokens a second, at most BURST_S of them kept, or `least` tokens. What is larger than that takes a full
    bucket and leaves a debt, so that nothing has to wait for ever."""

    def __init__(self, rate: float, now: float, least: float = 1.0) -> None:
        self._rate, self._least, self._at = rate, least, now
        self.burst = self._level = max(rate * BURST_S, least)

    def retune(self, rate: float, now: float) -> None:
        self._refill(now)
        self._rate, self.burst = rate, max(rate * BURST_S, self._least)
        self._level = min(self._level, self.burst)

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0 for now, infinite if nothing flows."""
        self._refill(now)
        missing = min(amount, self.burst) - self._level
        if missing <= _ROUNDING * self.burst:
            return 0.0
        return missing / self._rate if self._rate > 0 else math.inf

    def take(self, amount: float, now: float) -> None:
        """Whether there is enough or not. A negative amount is given back."""
        self._refill(now)
        self._level = min(self._level - amount, self.burst)

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._level + (now - self._at) * self._rate, self.burst)
            self._at = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Per second."""

    groups: float
    bytes: float

    def times(self, factor: float) -> Rate:
        return Rate(groups=self.groups * factor, bytes=self.bytes * factor)


class _Account:
    """A bucket of groups, a bucket of bytes, and how far a peer's virtual time has got."""

    def __init__(self, rate: Rate, now: float, least: float = 1.0) -> None:
        self._groups, self._bytes = TokenBucket(rate.groups, now, least), TokenBucket(rate.bytes, now)
        self.finish = {False: 0.0, True: 0.0}
        """Of what the peer made itself, and of what it passes on."""

    def retune(self, groups: float, now: float) -> None:
        self._groups.retune(groups, now)

    def wait_s(self, groups: float, size: float, now: float) -> float:
        return max(self._groups.wait_s(groups, now), self._bytes.wait_s(size, now))

    def take(self, groups: float, size: float, now: float) -> None:
        self._groups.take(groups, now)
        self._bytes.take(size, now)


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One peer's request."""

    peer: PeerId
    groups: float
    size: float
    """Bytes."""
    start: float
    """In virtual time."""
    relayed: bool


class Shares:
    """A rate in total, of which one peer may have `peer_share` at most."""

    def __init__(self, total: Rate, peer_share: float, now: float) -> None:
        self._rate, self._peer_share = total, peer_share
        self._total = _Account(total, now)
        self._reserve = TokenBucket(total.groups * RESERVED, now, RESERVE_GROUPS)
        self._peers: OrderedDict[PeerId, _Account] = OrderedDict()
        self._waiting: list[Ticket] = []
        self._virtual = 0.0

    def retune(self, groups: float, now: float) -> None:
        """From now on so many groups a second."""
        if groups == self._rate.groups:
            return
        self._rate = Rate(groups=groups, bytes=self._rate.bytes)
        self._total.retune(groups, now)
        self._reserve.retune(groups * RESERVED, now)
        for account in self._peers.values():
            account.retune(groups * self._peer_share, now)

    def ask(self, peer: PeerId, groups: float, size: float, now: float, relayed: bool = False) -> Ticket:
        """Gets in line; `granted` tells when it is its turn. `relayed`: for what the peer passes on, which has a
        virtual time of its own, so that it does not wait behind the peer's log, and a reserve."""
        account = self._account(peer, now)
        start = max(self._virtual, account.finish[relayed])
        ticket = Ticket(peer=peer, groups=groups, size=size, start=start, relayed=relayed)
        account.finish[relayed] = ticket.start + self._cost(groups, size)
        self._waiting.append(ticket)
        return ticket

    def granted(self, now: float) -> list[Ticket]:
        """Whose turn it is, in fair order; they are charged and out of the line."""
        granted, short = [], False
        for ticket in sorted(self._waiting, key=attrgetter("start")):
            account = self._account(ticket.peer, now)
            if account.wait_s(ticket.groups, ticket.size, now) > 0 or (short and not ticket.relayed):
                continue
            if self._room_s(ticket, now) > 0:
                if ticket.relayed:
                    break  # Nobody overtakes it: there is room neither in the total nor in the reserve.
                short = True  # Nobody overtakes it, but by the reserve.
                continue
            account.take(ticket.groups, ticket.size, now)
            self._total.take(ticket.groups, ticket.size, now)
            if ticket.relayed:
                self._reserve.take(ticket.groups, now)
            self._waiting.remove(ticket)
            self._virtual = max(self._virtual, ticket.start)
            granted.append(ticket)
        return granted

    def wait_s(self, now: float) -> float:
        """Seconds until `granted` may have an answer; infinite if nobody waits."""
        soonest = math.inf
        rooms: dict[tuple[bool, float, float], float] = {}  # Most ask for the same: asked often, so looked up once.
        for ticket in self._waiting:
            alike = ticket.relayed, ticket.groups, ticket.size
            if alike not in rooms:
                rooms[alike] = self._room_s(ticket, now)
            if rooms[alike] < soonest:
                own = self._account(ticket.peer, now).wait_s(ticket.groups, ticket.size, now)
                soonest = min(soonest, max(own, rooms[alike]))
        return soonest

    @property
    def burst(self) -> int:
        """Groups that may be taken at a time without a debt; at least 1."""
        return max(int(self._rate.groups * BURST_S), 1)

    @property
    def short(self) -> bool:
        """Whether somebody has to wait."""
        return bool(self._waiting)

    def log_waits(self, peer: PeerId) -> bool:
        """Whether what the peer made itself has to wait."""
        return any(ticket.peer == peer and not ticket.relayed for ticket in self._waiting)

    def withdraw(self, ticket: Ticket) -> None:
        """Gives up waiting. Does nothing for one that was granted."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def charge(self, peer: PeerId, groups: float, size: float, now: float, relayed: bool = False) -> None:
        """For what is only known afterwards; whoever comes next waits for it. Negative: gives back."""
        account = self._account(peer, now)
        account.take(groups, size, now)
        account.finish[relayed] = max(account.finish[relayed], self._virtual) + self._cost(groups, size)
        self._total.take(groups, size, now)

    def _room_s(self, ticket: Ticket, now: float) -> float:
        """Seconds until the total, or the reserve, has room for it."""
        wait = self._total.wait_s(ticket.groups, ticket.size, now)
        return min(wait, self._reserve.wait_s(ticket.groups, now)) if ticket.relayed else wait

    def _cost(self, groups: float, size: float) -> float:
        return max(groups / max(self._rate.groups, 1.0), size / max(self._rate.bytes, 1.0))

    def _account(self, peer: PeerId, now: float) -> _Account:
        if peer not in self._peers:
            self._peers[peer] = _Account(self._rate.times(self._peer_share), now, PEER_GROUPS)
        self._peers.move_to_end(peer)
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return self._peers[peer]


class Meter:
    """Shares for coroutines. `appetite`, asked again and again, replaces the total's groups per second."""

    def __init__(self, shares: Shares, clock: Callable[[], float], appetite: Callable[[], float] | None = None) -> None:
        self._shares, self._clock, self._appetite = shares, clock, appetite
        self._turns: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def burst(self) -> int:
        """Groups that may be taken at a time without a debt; at least 1."""
        return self._shares.burst

    @property
    def short(self) -> bool:
        """Whether somebody has to wait."""
        return self._shares.short

    def log_waits(self, peer: PeerId) -> bool:
        return self._shares.log_waits(peer)

    async def take(self, peer: PeerId, groups: float, size: float = 0, relayed: bool = False) -> None:
        """Returns when the peer's turn has come; at once where nothing is short. `size` in bytes."""
        ticket = self._shares.ask(peer, groups, size, self._clock(), relayed)
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        self._serve()
        try:
            if not turn.done():
                await turn
        finally:
            self._turns.pop(ticket, None)
            self._shares.withdraw(ticket)

    def charge(self, peer: PeerId, groups: float = 0, size: float = 0, relayed: bool = False) -> None:
        self._shares.charge(peer, groups, size, self._clock(), relayed)

    def _serve(self) -> None:
        now = self._clock()
        if self._appetite is not None:
            self._shares.retune(self._appetite(), now)
        for ticket in self._shares.granted(now):
            if not (turn := self._turns[ticket]).done():
                turn.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait = self._shares.wait_s(now)
        if self._appetite is not None and any(not turn.done() for turn in self._turns.values()):
            wait = min(wait, RECHECK_S)
        if not math.isinf(wait):
            self._timer = asyncio.get_running_loop().call_later(max(wait, 0.001), self._serve)
