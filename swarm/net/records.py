"""What the directory believes: signed announcements, under keys that every node can name.

"<swarm id>:announce:<level>:<shard>" holds a dictionary of peer id -> announcement; a peer's shard follows from its id
(`swarm.net.shards`). A record is believed only if its author signed it for this swarm and it lies where it belongs; of
two, the one that was issued later is kept, whatever they say about their expiry, which nobody signs.

Clocks differ. A record says by its author's clock when it was issued and when it expires; only the difference counts,
and it runs from the moment when the record came, by our own monotonic clock. What was issued at a time too far from
ours is refused, or one could be replayed for ever: an author's clock may be `max_skew_s` off, and so may be ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils import MSGPackSerializer

from swarm.errors import SignatureMismatch, WireError
from swarm.membership import Membership
from swarm.net.settings import MAX_HEARTBEAT_S
from swarm.net.shards import LEVELS, shard_key, shard_of
from swarm.types import Announcement, PeerId
from swarm.wire.codec import MAX_ANNOUNCEMENT_BYTES, decode_announcement

MAX_LIFETIME_S = 3 * MAX_HEARTBEAT_S
MAX_SKEW_S = 600.0
_CACHED, _KEYS, _OFFSETS = 4096, 4096, 64
_BIN8, _BIN16 = 0xC4, 0xC5


def place_of(peer: PeerId) -> DHTID:
    """Where a peer sits in the DHT. It follows from its key, so that nobody can choose to sit next to a shard."""
    return DHTID.generate(source=f"swarm:{peer}")


class RecordRules(RecordValidatorBase):
    """What may be stored and what is believed. Pure but for the clock (unix seconds) and bounded memories: of good
    signatures, of keys, and of how far others' clocks are from ours."""

    def __init__(self, membership: Membership, clock: Callable[[], float], max_skew_s: float = MAX_SKEW_S) -> None:
        self.swarm = membership.swarm
        self._membership = membership
        self._clock, self._max_skew_s = clock, max_skew_s
        self._checked: OrderedDict[bytes, Announcement] = OrderedDict()
        self._keys: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._offsets: OrderedDict[PeerId, float] = OrderedDict()

    def key(self, level: int, shard: int) -> DHTID:
        return DHTID.generate(source=shard_key(self.swarm, level, shard))

    def validate(self, record: DHTRecord) -> bool:
        return self.read(record) is not None

    def read(self, record: DHTRecord) -> Announcement | None:
        """The announcement, or None if it is not one or not to be believed."""
        data = _unpacked(record.value)
        announcement = None if data is None else self._announcement(data)
        if (
            announcement is None
            or not self._of_a_member(announcement)
            or not self._belongs(record.key, announcement.peer)
            or record.subkey != MSGPackSerializer.dumps(announcement.peer)
            or not 0 < record.expiration_time - announcement.issued_at <= MAX_LIFETIME_S  # nor NaN
        ):
            return None
        return announcement if self._timely(announcement) else None

    def clock_offset_s(self, own: PeerId) -> float:
        """At least half of the others whose records were read have clocks that are so far ahead of ours or closer; 0 if
        there are none."""
        offsets = sorted((offset for peer, offset in self._offsets.items() if peer != own), key=abs)
        return offsets[(len(offsets) - 1) // 2] if offsets else 0.0

    def _timely(self, announcement: Announcement) -> bool:
        """Replays apart, a record is as old as its lifetime at most."""
        offset = announcement.issued_at - self._clock()
        self._offsets.pop(announcement.peer, None)
        self._offsets[announcement.peer] = offset
        if len(self._offsets) > _OFFSETS:
            self._offsets.popitem(last=False)
        return -self._max_skew_s - MAX_LIFETIME_S <= offset <= self._max_skew_s

    def _belongs(self, key: bytes, peer: PeerId) -> bool:
        """Whether `key` is the peer's own on one of the levels. Keys are dear to derive: hence a memory."""
        level_and_shard = self._keys.get(key)
        if level_and_shard is not None:
            level, shard = level_and_shard
            return shard_of(peer, level) == shard
        own = ((level, self.key(level, shard_of(peer, level))) for level in range(LEVELS))
        level = next((level for level, place in own if place.to_bytes() == key), None)
        if level is None:
            return False
        self._keys[key] = (level, shard_of(peer, level))
        if len(self._keys) > _KEYS:
            self._keys.popitem(last=False)
        return True

    def _of_a_member(self, announcement: Announcement) -> bool:
        claimed, peer, proof = announcement.swarm, announcement.peer, announcement.membership
        return self._membership.complaint(claimed, peer, proof) is None

    def _announcement(self, data: bytes) -> Announcement | None:
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
