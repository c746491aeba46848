"""What the directory believes and keeps, and the tables around it; the last two tests start real daemons."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2 as untyped_pb2
from hivemind.utils import MSGPackSerializer

from swarm.errors import WireError
from swarm.net.addressbook import MAX_ADDRESSES, AddressBook
from swarm.net.addresses import parse, peer_of, with_port
from swarm.net.dht import DHT, MAX_SHARD_BYTES, METER_BURST_BYTES, METER_BYTES_PER_S, _Meter
from swarm.net.directory import Participant, open_directory
from swarm.net.p2pd import StackConfig
from swarm.net.peertable import (
    MAX_PEERS,
    SHARD_SHARE,
    SOURCE_SHARE,
    SUBNET_SHARE,
    VIEW,
    PeerTable,
    subnets_of,
)
from swarm.net.records import MAX_LIFETIME_S, MAX_SKEW_S, RecordRules, place_of
from swarm.net.shards import LEVELS, shard_of
from swarm.net.stack import open_stack
from swarm.net.storage import ASKING, MAX_HANDED_ON, MAX_RECORDS_PER_SHARD, RecordStorage
from swarm.types import Announcement, PeerId
from swarm.wire.codec import encode_announcement
from swarm.wire.identity import Identity
from tests.builders import MEMBERSHIP, NOW, announcement, identity

AUTHOR = identity(1)
dht_pb2: Any = untyped_pb2


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def dht_key(peer: PeerId = AUTHOR.peer_id, level: int = 0) -> DHTID:
    return RecordRules(MEMBERSHIP, Clock()).key(level, shard_of(peer, level))


def packed(author: Identity = AUTHOR, issued_at: float = NOW, **changes: object) -> bytes:
    a = replace(announcement(author), issued_at=issued_at, **changes)  # type: ignore[arg-type]
    return MSGPackSerializer.dumps(encode_announcement(a, author))


def record(
    author: Identity = AUTHOR, expires_at: float = NOW + 60, value: bytes | None = None, level: int = 0
) -> DHTRecord:
    key = dht_key(author.peer_id, level).to_bytes()
    return DHTRecord(key, MSGPackSerializer.dumps(author.peer_id), value or packed(author), expires_at)


def storage(clock: Clock, place: int = 0) -> tuple[RecordStorage, list[Announcement]]:
    """`clock` is both: unix time, and ours."""
    heard: list[Announcement] = []
    return RecordStorage(RecordRules(MEMBERSHIP, clock), place, random.Random(0), clock, heard.append), heard


def keep(
    kept: RecordStorage, author: Identity = AUTHOR, issued_at: float = NOW, expires_at: float = NOW + 60, level: int = 0
) -> bool:
    return kept.store_subkey(dht_key(author.peer_id, level), author.peer_id, packed(author, issued_at), expires_at)


def held(kept: RecordStorage, author: Identity = AUTHOR) -> bytes | None:
    found = kept.get(dht_key(author.peer_id))
    if found is None:
        return None
    with found.value.freeze():
        entry = found.value.get(author.peer_id)
    return None if entry is None else entry.value


# Rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", range(LEVELS))
def test_a_record_that_its_author_signed_is_believed_on_every_level(level: int) -> None:
    rules = RecordRules(MEMBERSHIP, Clock())
    for _ in range(2):  # With and without the memory of what was checked.
        assert rules.read(record(level=level)) == announcement(AUTHOR)
        assert rules.read(replace(record(identity(2)), key=record(level=level).key)) is None


def forged() -> bytes:
    value = bytearray(packed())
    value[-1] ^= 1
    return bytes(value)


@pytest.mark.parametrize(
    "bad",
    [
        record(expires_at=float("nan")),
        record(expires_at=float("inf")),
        record(expires_at=float("-inf")),
        record(expires_at=NOW + MAX_LIFETIME_S + 1),
        record(expires_at=NOW),
        record(expires_at=NOW - 1),
        record(value=packed(issued_at=NOW + MAX_SKEW_S + 1), expires_at=NOW + MAX_SKEW_S + 61),
        record(value=packed(issued_at=NOW - MAX_SKEW_S - MAX_LIFETIME_S - 1), expires_at=NOW - MAX_SKEW_S - 900),
        record(value=packed(identity(2))),
        record(value=forged()),
        record(value=packed(swarm="another")),
        record(value=b"\xc4\xff" + bytes(10)),
        record(value=MSGPackSerializer.dumps({"a": 1})),
        record(value=MSGPackSerializer.dumps(bytes(5000))),
        record(value=b"x"),
        replace(record(), subkey=MSGPackSerializer.dumps(None)),
        replace(record(), subkey=MSGPackSerializer.dumps(identity(2).peer_id)),
        replace(record(), key=dht_key(PeerId("elsewhere")).to_bytes()),
        replace(record(), key=DHTID.generate(source="anything").to_bytes()),
    ],
)
def test_nothing_else_is(bad: DHTRecord) -> None:
    rules = RecordRules(MEMBERSHIP, Clock())
    assert rules.read(record()) is not None
    assert not rules.validate(bad)


def test_peers_sit_where_their_keys_put_them() -> None:
    peers = [identity(number).peer_id for number in range(1, 200)]
    assert len({place_of(peer) for peer in peers}) == len(peers)


@pytest.mark.parametrize("minutes", [-5, 5])
def test_a_clock_that_is_minutes_off_changes_nothing(minutes: int) -> None:
    """The author's, its whole life long: it is judged by when its records come."""
    skew = 60.0 * minutes
    clock = Clock()
    kept, heard = storage(clock)
    assert keep(kept, issued_at=NOW + skew, expires_at=NOW + skew + 60)
    assert [a.issued_at for a in heard] == [NOW + skew]
    clock.now += 59
    found = kept.get(dht_key())
    assert found is not None
    # It survives the way to somebody else, too, who may have expired it by his own clock.
    copy = MSGPackSerializer.loads(MSGPackSerializer.dumps(found.value))
    assert list(copy.data) == [AUTHOR.peer_id]  # type: ignore[attr-defined]
    clock.now += 2
    assert kept.get(dht_key()) is None
    table = PeerTable(identity(9).peer_id, heartbeat_s=20.0, clock=Clock(0.0))
    table.announced(heard[0])
    assert len(table.alive()) == 1


