"""hivemind's DHT node with bounds on what it is asked, what it believes and whom it asks. Knows no announcements' use.

hivemind (1.1.12, pinned) answers others and keeps the routing table; rules and storage are ours (`swarm.net.records`,
`swarm.net.storage`), and so is looking for something (`swarm.net.lookup`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2 as untyped_pb2
from hivemind.utils import MSGPackSerializer

from swarm.errors import NetworkError
from swarm.net.holders import Holders
from swarm.net.lookup import MAX_TOLD, REPLICAS, nearest
from swarm.net.peertable import MAX_PEERS
from swarm.net.records import RecordRules, place_of
from swarm.net.routes import bind_routes
from swarm.net.stack import Stack
from swarm.net.storage import ASKING, MAX_RECORDS_PER_SHARD, RecordStorage
from swarm.types import Announcement, PeerId
from swarm.wire.codec import MAX_ANNOUNCEMENT_BYTES

CALL_TIMEOUT_S = 15.0
ANSWER_TIMEOUT_S = 5.0
"""One peer's, in a lookup: another is asked instead."""
MAX_REQUEST_BYTES = {"rpc_ping": 1024, "rpc_find": 256, "rpc_store": 1 << 17}
"""We look for one key of 20 bytes at a time. A store is one announcement, or what a newcomer should hold."""
MIN_REQUEST_BYTES = {"rpc_find": 1024}
"""What a request is charged at least: a find is answered with a whole shard."""
METER_BURST_BYTES, METER_BYTES_PER_S = 1 << 18, 1 << 16
"""Of DHT requests, per peer: a record costs us a signature check."""
MAX_SHARD_BYTES = MAX_RECORDS_PER_SHARD * (MAX_ANNOUNCEMENT_BYTES + 128)
_MAX_ID_BYTES = 64

logger = logging.getLogger(__name__)
dht_pb2: Any = untyped_pb2  # Generated without type stubs.


