"""What the directory keeps: signed announcements, a bounded number of them, under a few keys that every node knows.

"<swarm id>:announce:<shard>" holds a dictionary of peer id -> announcement; a peer's shard follows from its id. A
record is believed only if its author signed it for this swarm and it lies where it belongs; of two, the one that was
issued later is kept, whatever they say about their expiry, which nobody signs.

hivemind's own storage forgets a record when somebody stores an older one, keeps a heap entry for every refusal, takes
NaN for an expiry and has no bound; this one replaces it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.errors import SignatureMismatch, WireError
from swarm.membership import Membership
from swarm.net.settings import MAX_HEARTBEAT_S
from swarm.types import Announcement, PeerId
from swarm.wire.codec import MAX_ANNOUNCEMENT_BYTES, decode_announcement

SHARDS = 8
MAX_RECORDS_PER_SHARD = 256
"""Checking so many signatures takes about 50 ms. In a larger swarm the directory is a random sample of it."""
MAX_LIFETIME_S = 3 * MAX_HEARTBEAT_S
_CACHED = 4 * SHARDS * MAX_RECORDS_PER_SHARD
_BIN8, _BIN16 = 0xC4, 0xC5


def shard_of(peer: PeerId) -> int:
    return hashlib.sha256(peer.encode()).digest()[0] % SHARDS


def shard_key(swarm: str, shard: int) -> str:
    return f"{swarm}:announce:{shard}"


def place_of(peer: PeerId) -> DHTID:
    """Where a peer sits in the DHT. It follows from its key, so that nobody can choose to sit next to a shard."""
    return DHTID.generate(source=f"swarm:{peer}")


class RecordRules(RecordValidatorBase):
    """What may be stored and what is believed. Pure but for the clock (unix seconds) and a bounded memory of signatures
    that were found good."""

    def __init__(self, membership: Membership, clock: Callable[[], float]) -> None:
        self.swarm = membership.swarm
        self._membership = membership
        self.clock = clock
        self.shards = {DHTID.generate(source=shard_key(self.swarm, shard)).to_bytes(): shard for shard in range(SHARDS)}
        self._checked: OrderedDict[bytes, Announcement] = OrderedDict()

    def validate(self, record: DHTRecord) -> bool:
        return self.read(record) is not None

    def read(self, record: DHTRecord) -> Announcement | None:
        """The announcement, or None if it is not one or not to be believed. One that has expired passes: hivemind
        throws a whole answer away for one bad record, and records expire on the way.
        """
        if not math.isfinite(record.expiration_time) or record.expiration_time > self.clock() + MAX_LIFETIME_S:
            return None
        data = _unpacked(record.value)
        announcement = None if data is None else self.announcement(data)
        if (
            announcement is None
            or not self.of_a_member(announcement)
            or self.shards.get(record.key) != shard_of(announcement.peer)
            or record.subkey != MSGPackSerializer.dumps(announcement.peer)
            or not 0 < record.expiration_time - announcement.issued_at <= MAX_LIFETIME_S
        ):
            return None
        return announcement

    def of_a_member(self, announcement: Announcement) -> bool:
        claimed, peer, proof = announcement.swarm, announcement.peer, announcement.membership
        return self._membership.complaint(claimed, peer, proof) is None

    def announcement(self, data: bytes) -> Announcement | None:
        """Of any swarm, if its author signed it."""
        known = self._checked.get(data)
        if known is not None:
            self._checked.move_to_end(data)
            return known
        try:
            announcement = decode_announcement(data)
        except (WireError, SignatureMismatch):
            return None
        self._checked[data] = announcement
        if len(self._checked) > _CACHED:
            self._checked.popitem(last=False)
        return announcement


def _unpacked(value: bytes) -> bytes | None:
    """The bytes in hivemind's envelope: one MessagePack byte string. By hand: its own reader takes all sorts."""
    if not 3 <= len(value) <= MAX_ANNOUNCEMENT_BYTES + 3 or value[0] not in (_BIN8, _BIN16):
        return None
    header = 2 if value[0] == _BIN8 else 3
    data = value[header:]
    return data if int.from_bytes(value[1:header], "big") == len(data) else None


@dataclass(frozen=True, slots=True)
class _Kept:
    value: bytes
    expires_at: float
    issued_at: float


class RecordStorage(DHTLocalStorage):
    """At most MAX_RECORDS_PER_SHARD announcements in each shard, and nothing else. Keeps no trace of what it refuses.

    When a shard is full, a newcomer takes the place of a random one (who renews it with the next heartbeat): whoever
    stores a lot gets a share of the places, never all of them.
    """

    def __init__(self, rules: RecordRules, rng: random.Random, heard: Callable[[Announcement], None]) -> None:
        """`heard` is told of every announcement that was new."""
        super().__init__(maxsize=SHARDS * MAX_RECORDS_PER_SHARD)
        self._rules, self._rng, self._heard = rules, rng, heard
        self._shards: dict[DHTID, dict[str, _Kept]] = {}

    def store(self, key: DHTID, value: object, expiration_time: float, subkey: object = None) -> bool:
        """Plain values, which have no subkey, have no place here."""
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: object, value: object, expiration_time: float) -> bool:
        """Whether a record at least as new as this one is kept now."""
        if not isinstance(value, bytes) or not isinstance(subkey, str) or expiration_time < self._rules.clock():
            return False
        record = DHTRecord(key.to_bytes(), MSGPackSerializer.dumps(subkey), value, expiration_time)
        announcement = self._rules.read(record)
        if announcement is None:
            return False
        shard = self._shards.setdefault(key, {})
        self._purge(shard)
        old = shard.get(subkey)
        if old is not None and old.issued_at >= announcement.issued_at:
            return True
        if old is None and len(shard) >= MAX_RECORDS_PER_SHARD:
            del shard[self._rng.choice(list(shard))]
        shard[subkey] = _Kept(value, expiration_time, announcement.issued_at)
        self._heard(announcement)
        return True

    def get(self, key: DHTID) -> ValueWithExpiration | None:
        """A copy in hivemind's own type, which knows how to travel."""
        shard = self._shards.get(key, {})
        self._purge(shard)
        if not shard:
            return None
        value = DictionaryDHTValue()
        with value.freeze():  # Which is only to say that its clock is not asked.
            for peer, kept in shard.items():
                value.store(peer, kept.value, kept.expires_at)
        return ValueWithExpiration(value, value.latest_expiration_time)

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration]]:
        for key in list(self._shards):
            value = self.get(key)
            if value is not None:
                yield key, value

    def clear(self) -> None:
        self._shards.clear()

    def __contains__(self, key: object) -> bool:
        return any(key == held for held, _ in self.items())

    def __len__(self) -> int:
        """In records."""
        for shard in self._shards.values():
            self._purge(shard)
        return sum(map(len, self._shards.values()))

    def __bool__(self) -> bool:
        return len(self) > 0

    def __delitem__(self, key: DHTID) -> None:
        self._shards.pop(key, None)

    def _purge(self, shard: dict[str, _Kept]) -> None:
        now = self._rules.clock()
        for peer in [peer for peer, kept in shard.items() if kept.expires_at < now]:
            del shard[peer]
