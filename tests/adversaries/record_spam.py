"""The directory filled with what is none: junk, records for ever, in others' names, under others' keys, old ones."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from typing import Any

from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.utils import MSGPackSerializer

from swarm.errors import NetworkError
from swarm.net.records import RecordRules
from swarm.net.shards import shard_of
from swarm.types import Announcement, PeerId
from swarm.wire.codec import encode_announcement
from swarm.wire.identity import Identity
from tests.adversaries.scene import Peer
from tests.builders import MEMBERSHIP, announcement


async def spam(spammer: Peer, victim: PeerId, honest: Announcement, stores: int) -> int:
    """Sends that many stores straight to the victim; returns how many it took."""
    rng, rules = random.Random(0), RecordRules(MEMBERSHIP, time.time)
    mine, theirs = spammer.identity, honest.peer
    now = time.time()
    own = encode_announcement(replace(announcement(mine), issued_at=now), mine)
    faked = _in_the_name_of(honest, mine)
    taken = 0
    for number in range(stores):
        key = rules.key(0, shard_of(theirs))
        subkey: Any = theirs
        value, expires_at = rng.randbytes(500), now + 60.0
        match number % 6:
            case 0:  # a key that nobody asks for
                key, subkey = DHTID.generate(source=str(number)), str(number)
            case 1:  # junk under the honest peer's name
                pass
            case 2:  # an announcement in its name, that it did not sign
                value = faked
            case 3:  # the spammer's own, where another one's belongs
                value = own
            case 4:  # for ever
                key, subkey, value, expires_at = rules.key(0, shard_of(mine.peer_id)), mine.peer_id, own, math.inf
            case _:  # a plain value for the whole shard
                subkey = None
        taken += await _store(spammer, victim, key, subkey, value, expires_at)
    return taken


def _in_the_name_of(honest: Announcement, signer: Identity) -> bytes:
    """Its announcement, leading elsewhere: signed, by somebody else."""
    faked = encode_announcement(replace(honest, peer=signer.peer_id, issued_at=time.time(), head=1), signer)
    return faked.replace(signer.peer_id.encode(), honest.peer.encode())


async def _store(spammer: Peer, victim: PeerId, key: DHTID, subkey: Any, value: bytes, expires_at: float) -> bool:
    protocol = spammer.directory._dht._protocol
    call = protocol.call_store(
        PeerID.from_base58(victim),
        keys=[key],
        values=[MSGPackSerializer.dumps(value)],
        expiration_time=[expires_at],
        **({} if subkey is None else {"subkeys": [subkey]}),
    )
    try:
        return bool((await spammer.stack.call(call, 5.0, "spamming") or [False])[0])
    except NetworkError:
        return False