class DHT:
    """One stack's node. Made by `open_dht`."""

    def __init__(self, stack: Stack, node: DHTNode, rules: RecordRules, storage: RecordStorage) -> None:
        self._stack, self._rules, self._storage = stack, rules, storage
        self._protocol: Any = node.protocol
        """hivemind types its attributes as None."""
        self._holders = Holders(lambda: asyncio.get_running_loop().time())

    @property
    def routes(self) -> int:
        """How many peers we could ask."""
        return len(self._protocol.routing_table.uid_to_peer_id)

    @property
    def records(self) -> int:
        """That are held for others."""
        return len(self._storage)

    async def greet(self, peer: PeerId, address: str) -> None:
        """Connects and lets it know us. Raises NetworkError."""
        await self._stack.connect(peer, [address])
        ping = self._protocol.call_ping(PeerID.from_base58(peer))
        if await self._stack.call(ping, CALL_TIMEOUT_S, f"greeting {peer}") is None:
            raise NetworkError(f"{peer} does not answer")

    async def read(self, key: DHTID, tell: Callable[[Announcement, PeerId], None]) -> set[PeerId] | None:
        """Hands every announcement that lies there to `tell`, with who told it, as the answers come; returns whose
        there are, those that we keep ourselves included; None if nobody answered."""
        found = {announcement.peer for announcement in self._storage.announcements(key)}

        def told(announcement: Announcement, by: PeerId) -> None:
            found.add(announcement.peer)
            tell(announcement, by)

        return found if await self._lookup(key, told) else None

    async def store(self, key: DHTID, peer: PeerId, value: bytes, expires_at: float) -> None:
        """With the REPLICAS nearest to the key, who are looked up now and then; that may include us."""
        holders = self._holders.of(key) or await self._find_holders(key)
        packed = MSGPackSerializer.dumps(value)
        if self._stack.peer_id in holders:
            self._storage.store_subkey(key, peer, packed, expires_at)
        others = [holder for holder in holders if holder != self._stack.peer_id]
        stored = await asyncio.gather(*(self._store_at(it, key, peer, packed, expires_at) for it in others))
        self._holders.missed(key, stored.count(False))

    async def settle(self) -> None:
        """Lets those know us that sit next to us: others who look for what we keep have to hear of us from them."""
        await self._lookup(place_of(self._stack.peer_id), lambda announcement, by: None)

    async def _find_holders(self, key: DHTID) -> Sequence[PeerId]:
        peers = await self._lookup(key, lambda announcement, by: None)
        holders = sorted([*peers, self._stack.peer_id], key=lambda holder: place_of(holder) ^ key)[:REPLICAS]
        if len(holders) == REPLICAS:  # or we know hardly anybody, and will know more by the next time
            self._holders.found(key, holders)
        return holders

    async def _store_at(self, holder: PeerId, key: DHTID, peer: PeerId, packed: bytes, expires_at: float) -> bool:
        """Whether it answered."""
        call = self._protocol.call_store(
            PeerID.from_base58(holder), keys=[key], values=[packed], expiration_time=[expires_at], subkeys=[peer]
        )
        try:
            return await self._stack.call(call, ANSWER_TIMEOUT_S, f"storing at {holder}") is not None
        except NetworkError as error:
            logger.debug("%s", error)
            return False

    async def _lookup(self, key: DHTID, tell: Callable[[Announcement, PeerId], None]) -> list[PeerId]:
        """The peers nearest to the key that answered."""
        table = self._protocol.routing_table
        known = [peer for _, peer in table.get_nearest_neighbors(key, MAX_TOLD, exclude=self._protocol.node_id)]

        async def ask(peer: PeerId) -> Sequence[PeerId] | None:
            return await self._find(peer, key, tell)

        start = [PeerId(peer.to_base58()) for peer in known]
        return await nearest(key, start, ask, place_of, CALL_TIMEOUT_S)

    async def _find(
        self, peer: PeerId, key: DHTID, tell: Callable[[Announcement, PeerId], None]
    ) -> Sequence[PeerId] | None:
        """What one peer says of a key: announcements that pass the rules, and whom it knows near it; None if nothing
        that makes sense."""
        protocol, remote = self._protocol, PeerID.from_base58(peer)
        request = dht_pb2.FindRequest(keys=[key.to_bytes()], peer=protocol.node_info)
        call = protocol.get_stub(remote).rpc_find(request, timeout=ANSWER_TIMEOUT_S)
        try:
            answer = await self._stack.call(call, ANSWER_TIMEOUT_S, f"asking {peer}")
            [result] = answer.results
            others = [PeerId(PeerID(raw).to_base58()) for raw in result.nearest_peer_ids[:MAX_TOLD] if _is_id(raw)]
            if result.type == dht_pb2.FOUND_DICTIONARY and len(result.value) <= MAX_SHARD_BYTES:
                for announcement in self._read(key, MSGPackSerializer.loads(result.value)):
                    tell(announcement, peer)
        # A stranger's bytes, read by hivemind's serializer, which raises what it likes: it is an answer or none.
        except Exception as error:  # noqa: BLE001
            logger.debug("%s about %s: %r", peer, key, error)
            others = None
        answered = others is not None
        await protocol.update_routing_table(place_of(peer), remote, responded=answered)
        return None if others is None else [other for other in others if other != self._stack.peer_id]

    def _read(self, key: DHTID, shard: Any) -> list[Announcement]:
        """Those of a shard's records that pass the rules; the others spoil nothing."""
        if not isinstance(shard, DictionaryDHTValue) or len(shard.data) > MAX_RECORDS_PER_SHARD:
            return []
        read = (
            self._rules.read(DHTRecord(key.to_bytes(), MSGPackSerializer.dumps(subkey), value, expires_at))
            for subkey, (value, expires_at) in shard.data.items()
            if isinstance(value, bytes) and isinstance(expires_at, float)
        )
        return [announcement for announcement in read if announcement is not None]


@asynccontextmanager
async def open_dht(
    stack: Stack, rules: RecordRules, rng: random.Random, heard: Callable[[Announcement], None]
) -> AsyncIterator[DHT]:
    """`heard` is told what peers store with us. Raises NetworkError."""
    place = place_of(stack.peer_id)
    create = DHTNode.create(
        p2p=stack.p2p,
        node_id=place,
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
    node: Any = await stack.call(create, CALL_TIMEOUT_S, "starting the DHT")
    loop = asyncio.get_running_loop()
    storage = RecordStorage(rules, place, rng, loop.time, heard)
    node.protocol.storage = node.protocol.cache = storage
    bind_routes(node.protocol, loop.time)
    meter = _Meter(loop.time)

    def admits(method: str, peer: PeerId, size: int) -> bool:
        ASKING.set(peer)
        return meter.admits(method, peer, size)

    stack.meter_unary(admits)
    try:
        yield DHT(stack, node, rules, storage)
    finally:
        # Not its `shutdown`, which waits for a daemon that may be gone; its handlers go with the stack.
        node.is_alive = False


def _is_id(raw: bytes) -> bool:
    return 0 < len(raw) <= _MAX_ID_BYTES


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
        cost = max(size, MIN_REQUEST_BYTES.get(method, 128))
        admitted = level >= cost
        self._buckets[peer] = (level - cost if admitted else level, now)
        if len(self._buckets) > MAX_PEERS:
            self._buckets.popitem(last=False)
        return admitted
