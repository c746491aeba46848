"""Multiaddrs as text: what they must look like where a person writes them or a stranger sends them, and free ports."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence

from swarm.errors import ConfigError, WireError
from swarm.types import PeerId
from swarm.wire.identity import public_key

_EXAMPLE = "/ip4/203.0.113.7/tcp/4001"
_DNS = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
MAX_PARTS = 24


def _dns(value: str) -> None:
    if not _DNS.fullmatch(value):
        raise ValueError(f"{value!r} is not a host name")


def _port(value: str) -> None:
    if not (value.isascii() and value.isdecimal() and int(value) < 65536):
        raise ValueError(f"{value!r} is not a port")


def _peer(value: str) -> None:
    public_key(PeerId(value))


_HOSTS: dict[str, Callable[[str], object]] = {
    "ip4": ipaddress.IPv4Address,
    "ip6": ipaddress.IPv6Address,
    "dns": _dns,
    "dns4": _dns,
    "dns6": _dns,
}
_VALUES: dict[str, Callable[[str], object]] = {**_HOSTS, "tcp": _port, "udp": _port, "p2p": _peer}
_FLAGS = frozenset({"quic", "quic-v1", "ws", "wss", "tls", "p2p-circuit"})


def parse(address: str) -> tuple[str, PeerId | None]:
    """ "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..." as place and peer; the peer is None where it names none.

    Raises WireError for anything that is not a host, a transport and what may follow.
    """
    parts = address.split("/")
    if len(parts) < 5 or len(parts) > MAX_PARTS or parts[0] or parts[1] not in _HOSTS or parts[3] not in ("tcp", "udp"):
        raise WireError(f"{address[:100]!r} is not a multiaddr such as {_EXAMPLE}")
    names = iter(parts[1:])
    for name in names:
        if name in _FLAGS:
            continue
        check_value = _VALUES.get(name)
        if check_value is None:
            raise WireError(f"{name[:32]!r} is not a protocol of a multiaddr such as {_EXAMPLE}")
        try:
            check_value(next(names, ""))
        except ValueError as error:
            raise WireError(f"/{name}: {error}") from error
    place, _, peer = address.rpartition("/p2p/")
    return (place, PeerId(peer)) if peer and "/" not in peer else (address, None)


def peer_of(address: str) -> PeerId:
    """Whose address it is. Raises WireError if it is none, or nobody's."""
    _, peer = parse(address)
    if peer is None:
        raise WireError(f"{address!r} does not end with /p2p/ and a peer id")
    return peer


def is_loopback(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


def check(key: str, addresses: Iterable[str], *, peer: bool = False, any_port: bool = False) -> None:
    """Raises ConfigError that names the key, the first address that will not do, and one that would."""
    wanted = _EXAMPLE + ("/p2p/12D3KooW..." if peer else "")
    for address in addresses:
        try:
            if peer:
                peer_of(address)
            elif parse(address)[1] is not None:
                raise WireError("a peer id belongs to others' addresses only")
            if wildcard(address) is not None and not any_port:
                raise WireError("port 0 cannot be dialled")
        except WireError as error:
            raise ConfigError(f"exchange.{key}: {address!r} must be a multiaddr such as {wanted}: {error}") from error


def wildcard(address: str) -> str | None:
    """The transport ("tcp", "udp") whose port is 0, if it is."""
    transport, port = address.split("/")[3:5]
    return transport if int(port) == 0 else None


def with_port(address: str, remembered: int) -> str:
    """`address`, its port 0 replaced by one that is free now: the remembered one if it is (0 for none)."""
    if wildcard(address) is None:
        return address
    parts = address.split("/")
    parts[4] = str(_free_port(parts, remembered) or _free_port(parts, 0))
    return "/".join(parts)


def with_ports(addresses: Iterable[str], remembered: Callable[[str], int]) -> tuple[str, ...]:
    """Each `with_port`, by the port that is remembered for it; those of one transport share a port where it is free, so
    that one rule of a firewall is enough for IPv4 and IPv6."""
    shared: dict[str | None, int] = {}
    chosen = []
    for address in addresses:
        transport = wildcard(address)
        chosen.append(with_port(address, shared.get(transport) or remembered(address)))
        shared.setdefault(transport, port_of(chosen[-1]))
    return tuple(chosen)


def usable(addresses: Sequence[str]) -> tuple[str, ...]:
    """Without those of IPv6 where the machine has none, if any others are left."""
    if has_ipv6():
        return tuple(addresses)
    return tuple(address for address in addresses if not address.startswith("/ip6/")) or tuple(addresses)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def is_free(address: str) -> bool:
    """Whether we could listen there now. Port 0 is, where there is such an address at all."""
    return _free_port(address.split("/"), port_of(address)) > 0


def port_of(address: str) -> int:
    return int(address.split("/")[4])


def _free_port(parts: list[str], wanted: int) -> int:
    """`wanted`, or any for 0; 0 if it is taken. Bound without SO_REUSEPORT, which the daemon uses."""
    protocol, host, transport = parts[1:4]
    family = socket.AF_INET6 if protocol == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM) as probe:
        try:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # As the daemon has it.
            if transport == "tcp":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, wanted))
        except OSError:
            return 0
        return probe.getsockname()[1]
