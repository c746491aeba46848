"""One operator, many identities: their groups through one log, their announcements through one DHT node."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace

from swarm.net.records import RecordRules
from swarm.net.shards import shard_of
from swarm.types import SignedGroup
from swarm.wire.codec import encode_announcement
from swarm.wire.identity import Identity
from tests.adversaries.made import made
from tests.adversaries.scene import HEARTBEAT_S, Peer
from tests.builders import MEMBERSHIP, announcement, cell_value

#: "I am good at what nobody else is."
BOAST = (cell_value("test/echo", 1.0, mass=1e6),)


def identities(count: int = 50) -> list[Identity]:
    return [Identity(hashlib.sha256(f"sybil {number}".encode()).digest()) for number in range(count)]


def groups(authors: Sequence[Identity], each: int) -> list[SignedGroup]:
    """Right answers, by turns."""
    return [made(author, index) for index in range(each) for author in authors]


async def keep_announced(operator: Peer, authors: Sequence[Identity]) -> None:
    """Never returns. Stores an announcement of each where it belongs, with every heartbeat, all with an address of the
    operator's."""
    rules = RecordRules(MEMBERSHIP, time.time)
    while True:
        for author in authors:
            now = time.time()
            said = announcement(author, values=BOAST, head=1000)
            said = replace(said, addresses=operator.stack.addresses, issued_at=now)
            key = rules.key(0, shard_of(author.peer_id))
            value = encode_announcement(said, author)
            await operator.directory._dht.store(key, author.peer_id, value, now + 3 * HEARTBEAT_S)
        await asyncio.sleep(HEARTBEAT_S)