def test_a_clock_that_is_a_day_off_is_not_believed_and_is_noticed() -> None:
    clock = Clock(NOW + 86_400)
    rules = RecordRules(MEMBERSHIP, clock)
    own = identity(9).peer_id
    assert rules.clock_offset_s(own) == 0
    for number in (1, 2, 3):
        assert rules.read(record(identity(number))) is None
    assert rules.clock_offset_s(own) == -86_400
    clock.now = NOW + 300
    assert rules.read(record()) is not None
    assert rules.clock_offset_s(own) == -86_400
    assert rules.read(record(identity(2))) is not None
    assert rules.clock_offset_s(own) == -300
    assert rules.clock_offset_s(identity(1).peer_id) == -300
    assert rules.clock_offset_s(identity(2).peer_id) == -300


# Storage --------------------------------------------------------------------------------------------------------------


def test_an_earlier_expiry_deletes_nothing() -> None:
    clock = Clock()
    kept, _ = storage(clock)
    assert keep(kept, issued_at=NOW, expires_at=NOW + 600)
    newest = held(kept)
    for issued_at, expires_at in ((NOW - 1, NOW + 1), (NOW - 1, NOW + 800), (NOW, NOW + 1)):
        assert keep(kept, issued_at=issued_at, expires_at=expires_at)
    clock.now += 500
    assert held(kept) == newest
    clock.now += 101
    assert held(kept) is None
    assert len(kept) == 0


def test_the_newer_record_wins_even_if_it_expires_sooner() -> None:
    kept, heard = storage(Clock())
    assert keep(kept, issued_at=NOW - 50, expires_at=NOW + 600)
    assert keep(kept, issued_at=NOW, expires_at=NOW + 10)
    assert held(kept) == packed(issued_at=NOW)
    assert [a.issued_at for a in heard] == [NOW - 50, NOW]


