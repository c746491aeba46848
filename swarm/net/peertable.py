"""Who is alive, as far as we know: a partial view, bounded, of which nobody can fill more than a share.

Whoever wants to be all that a node knows needs peers in its view that are all his. So of the VIEW places

* at most a quarter goes to what one source told: the peer that answered for a shard, or all those who stored with us;
* at most a quarter goes to one shard of the directory, of the first level's eight, in which ids are evenly spread;
* at most an eighth goes to one subnet (/16 of IPv4, /32 of IPv6, two last labels of a name) that its peers say they
  can be dialled in. A peer counts in each subnet that it names; those that name none count as one. Loopback and
  private addresses count in none: they are tests and local networks.

Where a share or the view is full, a newcomer takes the place of a random peer of that share, or of the view. Addresses
are claims until somebody was met there: a peer that sent us something, or is followed, gives way to nobody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

from swarm.net.shards import shard_of
from swarm.types import Announcement, PeerId

MAX_PEERS = 4096
"""Of any other table by peer."""
VIEW = 256
SOURCE_SHARE, SHARD_SHARE, SUBNET_SHARE = VIEW // 4, VIEW // 4, VIEW // 8
HEARTBEATS = 3
"""A peer that was not heard of for so many heartbeats is gone."""
FOLLOWED_HEARTBEATS = 15
"""One that is followed: its stream is open, and it may have had nothing to say."""


@dataclass(slots=True)
class _Known:
    announcement: Announcement
    last_seen: float
    shares: tuple[str, ...]
    """That it takes a place of; the first is its source."""
    met: bool = False


class PeerTable:
    """The newest announcement of a part of the peers that were heard of lately, ourselves excluded."""

    def __init__(
        self, own: PeerId, heartbeat_s: float, clock: Callable[[], float], rng: random.Random | None = None
    ) -> None:
        """`clock`: monotonic seconds."""
        self._own = own
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._rng = random.Random() if rng is None else rng
        self._known: dict[PeerId, _Known] = {}
        self._members: dict[str, dict[PeerId, None]] = {}
        """Of each share."""
        self._followed: frozenset[PeerId] = frozenset()
        self.changed = asyncio.Event()
        """Set when a peer is new; whoever waits for it clears it."""

    def announced(self, announcement: Announcement, told_by: PeerId | None = None) -> None:
        """A checked announcement, and whose answer it was in; None for what was stored with us. One that is not newer
        than what we have is no sign of life: anybody can repeat it."""
        peer = announcement.peer
        if peer == self._own:
            return
        known = self._known.get(peer)
        if known is None:
            self._admit(announcement, f"told by {told_by}")
            return
        if known.announcement.issued_at >= announcement.issued_at:
            return
        if not self._protected(peer) and not subnets_of(announcement.addresses) <= set(known.shares):
            # Or a peer could come from one subnet and then be in another.
            self._forget(peer)
            self._admit(announcement, known.shares[0])
            return
        known.announcement, known.last_seen = announcement, self._clock()

    def heard(self, peer: PeerId) -> None:
        """It sent us something over a connection of its own."""
        if (known := self._known.get(peer)) is not None:
            known.last_seen = self._clock()
            known.met = True

    def follow(self, peers: Collection[PeerId]) -> None:
        """These are followed now, and no others."""
        self._followed = frozenset(peers)

    def get(self, peer: PeerId) -> Announcement | None:
        known = self._known.get(peer)
        return None if known is None else known.announcement

    def alive(self) -> list[tuple[Announcement, float]]:
        """Announcement and when it was last heard of, of everybody who still is."""
        now = self._clock()
        for peer, known in list(self._known.items()):
            if self._is_silent(peer, known, now):
                self._forget(peer)
        return [(known.announcement, known.last_seen) for known in self._known.values()]

    def is_alive(self, peer: PeerId) -> bool:
        known = self._known.get(peer)
        return known is not None and not self._is_silent(peer, known, self._clock())

    def met(self) -> list[Announcement]:
        """Of those that sent us something."""
        return [known.announcement for known in self._known.values() if known.met]

    def has_met(self, peer: PeerId) -> bool:
        known = self._known.get(peer)
        return known is not None and known.met

    def _admit(self, announcement: Announcement, source: str) -> None:
        """If there is a place for it in all its shares and in the view."""
        shares = {
            source: SOURCE_SHARE,
            f"shard {shard_of(announcement.peer)}": SHARD_SHARE,
            **dict.fromkeys(subnets_of(announcement.addresses), SUBNET_SHARE),
        }
        leaving: set[PeerId] = set()
        for members, places in [
            *((self._members.get(share, {}), n) for share, n in shares.items()),
            (self._known, VIEW),
        ]:
            if len(members) - len(leaving & members.keys()) < places:
                continue
            expendable = [peer for peer in members if peer not in leaving and not self._protected(peer)]
            if not expendable:
                return
            leaving.add(self._rng.choice(expendable))
        for peer in leaving:
            self._forget(peer)
        self._known[announcement.peer] = _Known(announcement, self._clock(), tuple(shares))
        for share in shares:
            self._members.setdefault(share, {})[announcement.peer] = None
        self.changed.set()

    def _is_silent(self, peer: PeerId, known: _Known, now: float) -> bool:
        heartbeats = FOLLOWED_HEARTBEATS if peer in self._followed else HEARTBEATS
        return known.last_seen < now - heartbeats * self._heartbeat_s

    def _protected(self, peer: PeerId) -> bool:
        return self._known[peer].met or peer in self._followed

    def _forget(self, peer: PeerId) -> None:
        for share in self._known.pop(peer).shares:
            members = self._members[share]
            del members[peer]
            if not members:
                del self._members[share]


def subnets_of(addresses: Iterable[str]) -> set[str]:
    """Of multiaddrs, by what comes first in each: of one that leads through a relay, that is the relay's. Names the
    subnets as text ("203.0.0.0/16"); {"nowhere"} where there is no address, or what is none."""
    named = {_subnet_of(address) for address in addresses} or {"nowhere"}
    return {subnet for subnet in named if subnet is not None}


@lru_cache(maxsize=MAX_PEERS)
def _subnet_of(address: str) -> str | None:
    """None for what is not of the public internet."""
    protocol, host = [*address.split("/"), "", ""][1:3]
    if protocol.startswith("dns"):
        return ".".join(host.lower().rstrip(".").split(".")[-2:])
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return "nowhere"
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global:
        return None
    return str(ipaddress.ip_network((ip, 16 if ip.version == 4 else 32), strict=False))
