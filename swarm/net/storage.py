"""What the directory keeps: a bounded number of announcements that pass the rules of `swarm.net.records`.

hivemind's own storage forgets a record when somebody stores an older one, keeps a heap entry for every refusal, takes
NaN for an expiry and has no bound; this one replaces it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.net.records import RecordRules
from swarm.types import Announcement, PeerId

MAX_RECORDS_PER_SHARD = 64
"""Four times what a shard is meant to hold. Checking so many signatures takes about 20 ms."""
MAX_HANDED_ON = MAX_RECORDS_PER_SHARD // 4
"""Places in a shard for what one peer stores of others' records."""
MAX_RECORDS = 4096

ASKING: ContextVar[PeerId | None] = ContextVar("ASKING", default=None)
"""Whose request this task serves; None for what we do ourselves."""


@dataclass(frozen=True, slots=True)
class _Kept:
    value: bytes
    announcement: Announcement
    stated_expiry: float
    """Unix seconds by whoever's clock."""
    until: float
    """Monotonic seconds, ours."""
    handed_on_by: PeerId | None
    """Who stored it, if that was neither its author nor we."""


class RecordStorage(DHTLocalStorage):
    """At most MAX_RECORDS_PER_SHARD announcements in each shard, MAX_RECORDS in all, and nothing else. Keeps no trace
    of what it refuses.

    When a shard is full, a newcomer takes the place of a random one (who renews it with the next heartbeat): whoever
    stores a lot gets a share of the places, never all of them. When all shards together are full, the one farthest from
    us loses a record, and the nearer ones, which others will look for here, lose none. Whoever hands on others' records
    has MAX_HANDED_ON places in a shard.
    """

    def __init__(
        self,
        rules: RecordRules,
        place: int,
        rng: random.Random,
        clock: Callable[[], float],
        heard: Callable[[Announcement], None],
    ) -> None:
        """`place`: ours in the DHT. `clock`: monotonic seconds. `heard` is told of every announcement that was new."""
        super().__init__(maxsize=MAX_RECORDS)
        self._rules, self._place, self._rng, self._clock, self._heard = rules, place, rng, clock, heard
        self._shards: dict[DHTID, dict[str, _Kept]] = {}
        self._count = 0

    def store(self, key: DHTID, value: object, expiration_time: float, subkey: object = None) -> bool:
        """Plain values, which have no subkey, have no place here."""
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: object, value: object, expiration_time: float) -> bool:
        """Whether a record at least as new as this one is kept now."""
        if not isinstance(value, bytes) or not isinstance(subkey, str):
            return False
        record = DHTRecord(key.to_bytes(), MSGPackSerializer.dumps(subkey), value, expiration_time)
        announcement = self._rules.read(record)
        if announcement is None:
            return False
        self._purge(key)
        old = self._shards.get(key, {}).get(subkey)
        if old is not None and old.announcement.issued_at >= announcement.issued_at:
            return True
        asking = ASKING.get()
        handed_on_by = None if asking == announcement.peer else asking
        if old is None and not self._make_room(key, handed_on_by):
            return False
        until = self._clock() + expiration_time - announcement.issued_at
        self._shards.setdefault(key, {})[subkey] = _Kept(value, announcement, expiration_time, until, handed_on_by)
        self._count += old is None
        self._heard(announcement)
        return True

    def announcements(self, key: DHTID) -> list[Announcement]:
        """What is kept under a key."""
        self._purge(key)
        return [kept.announcement for kept in self._shards.get(key, {}).values()]

    def get(self, key: DHTID) -> ValueWithExpiration | None:
        """A copy in hivemind's own type, which knows how to travel."""
        self._purge(key)
        shard = self._shards.get(key)
        if not shard:
            return None
        value = DictionaryDHTValue()
        value.frozen = True  # It would drop what has expired by a clock that is not its author's.
        for peer, kept in shard.items():
            value.store(peer, kept.value, kept.stated_expiry)
        return ValueWithExpiration(value, value.latest_expiration_time)

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration]]:
        for key in list(self._shards):
            value = self.get(key)
            if value is not None:
                yield key, value

    def clear(self) -> None:
        self._shards.clear()
        self._count = 0

    def __contains__(self, key: object) -> bool:
        return any(key == held for held, _ in self.items())

    def __len__(self) -> int:
        """In records."""
        for key in list(self._shards):
            self._purge(key)
        return self._count

    def __bool__(self) -> bool:
        return len(self) > 0

    def __delitem__(self, key: DHTID) -> None:
        self._count -= len(self._shards.pop(key, ()))

    def _make_room(self, key: DHTID, handed_on_by: PeerId | None) -> bool:
        """For one more record; False if there is none to be made."""
        shard = self._shards.get(key, {})
        others = [peer for peer, kept in shard.items() if handed_on_by and kept.handed_on_by == handed_on_by]
        if len(others) >= MAX_HANDED_ON:
            self._drop(key, self._rng.choice(others))
        elif len(shard) >= MAX_RECORDS_PER_SHARD:
            self._drop(key, self._rng.choice(list(shard)))
        elif self._count >= MAX_RECORDS and len(self) >= MAX_RECORDS:
            farthest = max(self._shards, key=self._place.__xor__)
            if self._place ^ farthest <= self._place ^ key:
                return False
            self._drop(farthest, self._rng.choice(list(self._shards[farthest])))
        return True

    def _drop(self, key: DHTID, peer: str) -> None:
        shard = self._shards[key]
        del shard[peer]
        self._count -= 1
        if not shard:
            del self._shards[key]

    def _purge(self, key: DHTID) -> None:
        now = self._clock()
        for peer in [peer for peer, kept in self._shards.get(key, {}).items() if kept.until < now]:
            self._drop(key, peer)