def test_what_is_refused_leaves_no_trace() -> None:
    kept, heard = storage(Clock())
    assert keep(kept)
    key, peer = dht_key(), AUTHOR.peer_id
    before = psutil.Process().memory_info().rss
    for number in range(100_000):
        assert not kept.store_subkey(key, peer, packed_junk(number), NOW + 60 + number % 7)
    assert psutil.Process().memory_info().rss - before < 20_000_000
    assert (len(kept), len(kept._shards), len(heard)) == (1, 1, 1)
    assert (len(kept.expiration_heap), len(kept.key_to_heap), len(kept.data)) == (0, 0, 0)
    assert len(kept._rules._checked) == 1


def packed_junk(number: int) -> bytes:
    return b"\xc4\x80" + number.to_bytes(128, "big")


@pytest.mark.parametrize("expires_at", [float("nan"), float("inf"), NOW + MAX_LIFETIME_S + 1, NOW])
def test_expiries_that_are_none_are_refused(expires_at: float) -> None:
    kept, heard = storage(Clock())
    assert not keep(kept, expires_at=expires_at)
    assert not heard
    assert dht_key() not in kept


def test_only_announcements_are_kept() -> None:
    kept, _ = storage(Clock())
    key = dht_key()
    assert not kept.store(key, packed(), NOW + 60)
    assert not kept.store_subkey(key, 7, packed(), NOW + 60)
    assert not kept.store_subkey(DHTID.generate(source="x"), AUTHOR.peer_id, packed(), NOW + 60)
    assert not kept


def authors_of_a_shard(count: int, shard: int = 0) -> list[Identity]:
    everybody = map(Identity, (number.to_bytes(32, "big") for number in range(1, 10_000)))
    return list(islice((author for author in everybody if shard_of(author.peer_id) == shard), count))


def test_a_full_shard_gives_up_a_random_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.net.storage.MAX_RECORDS_PER_SHARD", 5)
    kept, _ = storage(Clock())
    authors = authors_of_a_shard(15)
    for author in authors:
        assert keep(kept, author)
        assert held(kept, author) is not None
        assert len(kept) <= 5
    remaining = [number for number, author in enumerate(authors) if held(kept, author) is not None]
    assert len(remaining) == 5
    assert remaining != list(range(10, 15))
    assert MAX_SHARD_BYTES < 1 << 18


def test_whoever_hands_on_others_records_gets_a_quarter_of_a_shard() -> None:
    kept, _ = storage(Clock())
    authors = authors_of_a_shard(3 * MAX_HANDED_ON)
    honest, others = authors[:MAX_HANDED_ON], authors[MAX_HANDED_ON:]
    for author in honest:
        ASKING.set(author.peer_id)
        assert keep(kept, author)
    ASKING.set(identity(250).peer_id)
    for author in others:
        assert keep(kept, author)
    ASKING.set(None)
    assert [author for author in honest if held(kept, author) is None] == []
    assert len([author for author in others if held(kept, author)]) == MAX_HANDED_ON
    assert len(kept) == 2 * MAX_HANDED_ON <= MAX_RECORDS_PER_SHARD / 2


def test_what_is_stored_here_but_belongs_far_away_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.net.storage.MAX_RECORDS", 10)
    near = dht_key(level=3)
    clock = Clock()
    kept, _ = storage(clock, place=near ^ 1)
    flood = [Identity(number.to_bytes(32, "big")) for number in range(1, 40)]
    for author in flood:
        keep(kept, author, level=6)
        assert len(kept) <= 10
    assert len(kept) == 10
    farthest = max(kept._shards, key=lambda key: key ^ near ^ 1)
    assert keep(kept, level=3)
    assert (len(kept), near in kept, farthest in kept) == (10, True, False)
    for author in flood:
        keep(kept, author, level=6)
    keys = sorted([near, *(dht_key(author.peer_id, 6) for author in flood)], key=lambda key: key ^ near ^ 1)
    assert set(kept._shards) == set(keys[:10])
    clock.now += 61
    assert len(kept) == 0
    assert kept._shards == {}


def test_it_travels_as_hivemind_s_own_type() -> None:
    kept, _ = storage(Clock(time.time()))
    now = time.time()
    assert keep(kept, issued_at=now, expires_at=now + 60)
    [(key, found)] = list(kept.items())
    copy = MSGPackSerializer.loads(MSGPackSerializer.dumps(found.value))
    assert key == dht_key()
    assert {peer: entry.value for peer, entry in copy.items()} == {AUTHOR.peer_id: held(kept)}  # type: ignore[attr-defined]


