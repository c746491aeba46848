"""Whose turn it is (`swarm.net.rates.Shares`), told by callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarm.net.rates import Shares, Ticket
from swarm.types import PeerId
from tests.bench.crowd.world import World


class Turns:
    """`swarm.net.rates.Meter` with callbacks for coroutines."""

    def __init__(self, world: World, shares: Shares) -> None:
        self._world, self._shares = world, shares
        self._acts: dict[Ticket, tuple[Callable[..., None], tuple[Any, ...]]] = {}
        self._next = -1.0

    @property
    def burst(self) -> int:
        return self._shares.burst

    @property
    def short(self) -> bool:
        return self._shares.short

    def log_waits(self, peer: PeerId) -> bool:
        return self._shares.log_waits(peer)

    def take(self, peer: PeerId, groups: int, relayed: bool, act: Callable[..., None], *args: Any) -> Ticket:
        ticket = self._shares.ask(peer, groups, 0, self._world.now, relayed)
        self._acts[ticket] = act, args
        self._serve()
        return ticket

    def charge(self, peer: PeerId, groups: float, size: float, relayed: bool) -> None:
        self._shares.charge(peer, groups, size, self._world.now, relayed)

    def withdraw(self, ticket: Ticket) -> None:
        self._acts.pop(ticket, None)
        self._shares.withdraw(ticket)

    def _wake(self, due: float) -> None:
        if self._next == due:  # Not by the clock, which may be a rounding short of it.
            self._next = -1.0
            self._serve()

    def _serve(self) -> None:
        now = self._world.now
        for ticket in self._shares.granted(now):
            act, args = self._acts.pop(ticket)
            self._world.at(0.0, act, *args)
        if not self._acts:
            return
        wake = now + max(self._shares.wait_s(now), 0.001)
        if self._next < now or wake < self._next:
            self._next = wake
            self._world.at(wake - now, self._wake, wake)
