"""Multiaddrs in the daemon's own form: bytes (multiformats/multiaddr, README and protocols.csv).

hivemind's own codec writes the peer id of a relay as a CID, which the daemon refuses, so an address that leads through
a relay ("/ip4/.../p2p/RELAY/p2p-circuit") could never be dialled; and it raises whatever its parts raise.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import base58

from swarm.errors import WireError
from swarm.net.addresses import parse


@dataclass(frozen=True, slots=True)
class _Protocol:
    name: str
    code: int
    size: int
    """Of its value, in bytes; _VARIABLE stands for a length before it, 0 for no value at all."""
    pack: Callable[[str], bytes] = str.encode
    unpack: Callable[[bytes], str] = bytes.decode


_VARIABLE = -1
_MAX_VARINT_BYTES = 3
_HOST_NAMES = {"dns": 53, "dns4": 54, "dns6": 55}
_FLAGS = {"p2p-circuit": 290, "tls": 448, "quic": 460, "quic-v1": 461, "ws": 477, "wss": 478}


def _pack_port(value: str) -> bytes:
    return int(value).to_bytes(2, "big")


def _unpack_port(value: bytes) -> str:
    return str(int.from_bytes(value, "big"))


def _unpack_peer(value: bytes) -> str:
    return base58.b58encode(value).decode("ascii")


_PROTOCOLS = (
    _Protocol("ip4", 4, 4, lambda text: ipaddress.IPv4Address(text).packed, lambda b: str(ipaddress.IPv4Address(b))),
    _Protocol("ip6", 41, 16, lambda text: ipaddress.IPv6Address(text).packed, lambda b: str(ipaddress.IPv6Address(b))),
    _Protocol("tcp", 6, 2, _pack_port, _unpack_port),
    _Protocol("udp", 273, 2, _pack_port, _unpack_port),
    _Protocol("p2p", 421, _VARIABLE, base58.b58decode, _unpack_peer),
    *(_Protocol(name, code, _VARIABLE) for name, code in _HOST_NAMES.items()),
    *(_Protocol(name, code, 0) for name, code in _FLAGS.items()),
)
_BY_NAME = {protocol.name: protocol for protocol in _PROTOCOLS}
_BY_CODE = {protocol.code: protocol for protocol in _PROTOCOLS}


def pack(address: str) -> bytes:
    """ "/ip4/127.0.0.1/tcp/4001" as bytes. Raises WireError for what `swarm.net.addresses.parse` does not take."""
    parse(address)
    packed = bytearray()
    parts = iter(address.split("/")[1:])
    for name in parts:
        protocol = _BY_NAME[name]
        packed += _varint(protocol.code)
        if protocol.size:
            value = protocol.pack(next(parts))
            packed += (_varint(len(value)) if protocol.size == _VARIABLE else b"") + value
    return bytes(packed)


def unpack(data: bytes) -> str:
    """The text. Raises WireError for what is cut off, and for protocols that are unknown here (WebTransport)."""
    return "".join(_texts(data))


def _texts(data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        code, at = read_varint(data, at)
        protocol = _BY_CODE.get(code)
        if protocol is None:
            raise WireError(f"protocol {code} in the multiaddr {data[:64].hex()}")
        size = protocol.size
        if size == _VARIABLE:
            size, at = read_varint(data, at)
        if at + size > len(data):
            raise WireError(f"/{protocol.name} is cut off in the multiaddr {data[:64].hex()}")
        try:
            yield f"/{protocol.name}" + (f"/{protocol.unpack(data[at : at + size])}" if size else "")
        except ValueError as error:
            raise WireError(f"/{protocol.name} in the multiaddr {data[:64].hex()}: {error}") from error
        at += size


def _varint(value: int) -> bytes:
    packed = bytearray()
    while value > 0x7F:
        packed.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*packed, value])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The value, and where the next thing begins."""
    value = 0
    for shift, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise WireError(f"a number is cut off in the multiaddr {data[:64].hex()}")