# Answers --------------------------------------------------------------------------------------------------------------


class Answering:
    """hivemind's protocol, as far as a lookup needs it, at a peer that answers with what it is told to."""

    node_id = place_of(identity(9).peer_id)
    node_info = dht_pb2.NodeInfo(node_id=node_id.to_bytes())

    def __init__(self, value: bytes, nearest: list[bytes]) -> None:
        result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=value, nearest_peer_ids=nearest)
        self.answer = dht_pb2.FindResponse(results=[result])
        self.routes: list[tuple[DHTID, bool]] = []

    def get_stub(self, peer: PeerID) -> Answering:
        return self

    async def rpc_find(self, request: object, timeout: float) -> object:
        return self.answer

    async def update_routing_table(self, place: DHTID, peer: PeerID, responded: bool) -> None:
        self.routes.append((place, responded))


async def ask(value: bytes, nearest: list[bytes] | None = None) -> tuple[Answering, object, list[Announcement]]:
    """Asks AUTHOR, who answers so; also what was believed, and it says it was AUTHOR who told it."""
    protocol = Answering(value, nearest or [])

    class Calls:
        peer_id = identity(9).peer_id

        async def call(self, awaitable: Awaitable[object], timeout: float, what: str) -> object:
            return await awaitable

    told: list[Announcement] = []

    def tell(announcement: Announcement, by: PeerId) -> None:
        assert by == AUTHOR.peer_id
        told.append(announcement)

    kept, _ = storage(Clock())
    dht = DHT(Calls(), SimpleNamespace(protocol=protocol), kept._rules, kept)  # type: ignore[arg-type]
    return protocol, await dht._find(AUTHOR.peer_id, dht_key(), tell), told


def shard(authors: list[Identity], junk: int = 0) -> bytes:
    value = DictionaryDHTValue()
    with value.freeze():
        for author in authors:
            value.store(author.peer_id, packed(author), NOW + 60)
        for number in range(junk):
            value.store(f"junk {number}", packed_junk(number), NOW + 60)
        return MSGPackSerializer.dumps(value)


async def test_one_bad_record_does_not_spoil_an_answer() -> None:
    authors = authors_of_a_shard(3, shard_of(AUTHOR.peer_id))
    protocol, others, told = await ask(shard(authors, junk=5))
    assert [a.peer for a in told] == [author.peer_id for author in authors]
    assert others == []
    assert protocol.routes == [(place_of(AUTHOR.peer_id), True)]


async def test_an_answer_of_too_many_records_is_not_looked_at() -> None:
    authors = authors_of_a_shard(1, shard_of(AUTHOR.peer_id))
    _, _, told = await ask(shard(authors, junk=MAX_RECORDS_PER_SHARD))
    assert told == []
    _, _, told = await ask(shard(authors) + bytes(MAX_SHARD_BYTES))
    assert told == []


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\xc7\x02\x50\x93\x00", bytes(100), b"\x81\x90\x01"])
async def test_who_answers_with_junk_has_not_answered(value: bytes) -> None:
    protocol, others, told = await ask(value)
    assert told == []
    assert others is None or others == []
    assert protocol.routes == [(place_of(AUTHOR.peer_id), others is not None)]


async def test_an_answer_names_a_bounded_number_of_peers_and_never_us() -> None:
    own = PeerID.from_base58(identity(9).peer_id).to_bytes()
    named = [PeerID.from_base58(identity(number).peer_id).to_bytes() for number in range(10, 60)]
    _, others, _ = await ask(shard([]), [own, b"", bytes(5000), *named])
    assert others == [identity(number).peer_id for number in range(10, 27)]


def test_a_full_answer_holds_the_event_loop_up_for_less_than_50_ms() -> None:
    authors = authors_of_a_shard(MAX_RECORDS_PER_SHARD, shard_of(AUTHOR.peer_id))
    value = shard(authors)

    async def timed() -> float:
        started = time.thread_time()  # Whatever else this machine has to do.
        _, _, told = await ask(value)
        assert len(told) == MAX_RECORDS_PER_SHARD
        return time.thread_time() - started

    assert min(asyncio.run(timed()) for _ in range(5)) < 0.05


# Tables ---------------------------------------------------------------------------------------------------------------


