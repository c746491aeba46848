"""Dial-back: a peer asks another "can you reach me here?", because nobody can tell that of himself.

One exchange on a stream of protocol REACH, each a frame (`swarm.net.frames`), JSON of at most 1 KiB:

    asker   -> {"addresses": ["/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..."]}         at most 4; none to be only seen
    answer  -> {"reached": [...], "seen_at": "/ip4/203.0.113.7/tcp/51234", "time": 1700000000.5}

Whoever answers must not become a tool: it opens one TCP connection to each address that carries the asker's own peer id
and is a bare IP address and port, and only if that IP is public or the one that the asker's connection comes from (the
asker's own network, never ours). Names and relays are not followed. It sends 62 bytes there, for 5 s at most, and few a
minute: for each peer, and, because peer ids cost nothing, for all of them together.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from swarm.errors import SwarmError, WireError
from swarm.net.addresses import parse
from swarm.net.frames import read_frame, write_frame
from swarm.net.handshake import answers
from swarm.net.peertable import MAX_PEERS
from swarm.types import PeerId

REACH = "/swarm/1/reach"
MAX_ADDRESSES = 4
MAX_BYTES = 1024
DIAL_S = 5.0
REQUEST_S = 5.0
PEER_BURST, PEER_EVERY_S = 4.0, 30.0
"""So many questions of one peer at once, and one more every so often."""
TOTAL_BURST, TOTAL_EVERY_S = 16.0, 2.0

logger = logging.getLogger(__name__)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Address = Annotated[str, Field(max_length=256)]
Dial = Callable[[str, int, PeerId, float], Awaitable[bool]]
_EMBEDDING_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Question(_Message):
    addresses: Annotated[tuple[Address, ...], Field(max_length=MAX_ADDRESSES)]


class Reach(_Message):
    """What another peer says of us."""

    reached: Annotated[tuple[Address, ...], Field(max_length=MAX_ADDRESSES)]
    """Of the addresses that it was asked to try, those where we answered."""
    seen_at: Address
    """Where our connection comes from; empty if it does not know, or comes through a relay."""
    time: float
    """Its clock, in unix seconds."""


class Connections(Protocol):
    """What is asked of `swarm.net.stack.Stack`."""

    async def remote_addresses(self, peer: PeerId) -> Sequence[str]: ...

    async def open_stream(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


async def ask(connections: Connections, peer: PeerId, addresses: Sequence[str]) -> Reach:
    """What `peer`, to whom there must be a connection, finds when it tries `addresses` (at most 4, with our peer id).

    Takes up to DIAL_S + REQUEST_S. Raises NetworkError when it does not answer, WireError for what is no answer.
    """
    reader, writer = await connections.open_stream(peer, REACH)
    try:
        await write_frame(writer, _Question(addresses=tuple(addresses)).model_dump_json().encode())
        answer = Reach.model_validate_json(await read_frame(reader, MAX_BYTES, DIAL_S + REQUEST_S))
    except ValidationError as error:
        raise WireError(f"{peer}: {error.error_count()} faults in its answer") from error
    finally:
        writer.close()
    if not set(answer.reached) <= set(addresses):
        raise WireError(f"{peer}: it reached what it was not asked to")
    return answer


class DialBack:
    """Answers such questions."""

    def __init__(
        self,
        connections: Connections,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        dial: Dial = answers,
    ) -> None:
        """`wall_clock`: unix seconds; `clock`: monotonic ones. `dial`: as `swarm.net.handshake.answers`."""
        self._connections, self._wall_clock, self._dial = connections, wall_clock, dial
        self._allowance = _Allowance(clock)

    async def serve(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question. Whoever called closes the stream; who asks too often gets nothing else."""
        if not self._allowance.take(peer):
            logger.debug("%s: asks too often to be dialled", peer)
            return
        try:
            async with asyncio.timeout(REQUEST_S):
                asked = _Question.model_validate_json(await read_frame(reader, MAX_BYTES, REQUEST_S))
            seen = [place for place in await self._connections.remote_addresses(peer) if endpoint(place) is not None]
            reached = await self._reached(peer, asked.addresses, seen)
            answer = Reach(reached=reached, seen_at=seen[0] if seen else "", time=self._wall_clock())
            async with asyncio.timeout(REQUEST_S):
                await write_frame(writer, answer.model_dump_json().encode())
        except (SwarmError, OSError, ValidationError) as error:
            logger.debug("%s: not dialled: %s", peer, error)

    async def _reached(self, peer: PeerId, addresses: Iterable[str], seen: Iterable[str]) -> tuple[str, ...]:
        own = {place[0] for place in map(endpoint, seen) if place is not None}
        places = {address: permitted(address, peer, own) for address in addresses}
        dials = {address: self._dial(str(at[0]), at[1], peer, DIAL_S) for address, at in places.items() if at}
        found = await asyncio.gather(*dials.values())
        return tuple(address for address, answered in zip(dials, found, strict=True) if answered)


def endpoint(place: str) -> tuple[IPAddress, int] | None:
    """IP address and port of a place that is these two over TCP, and nothing else ("/ip4/203.0.113.7/tcp/4001")."""
    parts = place.split("/")
    if len(parts) != 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return None
    return ipaddress.ip_address(parts[2]), int(parts[4])


def permitted(address: str, peer: PeerId, own: Collection[IPAddress]) -> tuple[IPAddress, int] | None:
    """Where to dial for `peer`, which has connections from the addresses `own`; None if it may not be dialled there."""
    try:
        place, whose = parse(address)
    except WireError:
        return None
    at = endpoint(place)
    if at is None or whose != peer or not at[1]:
        return None
    same_machine = at[0].is_loopback and any(host.is_loopback for host in own)
    return at if at[0] in own or same_machine or is_public(at[0]) else None


def is_public(host: IPAddress) -> bool:
    """Whether it is one machine's address on the internet, whatever an IPv6 address may have inside."""
    if not host.is_global or host.is_multicast:
        return False
    if isinstance(host, ipaddress.IPv4Address):
        return True
    embeds = any(host in network for network in _EMBEDDING_IPV4)
    return not (embeds or host.ipv4_mapped or host.sixtofour or host.teredo)


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float

    def refill(self, now: float, burst: float, every_s: float) -> float:
        """What is in it now."""
        self.level, self.at = min(burst, self.level + (now - self.at) / every_s), now
        return self.level


class _Allowance:
    """Token buckets, one for each peer and one for all. Who is refused takes nothing from the others' share."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all = _Bucket(TOTAL_BURST, clock())
        self._peers: OrderedDict[PeerId, _Bucket] = OrderedDict()

    def take(self, peer: PeerId) -> bool:
        now = self._clock()
        bucket = self._peers.pop(peer, None) or _Bucket(PEER_BURST, now)
        self._peers[peer] = bucket
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        if min(bucket.refill(now, PEER_BURST, PEER_EVERY_S), self._all.refill(now, TOTAL_BURST, TOTAL_EVERY_S)) < 1:
            return False
        bucket.level -= 1
        self._all.level -= 1
        return True
