"""The directory: who is alive, by a DHT that runs in our own event loop. The only home of hivemind's DHT node.

Three things go on as long as the stack lives, none of which waits for another: our announcement is renewed, the others'
are read, and known addresses are tried: all of them while we are alone, one now and then when we are not, so that
halves of a swarm that lost each other meet again.

A value is believed if `swarm.net.records` says so, wherever it comes from. What peers store with us is news at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID

from swarm.errors import NetworkError, SwarmError
from swarm.membership import Membership
from swarm.net.addressbook import AddressBook
from swarm.net.addresses import peer_of
from swarm.net.peertable import HEARTBEATS, MAX_PEERS, PeerTable
from swarm.net.records import SHARDS, RecordRules, RecordStorage, place_of, shard_key, shard_of
from swarm.net.stack import Stack
from swarm.types import Announcement, PeerId
from swarm.wire.codec import MAX_ADDRESSES, encode_announcement
from swarm.wire.identity import Identity

CALL_TIMEOUT_S = 15.0
FAST_READ_S = 1.0
"""How often the directory is read while nobody is known."""
SMALL_SWARM = 64
"""With more peers than this, a reading covers only FEW_SHARDS shards: its cost stays the same."""
FEW_SHARDS = 2
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
DIALS_AT_ONCE = 8
MAX_ROUTES = 2048
MAX_REQUEST_BYTES = {"rpc_ping": 1024, "rpc_find": 4096, "rpc_store": 1 << 18}
"""A find names at most a few keys of 20 bytes; a store is one announcement, or what a newcomer should hold."""
METER_BURST_BYTES, METER_BYTES_PER_S = 1 << 19, 1 << 16
"""Of DHT requests, per peer: a record costs us a signature check."""
MIN_REQUEST_BYTES = 128

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """What a node is in the directory, and what it keeps when a stack breaks and another is opened."""

    membership: Membership
    identity: Identity
    heartbeat_s: float
    seeds: tuple[str, ...]
    """Addresses with peer ids, from the config."""
    table: PeerTable
    book: AddressBook
    announcement: Callable[[], Announcement | None]
    """What to announce now; None is nothing yet. Its address and time are filled in here."""
    renewed: asyncio.Event
    """Set to announce at once."""
    rng: random.Random
    clock: Callable[[], float]
    """Unix seconds."""


class Directory:
    """One stack's part in the DHT. Made by `open_directory`; `run` does the work."""

    def __init__(self, stack: Stack, node: DHTNode, rules: RecordRules, member: Participant) -> None:
        self._stack, self._node, self._rules, self._member = stack, node, rules, member
        self._read_now = asyncio.Event()

    async def run(self) -> None:
        """Never returns, and raises nothing for the network's sake."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce())
            group.create_task(self._read())
            group.create_task(self._meet())

    async def _announce(self) -> None:
        member = self._member
        while True:
            member.renewed.clear()
            current = member.announcement()
            if current is not None:
                try:
                    await self._store(current)
                except SwarmError as error:
                    logger.info("announcement failed, the next will follow: %s", error)
            await _either(member.renewed, member.heartbeat_s * member.rng.uniform(0.9, 1.0))

    async def _store(self, announcement: Announcement) -> None:
        member = self._member
        addresses = (announcement.addresses or self._stack.addresses)[:MAX_ADDRESSES]
        current = replace(
            announcement,
            addresses=addresses,
            issued_at=member.clock(),
            membership=member.membership.proof(announcement.peer),
        )
        key = shard_key(current.swarm, shard_of(current.peer))
        value = encode_announcement(current, member.identity)
        expires_at = current.issued_at + HEARTBEATS * member.heartbeat_s
        store = self._node.store(key, value, expires_at, subkey=current.peer)
        await self._stack.call(store, CALL_TIMEOUT_S, "announcing ourselves")

    async def _read(self) -> None:
        member = self._member
        while True:
            self._read_now.clear()
            try:
                await self._read_shards()
            except NetworkError as error:
                logger.info("directory was not read: %s", error)
            pause = member.heartbeat_s / 2
            if not member.table.alive():
                pause = min(pause, FAST_READ_S)
            await _either(self._read_now, pause * member.rng.uniform(0.8, 1.2))

    async def _read_shards(self) -> None:
        member = self._member
        everything = len(member.table.alive()) < SMALL_SWARM
        shards = range(SHARDS) if everything else member.rng.sample(range(SHARDS), FEW_SHARDS)
        # hivemind counts a node's failures for ever.
        self._node.blacklist.clear()
        # With an infinite expiry nothing is good enough to stop at the first answer, which would be our own storage.
        keys = [shard_key(member.membership.swarm, shard) for shard in shards]
        found: dict[str, Any] = await self._stack.call(
            self._node.get_many(keys, math.inf), CALL_TIMEOUT_S, "reading the directory"
        )
        for records in found.values():
            if records is not None and isinstance(records.value, dict):
                self._believe(records.value)
        for announcement, _ in member.table.alive():
            for address in announcement.addresses[:1]:
                with suppress(SwarmError):
                    member.book.remember(address, announcement.peer)
        member.book.save()

    def _believe(self, records: dict[Any, Any]) -> None:
        """What hivemind hands out has passed the rules, but it has also been unwrapped."""
        for record in records.values():
            announcement = self._rules.announcement(record.value) if isinstance(record.value, bytes) else None
            if announcement is not None and self._rules.of_a_member(announcement):
                self._member.table.announced(announcement)

    async def _meet(self) -> None:
        """Tries known addresses, again and again, less and less often while that is in vain."""
        member = self._member
        delay = FIRST_RETRY_S
        while True:
            alone = not self._routes
            seeds = member.rng.sample(member.seeds, min(DIALS_AT_ONCE, len(member.seeds)))
            known = list(dict.fromkeys([*seeds, *member.book.peers[:DIALS_AT_ONCE]]))
            met = await self._greet_all(known if alone else member.rng.sample(known, min(1, len(known))))
            if met and alone:
                logger.info("reached %d of %d known addresses", met, len(known))
                member.renewed.set()
                self._read_now.set()
            if self._routes:
                delay = LAST_RETRY_S
            elif alone:
                delay = min(2 * delay, LAST_RETRY_S)
            else:
                delay = FIRST_RETRY_S
            await asyncio.sleep(delay * member.rng.uniform(0.5, 1.0))

    async def _greet_all(self, addresses: list[str]) -> int:
        """How many of them answered."""
        return sum(await asyncio.gather(*map(self._greet, addresses)))

    async def _greet(self, address: str) -> bool:
        peer = peer_of(address)
        if peer == self._stack.peer_id:
            return False
        try:
            await self._stack.connect(peer, [address])
            ping = self._node.protocol.call_ping(PeerID.from_base58(peer))
            if await self._stack.call(ping, CALL_TIMEOUT_S, f"greeting {peer}") is None:
                return False
        except NetworkError as error:
            logger.debug("%s: %s", address, error)
            return False
        self._member.book.remember(address, peer)
        return True

    @property
    def _routes(self) -> int:
        return len(self._node.protocol.routing_table.uid_to_peer_id)


@asynccontextmanager
async def open_directory(stack: Stack, member: Participant) -> AsyncIterator[Directory]:
    """A DHT node on `stack`, with our rules, our storage, and bounds on what it is asked. Raises NetworkError."""
    rules = RecordRules(member.membership, member.clock)
    create = DHTNode.create(
        p2p=stack.p2p,
        node_id=place_of(stack.peer_id),
        record_validator=rules,
        # The storage is all there is: hivemind's caches have no bound.
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
        cache_refresh_before_expiry=0,
        backoff_rate=1.0,
        ensure_bootstrap_success=False,
        strict=False,
    )
    node = await stack.call(create, CALL_TIMEOUT_S, "starting the DHT")
    node.protocol.storage = node.protocol.cache = RecordStorage(rules, member.rng, member.table.announced)
    _bind_routes(node)
    stack.meter_unary(_Meter(asyncio.get_running_loop().time).admits)
    try:
        yield Directory(stack, node, rules, member)
    finally:
        # Not its `shutdown`, which waits for a daemon that may be gone; its handlers go with the stack.
        node.is_alive = False


def _bind_routes(node: DHTNode) -> None:
    """Lets nobody into the routing table at a place that does not follow from its peer id, nor more than MAX_ROUTES."""
    update = node.protocol.update_routing_table
    routes = node.protocol.routing_table.uid_to_peer_id

    async def update_if_bound(node_id: Any, peer_id: PeerID, responded: bool = True) -> None:
        if responded and node_id is not None:
            place = place_of(PeerId(peer_id.to_base58()))
            if node_id != place or (place not in routes and len(routes) >= MAX_ROUTES):
                return
        await update(node_id, peer_id, responded=responded)

    node.protocol.update_routing_table = update_if_bound


class _Meter:
    """A token bucket of bytes for each peer, and a size limit for each method."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()

    def admits(self, method: str, peer: PeerId, size: int) -> bool:
        if size > MAX_REQUEST_BYTES.get(method, 0):
            return False
        now = self._clock()
        level, at = self._buckets.pop(peer, (float(METER_BURST_BYTES), now))
        level = min(METER_BURST_BYTES, level + (now - at) * METER_BYTES_PER_S)
        cost = max(size, MIN_REQUEST_BYTES)
        admitted = level >= cost
        self._buckets[peer] = (level - cost if admitted else level, now)
        if len(self._buckets) > MAX_PEERS:
            self._buckets.popitem(last=False)
        return admitted


async def _either(event: asyncio.Event, timeout: float) -> None:
    """Returns when the event is set, or after `timeout` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
