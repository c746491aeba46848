"""What an operator chooses of the libp2p exchange: the keys of `[exchange]`. Light to import: no network is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from swarm.net.addresses import check, is_loopback

MAX_HEARTBEAT_S = 300.0


class P2PSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    listen: Annotated[tuple[str, ...], Field(min_length=1)] = ("/ip4/0.0.0.0/tcp/0",)
    """Multiaddrs to listen on; port 0 picks one, and keeps it for this data directory."""
    announce: tuple[str, ...] = ()
    """Multiaddrs to be dialled at, if they differ (NAT, containers)."""
    initial_peers: tuple[str, ...] = ()
    """Multiaddrs with /p2p/ id; dead ones are never fatal."""
    follow: PositiveInt = 8
    """Peers whose logs are pulled at a time."""
    heartbeat_s: Annotated[float, Field(gt=0, le=MAX_HEARTBEAT_S)] = 20.0
    """How often we say that we are alive; three times as long without a word, and we are taken for gone."""
    relay: bool = True
    """Use and offer libp2p relays, AutoNAT and port mapping."""

    def check_addresses(self) -> None:
        """Raises ConfigError naming the key and the address that cannot be one."""
        check("listen", self.listen, any_port=True)
        check("announce", self.announce)
        check("initial_peers", self.initial_peers, peer=True)

    @property
    def local(self) -> bool:
        """Reachable from this machine only."""
        return all(map(is_loopback, self.listen))
