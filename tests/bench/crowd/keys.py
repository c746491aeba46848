"""The simulated DHT: who is nearest to a key, what a lookup costs, what the replicas answer."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Callable
from functools import cache

from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord

from swarm.net import virtual_time
from swarm.net.lookup import MAX_TOLD, REPLICAS, nearest
from swarm.net.records import RecordRules, place_of
from swarm.net.shards import shard_key
from swarm.types import Announcement, PeerId
from tests.builders import MANIFEST, MEMBERSHIP

BITS = 160
SPLIT = 5
SAMPLES = 200
"""Lookups of which the cost is taken."""


@cache
def key_of(level: int, shard: int) -> DHTID:
    return DHTID.generate(source=shard_key(MANIFEST.id, level, shard))


class Places:
    """Who is alive, by place."""

    def __init__(self) -> None:
        self._places: list[int] = []
        self._peers: dict[int, PeerId] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, peer: PeerId) -> None:
        place = int(place_of(peer))
        insort(self._places, place)
        self._peers[place] = peer

    def remove(self, peer: PeerId) -> None:
        place = int(place_of(peer))
        del self._places[bisect_left(self._places, place)]
        del self._peers[place]

    def near(self, target: int, prefix: int) -> list[int]:
        """Whose first `prefix` bits are the target's."""
        low = (target >> (BITS - prefix)) << (BITS - prefix)
        return self._places[bisect_left(self._places, low) : bisect_left(self._places, low + (1 << (BITS - prefix)))]

    def holders(self, key: int) -> list[PeerId]:
        """The REPLICAS nearest to the key."""
        prefix = max((len(self._places) // (2 * REPLICAS)).bit_length(), 0)
        while prefix and len(self.near(key, prefix)) < REPLICAS:
            prefix -= 1
        return [self._peers[place] for place in sorted(self.near(key, prefix), key=key.__xor__)[:REPLICAS]]

    def known_near(self, place: int, target: int, rng: random.Random) -> list[PeerId]:
        """Whom the peer at `place` names: of those that share more with the target than itself, as many as a bucket of
        its table has, then of the others. Its buckets are split to a depth that SPLIT divides, as hivemind's are."""
        prefix = min(-(-(BITS - (place ^ target).bit_length() + 1) // SPLIT) * SPLIT, BITS)
        told: list[int] = []
        while prefix >= 0 and len(told) < MAX_TOLD:
            others = sorted(set(self.near(target, prefix)) - {place, *told}, key=target.__xor__)
            told += rng.sample(others, min(len(others), MAX_TOLD - len(told)))
            prefix -= 1
        return [self._peers[other] for other in told]

    def lookup_costs(self, lost: float, rng: random.Random) -> list[int]:
        """Peers asked in each of some lookups, by `swarm.net.lookup`, where an answer is lost with that probability
        each way."""

        async def measure() -> list[int]:
            costs = []
            for _ in range(SAMPLES):
                target, start = rng.getrandbits(BITS), rng.choice(self._places)
                asked: list[PeerId] = []

                async def ask(peer: PeerId, asked: list[PeerId] = asked, target: int = target) -> list[PeerId] | None:
                    asked.append(peer)
                    if rng.random() < 1 - (1 - lost) ** 2:
                        return None
                    return self.known_near(int(place_of(peer)), target, rng)

                await nearest(target, self.known_near(start, target, rng), ask, place_of, 15.0)
                costs.append(len(asked))
            return costs

        return virtual_time.run(measure())


class Believed(RecordRules):
    """Rules for records that nobody encoded or signed: a value names its author, whose newest announcement is known."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(MEMBERSHIP, clock)
        self._newest: dict[bytes, Announcement] = {}

    def value(self, announcement: Announcement) -> bytes:
        value = announcement.peer.encode()
        self._newest[value] = announcement
        return value

    def forget(self, peer: PeerId) -> None:
        self._newest.pop(peer.encode(), None)

    def read(self, record: DHTRecord) -> Announcement | None:
        return self._newest.get(record.value)