def test_a_peer_is_alive_for_three_heartbeats() -> None:
    clock = Clock(0.0)
    table = PeerTable(identity(9).peer_id, heartbeat_s=10.0, clock=clock)
    table.announced(announcement(identity(9)))
    assert not table.alive()
    assert not table.changed.is_set()
    table.announced(announcement(AUTHOR))
    assert table.changed.is_set()
    clock.now = 20.0
    table.announced(announcement(AUTHOR))
    assert [last_seen for _, last_seen in table.alive()] == [0.0]
    table.announced(replace(announcement(AUTHOR), issued_at=NOW + 1, head=7))
    clock.now = 50.0
    assert [(a.head, last_seen) for a, last_seen in table.alive()] == [(7, 20.0)]
    table.heard(AUTHOR.peer_id)
    clock.now = 80.0
    assert len(table.alive()) == 1
    clock.now = 80.1
    assert not table.alive()
    table.heard(AUTHOR.peer_id)
    assert table.get(AUTHOR.peer_id) is None


def member(number: int, *places: str, name: str = "peer", issued_at: float = NOW) -> Announcement:
    places = places or (f"/ip4/{60 + number % 100}.{number // 100 % 250}.0.1/tcp/1",)
    return replace(announcement(AUTHOR), peer=PeerId(f"{name} {number}"), addresses=places, issued_at=issued_at)


def view(clock: Clock | None = None) -> PeerTable:
    return PeerTable(AUTHOR.peer_id, heartbeat_s=10.0, clock=clock or Clock(0.0), rng=random.Random(0))


def fill(table: PeerTable, count: int = VIEW + 100) -> None:
    """From many sources, subnets and shards."""
    for number in range(count):
        table.announced(member(number, name="honest"), PeerId(f"replica {number % 50}"))


def named(table: PeerTable, name: str) -> list[PeerId]:
    return [a.peer for a, _ in table.alive() if a.peer.startswith(name)]


def test_the_table_is_bounded_and_whom_it_forgets_is_a_matter_of_chance() -> None:
    table = view()
    fill(table, 2 * VIEW)
    remaining = named(table, "honest")
    assert len(remaining) == VIEW
    assert 0.2 * VIEW < len([peer for peer in remaining if int(peer.split()[1]) < VIEW]) < 0.8 * VIEW


def test_a_thousand_sybils_of_one_subnet_get_its_share_of_the_view() -> None:
    table = view()
    fill(table)
    for number in range(1000):
        table.announced(member(number, f"/ip4/8.8.{number % 250}.1/tcp/1", name="sybil"), PeerId(f"by {number}"))
    assert len(named(table, "sybil")) == SUBNET_SHARE == VIEW // 8
    assert len(named(table, "honest")) == VIEW - SUBNET_SHARE
    for number in range(1000):  # Naming another subnet as well makes them count in both.
        places = f"/ip4/8.8.{number % 250}.1/tcp/1", f"/ip4/90.{number % 250}.0.1/tcp/1"
        table.announced(member(number, *places, name="other"), PeerId(f"by {number}"))
    assert len(named(table, "sybil")) + len(named(table, "other")) == SUBNET_SHARE


def test_a_peer_that_moves_to_a_full_subnet_has_to_find_a_place_there() -> None:
    table = view()
    for number in range(3 * SUBNET_SHARE):
        table.announced(member(number, name="sybil"), PeerId(f"by {number}"))
    assert len(named(table, "sybil")) == 3 * SUBNET_SHARE
    for number in range(3 * SUBNET_SHARE):
        table.announced(member(number, "/ip4/8.8.1.1/tcp/1", name="sybil", issued_at=NOW + 1))
    assert len(named(table, "sybil")) == SUBNET_SHARE


@pytest.mark.parametrize("told_by", [None, PeerId("replica")])
def test_one_source_fills_a_quarter_of_the_view(told_by: PeerId | None) -> None:
    table = view()
    for number in range(1000):
        table.announced(member(number, name="told"), told_by)
    assert len(named(table, "told")) == SOURCE_SHARE == VIEW // 4
    fill(table, 1000)
    assert len(named(table, "told")) < SOURCE_SHARE
    assert len(table.alive()) == VIEW


