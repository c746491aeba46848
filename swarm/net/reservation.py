"""A place at a relay, so that others can reach us through it (libp2p specs, relay/circuit-v2.md).

libp2p reserves by itself, but not before it is sure that nobody can dial us, which takes it minutes, and it tells
others only of relays with public addresses. Who knows that it cannot be dialled asks at once, here.

    -> HopMessage { type = 1: RESERVE (0) }                                     on a stream of protocol HOP, in front
    <- HopMessage { type = 1: STATUS (2), reservation = 3 { expire = 1 }, status = 5: OK (100) }      of it its length
"""

from __future__ import annotations

import asyncio
import logging
from typing import Never, Protocol

from swarm.errors import NetworkError, SwarmError, WireError
from swarm.net.addresses import peer_of
from swarm.net.multiaddr import read_varint
from swarm.types import PeerId

HOP = "/libp2p/circuit/relay/0.2.0/hop"
ANSWER_S = 10.0
MAX_ANSWER_BYTES = 4096
RENEW_S = 600.0
"""A relay keeps a place for an hour."""
RETRY_S = 30.0
_RESERVE = bytes([2, 0x08, 0])
_STATUS_FIELD, _OK = 5, 100
_VARINT, _LENGTH_DELIMITED = 0, 2

logger = logging.getLogger(__name__)


class Streams(Protocol):
    """What is asked of `swarm.net.stack.Stack`."""

    async def connect(self, peer: PeerId, addresses: tuple[str, ...]) -> None: ...

    async def open_stream(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


async def reserve(streams: Streams, relay: PeerId) -> None:
    """Returns when `relay`, to which there must be a connection, will relay for us as long as that lasts, for up to an
    hour. Raises NetworkError when it will not, WireError for what is no answer."""
    reader, writer = await streams.open_stream(relay, HOP)
    try:
        async with asyncio.timeout(ANSWER_S):
            writer.write(_RESERVE)
            await writer.drain()
            size = await _length(reader)
            if size > MAX_ANSWER_BYTES:
                raise WireError(f"{relay}: {size} bytes about a reservation")
            status = _status(await reader.readexactly(size))
    except (TimeoutError, OSError, EOFError) as error:
        raise NetworkError(f"{relay} gives no place at its relay: {error or 'no answer'}") from error
    finally:
        writer.close()
    if status != _OK:
        raise NetworkError(f"{relay} gives no place at its relay: status {status}")


async def keep_reserved(streams: Streams, relay: str) -> Never:
    """As long as it is awaited, whatever happens to the relay (an address with a peer id)."""
    while True:
        pause = RENEW_S
        try:
            await streams.connect(peer_of(relay), (relay,))
            await reserve(streams, peer_of(relay))
            logger.debug("%s relays for us", relay)
        except SwarmError as error:
            logger.debug("%s", error)
            pause = RETRY_S
        await asyncio.sleep(pause)


async def _length(reader: asyncio.StreamReader) -> int:
    prefix = b""
    while not prefix or prefix[-1] >= 0x80:
        prefix += await reader.readexactly(1)
        if len(prefix) > 3:
            raise WireError("a length that is too long")
    return read_varint(prefix, 0)[0]


def _status(message: bytes) -> int | None:
    """The status in a HopMessage; None if it has none. Raises WireError for what is no such message."""
    at, status = 0, None
    while at < len(message):
        tag, at = read_varint(message, at)
        value, at = read_varint(message, at)
        if tag & 7 == _LENGTH_DELIMITED:
            at += value
        elif tag & 7 != _VARINT:
            raise WireError("not an answer about a reservation")
        elif tag >> 3 == _STATUS_FIELD:
            status = value
    return status
