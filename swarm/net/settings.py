"""What an operator chooses of the libp2p exchange: the keys of `[exchange]`. Light to import: no network is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from swarm.net.addresses import check, is_loopback
from swarm.types import PeerId

MAX_HEARTBEAT_S = 300.0
MAX_CIRCUITS = 2
"""Relays that we announce to be behind."""


class P2PSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
    """Multiaddrs to listen on; port 0 picks one, the same for all, and keeps it for this data directory. IPv6 is left
    out on machines without it; with none at all, others reach us through relays only."""
    announce: tuple[str, ...] = ()
    """Multiaddrs to be dialled at, if they differ (NAT, containers)."""
    initial_peers: tuple[str, ...] = ()
    """Multiaddrs with /p2p/ id; dead ones are never fatal."""
    follow: PositiveInt = 8
    """Peers whose logs are pulled at a time."""
    heartbeat_s: Annotated[float, Field(gt=0, le=MAX_HEARTBEAT_S)] = 20.0
    """How often we say that we are alive; three times as long without a word, and we are taken for gone."""
    upload_mbit: PositiveFloat = 100.0
    """Megabits per second that we send, all readers together, compressed; when it is short they share it."""
    upload_groups_per_s: PositiveFloat = 1000.0
    """Groups per second that we send, likewise."""
    download_mbit: PositiveFloat = 100.0
    """Megabits of groups per second that we take in, from all peers together; what they are before compression."""
    download_groups_per_s: PositiveFloat = 256.0
    """Groups per second that we take in at most. Peers' older ones are skipped when they have more for us."""
    peer_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of each of these four, at most this share with one peer."""
    compression: bool = True
    """Let peers compress what they send us, and compress for those who let us: about half the bytes, for at most a
    quarter of a core. Peers that do not are understood either way."""
    connections: Annotated[int, Field(ge=32)] = 512
    """Libp2p connections; when there are more, those that nobody uses are closed, the followed peers' last. A seed peer
    of a large swarm may want more."""
    relay_groups: bool = True
    """Pass peers' groups on that were useful to us, and take them from those who do."""
    relay_groups_per_s: PositiveFloat = 8.0
    """Groups per second that we offer to pass on: the most useful ones."""
    relay_max_hops: Annotated[int, Field(ge=1, le=32)] = 16
    """A group that so many have passed on is not passed on further, nor taken from one who has."""
    relay: bool = True
    """Use relays, AutoNAT and hole punching; off by itself where we listen on loopback only. Offering a relay to those
    who reach it is what the daemon always does."""
    relays: tuple[str, ...] = ()
    """Multiaddrs with /p2p/ id of peers that may relay for us; empty for the initial peers. Dead ones do no harm."""
    reachability: Literal["auto", "public", "private"] = "auto"
    """Whether others can dial us: "auto" asks them (AutoNAT), "private" goes through relays at once, "public" never."""
    port_mapping: bool = True
    """Ask the router to forward our port (UPnP, NAT-PMP); off by itself where we listen on loopback only."""

    def check_addresses(self) -> None:
        """Raises ConfigError naming the key and the address that cannot be one."""
        check("listen", self.listen, any_port=True)
        check("announce", self.announce)
        check("initial_peers", self.initial_peers, peer=True)
        check("relays", self.relays, peer=True)

    @property
    def local(self) -> bool:
        """Reachable from this machine only."""
        return bool(self.listen) and all(map(is_loopback, self.listen))

    @property
    def trusted_relays(self) -> tuple[str, ...]:
        """Whom we ask to relay for us; nobody if we do not want that."""
        wanted = self.relay and not self.local and self.reachability != "public"
        return (self.relays or self.initial_peers) if wanted else ()

    @property
    def needed_relays(self) -> tuple[str, ...]:
        """At whom we want a place at once, because we know that nobody can dial us."""
        sure = not self.listen or self.reachability == "private"
        return self.trusted_relays[:MAX_CIRCUITS] if sure else ()

    def circuits(self, peer: PeerId) -> tuple[str, ...]:
        """Where `peer`, if these settings are its own, is to be dialled through those."""
        return tuple(f"{relay}/p2p-circuit/p2p/{peer}" for relay in self.needed_relays)