def test_one_shard_fills_a_quarter_of_the_view() -> None:
    table = view()
    for number in range(4000):
        if shard_of(PeerId(f"ground {number}")) == 5:
            table.announced(member(number, name="ground"), PeerId(f"replica {number}"))
    assert len(named(table, "ground")) == SHARD_SHARE == VIEW // 4


def test_whom_we_met_or_follow_gives_way_to_nobody() -> None:
    table = view()
    fill(table, 100)
    met, followed = PeerId("honest 1"), PeerId("honest 2")
    table.heard(met)
    table.follow([followed])
    assert [a.peer for a in table.met()] == [met]
    for number in range(5000):
        table.announced(member(number, name="new"), PeerId(f"replica {number % 50}"))
    assert {met, followed} <= {a.peer for a, _ in table.alive()}
    assert len(named(table, "honest")) < 20
    full = view()
    for number in range(SUBNET_SHARE):
        full.announced(member(number, "/ip4/8.8.1.1/tcp/1", name="met"), PeerId(f"by {number}"))
        full.heard(PeerId(f"met {number}"))
    full.announced(member(0, "/ip4/8.8.1.1/tcp/1", name="late"))
    assert full.get(PeerId("late 0")) is None
    assert len(named(full, "met")) == SUBNET_SHARE


def test_whom_we_follow_may_be_silent_for_longer() -> None:
    clock = Clock(0.0)
    table = view(clock)
    for number in (1, 2):
        table.announced(member(number))
    table.follow([PeerId("peer 1")])
    clock.now = 30.1
    assert named(table, "peer") == ["peer 1"]
    clock.now = 150.0
    assert named(table, "peer") == ["peer 1"]
    clock.now = 150.1
    assert named(table, "peer") == []


@pytest.mark.parametrize(
    ("places", "subnets"),
    [
        ((), {"nowhere"}),
        (("junk", "/ip4/8.8"), {"nowhere"}),
        (("/ip4/8.8.4.4/tcp/1", "/ip4/8.8.9.9/udp/1/quic-v1"), {"8.8.0.0/16"}),
        (("/ip6/2a00:1450:4001::5/tcp/1",), {"2a00:1450::/32"}),
        (("/ip6/::ffff:8.8.4.4/tcp/1",), {"8.8.0.0/16"}),
        (("/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.5/tcp/1", "/ip6/fe80::1/tcp/1"), set()),
        (("/ip4/10.0.0.1/tcp/1", "/ip4/8.8.4.4/tcp/1"), {"8.8.0.0/16"}),
        (("/dns4/a.node.Example.org/tcp/1", "/dns6/b.example.org./tcp/1"), {"example.org"}),
        ((f"/ip4/8.8.4.4/tcp/1/p2p/{AUTHOR.peer_id}/p2p-circuit",), {"8.8.0.0/16"}),
    ],
)
def test_the_subnets_that_addresses_name(places: tuple[str, ...], subnets: set[str]) -> None:
    assert subnets_of(places) == subnets


def test_dht_requests_are_metered_by_method_and_by_peer() -> None:
    clock = Clock(0.0)
    meter = _Meter(clock)
    one, other = identity(1).peer_id, identity(2).peer_id
    assert not meter.admits("rpc_ping", one, 2000)
    assert not meter.admits("rpc_unheard_of", one, 1)
    size = 1 << 17
    assert [meter.admits("rpc_store", one, size) for _ in range(3)] == [True, True, False]
    assert 2 * size == METER_BURST_BYTES
    assert meter.admits("rpc_store", other, size)
    clock.now += size / METER_BYTES_PER_S
    assert [meter.admits("rpc_store", one, size) for _ in range(2)] == [True, False]
    for number in range(2 * MAX_PEERS):
        meter.admits("rpc_ping", PeerId(f"peer {number}"), 100)
    assert len(meter._buckets) == MAX_PEERS


# Addresses ------------------------------------------------------------------------------------------------------------


def address(number: int, peer: PeerId = AUTHOR.peer_id) -> str:
    return f"/ip4/10.0.{number // 250}.{number % 250}/tcp/4001/p2p/{peer}"


