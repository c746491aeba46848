"""What every node is to the others, honest or not: a record in the directory, a replica of records, a log, a shelf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarm.net.directory import DRAW_HEARTBEATS
from swarm.net.holders import Holders
from swarm.net.peertable import HEARTBEATS, PeerTable
from swarm.net.records import place_of
from swarm.net.relay import Shelf
from swarm.net.shards import LEVELS, levels_of, shard_of
from swarm.net.storage import ASKING, RecordStorage
from swarm.net.streams import MAX_STREAMS, STREAM_S, first_cursor
from swarm.types import Announcement, GroupId, PeerId
from swarm.wire.codec import Pull
from swarm.wire.identity import Identity
from swarm.wire.relay import MAX_OFFERS
from tests.bench.crowd.groups import FRAME, Carried, Made, Sizes
from tests.bench.crowd.keys import key_of
from tests.bench.crowd.streams import PullStream, RelayStream
from tests.bench.crowd.world import Traffic
from tests.builders import MANIFEST

if TYPE_CHECKING:
    from tests.bench.crowd.crowd import Crowd

HEARTBEAT_S = 20.0


@dataclass(slots=True)
class _Reader:
    """Of our log."""

    stream: PullStream
    age: int
    cursor: int
    backlog: int
    credit: int


@dataclass(slots=True)
class _Chooser:
    """Of what is on our shelf."""

    stream: RelayStream
    age: int
    number: int


class Presence:
    hostile = False

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd, self.world = crowd, crowd.world
        rng = self.world.rng
        self.peer: PeerId = Identity(rng.randbytes(32)).peer_id
        self.alive, self.traffic = True, Traffic()
        self.address = f"/ip4/{rng.randrange(11, 100)}.{rng.randrange(256)}.{rng.randrange(256)}.7/tcp/4001"
        self.epoch = rng.randbytes(16)
        self.table = PeerTable(self.peer, HEARTBEAT_S, self.world.clock, rng)
        self.storage = RecordStorage(
            crowd.believed, int(place_of(self.peer)), rng, self.world.clock, self.table.announced
        )
        self._holders = Holders(self.world.clock)
        self.shelf: Shelf | None = None
        self._log: list[Made] = []
        self._readers: dict[PullStream, _Reader] = {}
        self._choosers: dict[RelayStream, _Chooser] = {}
        self._draws: list[float] = []
        self._beats = 0

    # In the directory -------------------------------------------------------------------------------------------------

    @property
    def swarm_size(self) -> float:
        """As far as it knows."""
        return float(len(self.crowd.places))

    def beat(self) -> None:
        """A heartbeat: our announcement is stored with the replicas of its keys."""
        if not self.alive:
            return
        world, rng = self.world, self.world.rng
        if self._beats % DRAW_HEARTBEATS == 0:
            self._draws = [rng.random() for _ in range(LEVELS)]
        self._beats += 1
        current = Announcement(
            swarm=MANIFEST.id,
            peer=self.peer,
            addresses=(self.address,),
            epoch=self.epoch,
            head=len(self._log),
            name="node",
            model="model",
            tokenizer="bytes",
            issued_at=world.wall,
            readers=self.readers,
        )
        value = self.crowd.believed.value(current)
        expires_at = current.issued_at + HEARTBEATS * HEARTBEAT_S
        for level in levels_of(self.swarm_size, self._draws):
            self._store(level, value, expires_at)
        world.at(HEARTBEAT_S * rng.uniform(0.9, 1.0), self.beat)

    def _store(self, level: int, value: bytes, expires_at: float) -> None:
        """As `swarm.net.dht.DHT.store`."""
        crowd = self.crowd
        key = key_of(level, shard_of(self.peer, level))
        holders = self._holders.of(key)
        if holders is None:
            crowd.look_up(self, key)
            holders = tuple(holder.peer for holder in crowd.holders(key))
            self._holders.found(key, holders)
        crowd.count_store()
        ASKING.set(self.peer)
        missed = 0
        for holder in map(crowd.members.__getitem__, holders):
            crowd.call(self, holder, Sizes.store, 60)
            arrives = holder.alive and not self.world.lost()
            missed += not arrives or self.world.lost()
            if arrives:
                holder.storage.store_subkey(key, self.peer, value, expires_at)
        self._holders.missed(key, missed)

    def tells(self, announcements: list[Announcement]) -> list[Announcement] | None:
        """What it answers when these lie with it; None for nothing."""
        return announcements

    # To those that read our log ---------------------------------------------------------------------------------------

    def publish(self, group: Made) -> None:
        self._log.append(group)
        for reader in list(self._readers.values()):
            self._send(reader)

    @property
    def readers(self) -> int:
        """Peers that read our log; a hostile node says what it likes (`hostile`)."""
        return sum(stream.is_current(it.age) for stream, it in self._readers.items())

    def serve_pull(self, stream: PullStream, asked: Pull) -> None:
        self._forget_old()
        if len(self._readers) >= MAX_STREAMS:
            self.world.at(self.world.latency(), stream.end, stream.age, True)
            return
        cursor, backlog = first_cursor(asked, self.epoch, len(self._log))
        reader = self._readers[stream] = _Reader(stream, stream.age, cursor, backlog, asked.max_groups)
        self.world.at(STREAM_S, stream.end, stream.age, False)
        self._send(reader)

    def credited(self, stream: PullStream, groups: int) -> None:
        reader = self._readers.get(stream)
        if reader is not None:
            reader.credit += groups
            self._send(reader)

    def _send(self, reader: _Reader) -> None:
        if not reader.stream.is_current(reader.age):
            self._readers.pop(reader.stream, None)
            return
        reader.cursor = max(reader.cursor, len(self._log) - reader.backlog)
        while reader.credit and reader.cursor < len(self._log):
            group = self._log[reader.cursor]
            reader.cursor += 1
            reader.credit -= 1
            reader.stream.answer(Sizes.entry + len(group.body), reader.stream.got, group, self.epoch, reader.cursor)

    # To those that read what we pass on -------------------------------------------------------------------------------

    def serve_relay(self, stream: RelayStream) -> None:
        self._forget_old()
        if self.shelf is None or len(self._choosers) >= MAX_STREAMS:
            self.world.at(self.world.latency(), stream.end, stream.age, True)
            return
        number = self.shelf.start(self.world.now)
        chooser = self._choosers[stream] = _Chooser(stream, stream.age, number)
        self.world.at(STREAM_S, stream.end, stream.age, False)
        self._offer(chooser, self.shelf)

    def offer(self) -> None:
        """What is new on the shelf, to all readers."""
        if self.shelf is not None and self.alive:
            pause = self.shelf.fill(self.world.now, self.world.wall)
            for chooser in list(self._choosers.values()):
                self._offer(chooser, self.shelf)
            if pause is not None:
                self.world.at(pause, self.offer)

    def _offer(self, chooser: _Chooser, shelf: Shelf) -> None:
        stream = chooser.stream
        if not stream.is_current(chooser.age):
            self._choosers.pop(stream, None)
        elif shelf.head > chooser.number:
            offers = shelf.after(chooser.number, stream.reader.peer, self.world.wall)
            chooser.number = shelf.head
            for i in range(0, len(offers), MAX_OFFERS):
                some = offers[i : i + MAX_OFFERS]
                stream.answer(FRAME + len(some) * Sizes.offer, stream.offered, some)

    def wanted(self, stream: RelayStream, ids: Sequence[GroupId]) -> None:
        for id in ids:
            shelved = self.shelf.get(id) if self.shelf is not None else None
            carried = shelved.received if shelved is not None else None
            assert carried is None or isinstance(carried, Carried)
            group = carried.group if carried is not None else None
            stream.answer(Sizes.relayed + (len(group.body) if group else 0), stream.came, id, group)

    def _forget_old(self) -> None:
        self._readers = {stream: it for stream, it in self._readers.items() if stream.is_current(it.age)}
        self._choosers = {stream: it for stream, it in self._choosers.items() if stream.is_current(it.age)}

    def leave(self) -> None:
        """As a machine that is switched off."""
        self.alive = False
        for readers in (self._readers, self._choosers):
            for stream, reader in readers.items():
                self.world.at(1.0, stream.end, reader.age, True)
            readers.clear()
        self._log = []
        self.storage.clear()
