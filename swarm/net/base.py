"""How a node reaches the others: the protocol that the loops see, and what an implementation promises.

Two implementations: `swarm.net.memory` (in one process, public, for tests and for solo runs) and
`swarm.net.exchange` (libp2p). Both promise that

* nothing here waits for a particular peer: a slow, dead or hostile one costs its own stream and nothing else;
* groups are pulled: a reader asks a publisher's log for what came after its cursor, and a relay for what it chose of
  its offers, so nobody can push;
* what `receive` yields has been bounded in size, and nothing more: signature, task and reward are for `swarm.verify`;
* a cursor moves only when the reader has taken the group (asked for the next one).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarm.types import Announcement, CellValue, PeerId, Reason, SignedGroup, Verdict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogEntry:
    cursor: int
    body: bytes
    signature: bytes


class GroupLog(Protocol):
    """What a node publishes: its own groups, in order, as long as it keeps them. The journal is one."""

    @property
    def epoch(self) -> bytes:
        """16 random bytes made with the log."""
        ...

    @property
    def head(self) -> int:
        """Cursor of the newest group, 0 if there is none."""
        ...

    async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
        """Up to `limit` groups after `cursor`, oldest first; empty if there is none."""
        ...

    async def wait(self, cursor: int) -> int:
        """Returns the head as soon as it is greater than `cursor`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Received:
    """Bytes that a peer's log held, not yet looked at."""

    sender: PeerId
    """Who handed it over; authenticated by the transport. With relaying it need not be the origin."""
    body: bytes
    signature: bytes
    hops: int = 0
    """How many passed it on, the sender included, by the sender's account; 0 from the origin itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    peer: PeerId
    name: str
    addresses: tuple[str, ...]
    last_seen: float
    """Monotonic seconds."""
    head: int
    cursor: int
    values: tuple[CellValue, ...] = ()
    """What it says it is worth. Nobody has checked that."""


class Exchange(Protocol):
    @property
    def peer_id(self) -> PeerId: ...

    @property
    def state(self) -> str:
        """ "up", "off" or "restarting: why"."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs where we can be dialled, with our peer id; empty if nowhere."""
        ...

    def peers(self) -> Sequence[PeerInfo]:
        """Who is alive, as far as we know."""
        ...

    async def announce(self, announcement: Announcement) -> None:
        """Tell the directory. Never raises for the network's sake: one that fails is renewed by the next."""
        ...

    def receive(self) -> AsyncIterator[Received]:
        """What the followed peers' logs hold, as it comes. Never ends, never raises for a peer's sake."""
        ...

    def refresh(self) -> None:
        """What is known of peers may be old, and what they know of us (the machine slept): looks and tells at once."""
        ...

    def blame(self, peer: PeerId, verdict: Verdict) -> None:
        """A group that `peer` handed over was refused; what follows (back-off, strikes) is the exchange's affair."""
        ...

    def made(self, signed: SignedGroup, use: float) -> None:
        """A group of our own, which the log holds by now. `use`, as in `thank`: what we could learn from it."""
        ...

    def thank(self, received: Received, signed: SignedGroup, use: float) -> None:
        """`received` held `signed`, which was admitted and kept. `use`: how much there was to learn from it, as
        `node.experience.Experience.use`. What follows (whom to follow, what to pass on) is the exchange's affair."""
        ...


#: Refusals that an honest peer can cause (clocks, restarts, races), or whose author is not the one that is known (a
#: banned origin is only claimed, and who was copied cannot help it): counted, never held against anybody.
INNOCENT = frozenset({Reason.ADMITTED, Reason.BANNED, Reason.DUPLICATE, Reason.COPIED, Reason.STALE, Reason.HELD_OUT})