@pytest.mark.parametrize(
    "place",
    [
        "/ip4/203.0.113.7/tcp/4001",
        "/ip6/2001:db8::1/udp/4001/quic-v1",
        "/dns4/node.example.org/tcp/443/wss",
        f"/ip4/203.0.113.7/tcp/4001/p2p/{identity(2).peer_id}/p2p-circuit",
    ],
)
def test_addresses_come_apart(place: str) -> None:
    assert parse(place) == (place, None)
    assert parse(f"{place}/p2p/{AUTHOR.peer_id}") == (place, AUTHOR.peer_id)
    assert peer_of(f"{place}/p2p/{AUTHOR.peer_id}") == AUTHOR.peer_id
    with pytest.raises(WireError):
        peer_of(place)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "1.2.3.4:80",
        "/ip4/1.2.3.4",
        "/ip4/1.2.3/tcp/80",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/-1",
        "/ip4/1.2.3.4/tcp/\u0663",
        "/ip4/1.2.3.4/tcp",
        "/dns4/a b/tcp/1",
        "/unix/tmp/x/tcp/1",
        "/ip4/1.2.3.4/tcp/1/onion/x",
        "/ip4/1.2.3.4/tcp/1/p2p/Qm",
        "/ip4/1.2.3.4/tcp/1/p2p",
        "/ip4/1.2.3.4/tcp/1/" + "ws/" * 30,
    ],
)
def test_what_is_no_address_is_a_wire_error(text: str) -> None:
    with pytest.raises(WireError):
        parse(text)


def test_a_free_port_is_kept_and_a_taken_one_is_not() -> None:
    chosen = with_port("/ip4/127.0.0.1/tcp/0", 0)
    port = int(chosen.rpartition("/")[2])
    assert with_port("/ip4/127.0.0.1/tcp/0", port) == chosen
    assert with_port("/ip4/127.0.0.1/tcp/1234", port) == "/ip4/127.0.0.1/tcp/1234"
    with socket.socket() as taken:
        # As the daemon listens.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert with_port("/ip4/127.0.0.1/tcp/0", port) != chosen


def test_the_address_book_is_bounded_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    book = AddressBook(path)
    for number in range(2 * MAX_ADDRESSES):
        book.remember(address(number), AUTHOR.peer_id)
    with pytest.raises(WireError):
        book.remember(address(1), identity(2).peer_id)
    book.keep_port("/ip4/0.0.0.0/tcp/0", 4001)
    book.save()
    again = AddressBook(path)
    assert again.port("/ip4/0.0.0.0/tcp/0") == 4001
    assert again.port("/ip6/::/tcp/0") == 0
    assert again.peers == [address(number) for number in reversed(range(MAX_ADDRESSES, 2 * MAX_ADDRESSES))]
    assert [entry.name for entry in tmp_path.iterdir()] == ["peers.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"ports": 1, "peers": []}',
        '{"ports": {"a": "b"}, "peers": []}',
        '{"ports": {}, "peers": [1]}',
        '{"ports": {}, "peers": ["/x"]}',
        '{"ports": {}, "peers": []}' + " " * (1 << 20),
    ],
)
def test_a_damaged_address_book_is_an_empty_one(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "peers.json"
    path.write_text(content)
    book = AddressBook(path)
    assert book.peers == []
    assert "peers.json" in caplog.text
    book.remember(address(1), AUTHOR.peer_id)
    book.save()
    assert AddressBook(path).peers == [address(1)]


# Real daemons ---------------------------------------------------------------------------------------------------------


def config(directory: Path) -> StackConfig:
    Identity.load_or_create(directory / "identity.key")
    return StackConfig(identity_path=directory / "identity.key", listen=("/ip4/127.0.0.1/tcp/0",))


@pytest.mark.network
async def test_cancelled_calls_do_not_end_the_control_connection(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    async with open_stack(config(tmp_path)) as stack, open_stack(config(tmp_path / "a")) as other:
        await stack.connect(other.peer_id, other.addresses)
        calls = stack.p2p._client

        async def echo(data: bytes, _: PeerID) -> bytes:
            return data

        await other.p2p._client.add_unary_handler("echo", echo)
        peer, answered, cancelled, wait = PeerID.from_base58(other.peer_id), 0, 0, 1e-3
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            try:
                async with asyncio.timeout(wait):
                    await calls.call_unary_handler(peer, "echo", b"x")
                answered, wait = answered + 1, wait * 0.98
            except TimeoutError:
                cancelled, wait = cancelled + 1, wait / 0.98
        assert answered > 20
        assert cancelled > 20
        assert not stack.p2p._client.control._read_task.done()
        async with asyncio.timeout(5):
            assert await calls.call_unary_handler(peer, "echo", b"still there") == b"still there"
        assert not stack._pending


def participant(directory: Path, own: Identity, clock: Callable[[], float], *seeds: str) -> Participant:
    return Participant(
        membership=MEMBERSHIP,
        identity=own,
        heartbeat_s=1.0,
        seeds=seeds,
        table=PeerTable(own.peer_id, 1.0, time.monotonic),
        book=AddressBook(directory / "peers.json"),
        announcement=lambda: replace(announcement(own), addresses=()),
        renewed=asyncio.Event(),
        rng=random.Random(0),
        clock=clock,
    )


@asynccontextmanager
async def taking_part(directory: Path, skew: Clock, *seeds: str) -> AsyncIterator[Participant]:
    """In the directory, by a clock that is so many seconds off."""
    directory.mkdir()  # noqa: ASYNC240 - a test has nothing else to do
    own = Identity.load_or_create(directory / "identity.key")
    member = participant(directory, own, lambda: time.time() + skew(), *seeds)
    async with open_stack(config(directory)) as stack, open_directory(stack, member) as its_directory:
        task = asyncio.create_task(its_directory.run())
        try:
            yield replace(member, seeds=stack.addresses)
        finally:
            task.cancel()
            await asyncio.wait({task})


def sees(member: Participant) -> set[PeerId]:
    return {a.peer for a, _ in member.table.alive()}


@pytest.mark.network
async def test_clocks_minutes_off_find_each_other_and_one_a_day_off_does_when_it_is_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late, early, lost = Clock(-300.0), Clock(300.0), Clock(86_400.0)
    caplog.set_level(logging.WARNING, "swarm.net.directory")
    async with (
        taking_part(tmp_path / "a", late) as a,
        taking_part(tmp_path / "b", early, *a.seeds) as b,
        taking_part(tmp_path / "c", lost, *a.seeds) as c,
        asyncio.timeout(40),
    ):
        me = {name: member.identity.peer_id for name, member in (("a", a), ("b", b), ("c", c))}
        while not (me["b"] in sees(a) and me["a"] in sees(b) and "behind ours" in caplog.text):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        until = time.monotonic() + 4.0  # Longer than a record lives: they keep seeing each other.
        while time.monotonic() < until:
            assert (sees(a), sees(b), sees(c)) == ({me["b"]}, {me["a"]}, set())
            await asyncio.sleep(0.05)
        assert caplog.text.count("machine's clock") == 1
        lost.now = 0.0
        while not (sees(a) == {me["b"], me["c"]} and sees(c) == {me["a"], me["b"]}):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.network
async def test_nobody_chooses_its_place_in_the_dht(tmp_path: Path) -> None:
    """One node sits where its key puts it, one next to a shard: only the first is taken into the routing table."""
    own = Identity.load_or_create(tmp_path / "identity.key")
    member = replace(participant(tmp_path, own, time.time), announcement=lambda: None)
    for name in ("honest", "eclipse"):
        (tmp_path / name).mkdir()
    async with (
        open_stack(config(tmp_path)) as stack,
        open_directory(stack, member) as directory,
        open_stack(config(tmp_path / "honest")) as honest,
        open_stack(config(tmp_path / "eclipse")) as eclipse,
    ):
        chosen = DHTID(dht_key() + 1)
        for other, place in ((eclipse, chosen), (honest, place_of(honest.peer_id))):
            node = await DHTNode.create(p2p=other.p2p, node_id=place)
            await other.connect(stack.peer_id, stack.addresses)
            assert await node.protocol.call_ping(PeerID.from_base58(stack.peer_id)) == place_of(stack.peer_id)
            node.is_alive = False
        table = directory._dht._protocol.routing_table
        async with asyncio.timeout(10):
            while directory._dht.routes == 0:  # noqa: ASYNC110 - hivemind adds it in a task of its own
                await asyncio.sleep(0.01)
        assert set(table.uid_to_peer_id) == {place_of(honest.peer_id)}
