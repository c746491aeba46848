"""What the directory believes and keeps, and the tables around it; the last two tests start real daemons."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.utils import MSGPackSerializer

from swarm.errors import WireError
from swarm.net.addressbook import MAX_ADDRESSES, AddressBook
from swarm.net.addresses import parse, peer_of, with_port
from swarm.net.directory import METER_BURST_BYTES, METER_BYTES_PER_S, Participant, _Meter, open_directory
from swarm.net.p2pd import StackConfig
from swarm.net.peertable import MAX_PEERS, PeerTable
from swarm.net.records import (
    MAX_LIFETIME_S,
    MAX_RECORDS_PER_SHARD,
    SHARDS,
    RecordRules,
    RecordStorage,
    place_of,
    shard_key,
    shard_of,
)
from swarm.net.stack import open_stack
from swarm.net.standing import Strikes
from swarm.types import Announcement, PeerId
from swarm.wire.codec import encode_announcement
from swarm.wire.identity import Identity
from tests.builders import MANIFEST, MEMBERSHIP, NOW, announcement, identity

AUTHOR = identity(1)


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def dht_key(shard: int, swarm: str = MANIFEST.id) -> DHTID:
    return DHTID.generate(source=shard_key(swarm, shard))


def packed(author: Identity = AUTHOR, issued_at: float = NOW, **changes: object) -> bytes:
    a = replace(announcement(author), issued_at=issued_at, **changes)  # type: ignore[arg-type]
    return MSGPackSerializer.dumps(encode_announcement(a, author))


def record(author: Identity = AUTHOR, expires_at: float = NOW + 60, value: bytes | None = None) -> DHTRecord:
    key = dht_key(shard_of(author.peer_id)).to_bytes()
    return DHTRecord(key, MSGPackSerializer.dumps(author.peer_id), value or packed(author), expires_at)


def storage(clock: Clock) -> tuple[RecordStorage, list[Announcement]]:
    heard: list[Announcement] = []
    return RecordStorage(RecordRules(MEMBERSHIP, clock), random.Random(0), heard.append), heard


def keep(kept: RecordStorage, author: Identity = AUTHOR, issued_at: float = NOW, expires_at: float = NOW + 60) -> bool:
    key = dht_key(shard_of(author.peer_id))
    return kept.store_subkey(key, author.peer_id, packed(author, issued_at), expires_at)


def held(kept: RecordStorage, author: Identity = AUTHOR) -> bytes | None:
    found = kept.get(dht_key(shard_of(author.peer_id)))
    if found is None:
        return None
    with found.value.freeze():
        entry = found.value.get(author.peer_id)
    return None if entry is None else entry.value


# Rules ----------------------------------------------------------------------------------------------------------------


def test_a_record_that_its_author_signed_is_believed() -> None:
    read = RecordRules(MEMBERSHIP, Clock()).read(record())
    assert read == announcement(AUTHOR)


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
        record(expires_at=NOW - 1),
        record(value=packed(issued_at=NOW - MAX_LIFETIME_S), expires_at=NOW + 1),
        record(value=packed(identity(2))),
        record(value=forged()),
        record(value=packed(swarm="another")),
        record(value=b"\xc4\xff" + bytes(10)),
        record(value=MSGPackSerializer.dumps({"a": 1})),
        record(value=MSGPackSerializer.dumps(bytes(5000))),
        record(value=b"x"),
        replace(record(), subkey=MSGPackSerializer.dumps(None)),
        replace(record(), subkey=MSGPackSerializer.dumps(identity(2).peer_id)),
        replace(record(), key=dht_key((shard_of(AUTHOR.peer_id) + 1) % SHARDS).to_bytes()),
        replace(record(), key=DHTID.generate(source="anything").to_bytes()),
    ],
)
def test_nothing_else_is(bad: DHTRecord) -> None:
    rules = RecordRules(MEMBERSHIP, Clock())
    assert rules.read(record()) is not None
    assert not rules.validate(bad)


def test_one_that_expired_on_the_way_does_not_spoil_an_answer() -> None:
    clock = Clock()
    rules = RecordRules(MEMBERSHIP, clock)
    clock.now += 100
    assert rules.validate(record(expires_at=NOW + 60))


def test_peers_spread_over_the_shards_and_sit_where_their_keys_put_them() -> None:
    peers = [identity(number).peer_id for number in range(1, 200)]
    assert {shard_of(peer) for peer in peers} == set(range(SHARDS))
    assert len({place_of(peer) for peer in peers}) == len(peers)


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
    key, peer = dht_key(shard_of(AUTHOR.peer_id)), AUTHOR.peer_id
    before = psutil.Process().memory_info().rss
    for number in range(100_000):
        assert not kept.store_subkey(key, peer, packed_junk(number), NOW + 60 + number % 7)
    assert psutil.Process().memory_info().rss - before < 20_000_000
    assert (len(kept), len(kept._shards), len(heard)) == (1, 1, 1)
    assert (len(kept.expiration_heap), len(kept.key_to_heap), len(kept.data)) == (0, 0, 0)
    assert len(kept._rules._checked) == 1


def packed_junk(number: int) -> bytes:
    return b"\xc4\x80" + number.to_bytes(128, "big")


@pytest.mark.parametrize("expires_at", [float("nan"), float("inf"), NOW + MAX_LIFETIME_S + 1, NOW - 1])
def test_expiries_that_are_none_are_refused(expires_at: float) -> None:
    kept, heard = storage(Clock())
    assert not keep(kept, expires_at=expires_at)
    assert not heard
    assert dht_key(shard_of(AUTHOR.peer_id)) not in kept


def test_only_announcements_are_kept() -> None:
    kept, _ = storage(Clock())
    key = dht_key(shard_of(AUTHOR.peer_id))
    assert not kept.store(key, packed(), NOW + 60)
    assert not kept.store_subkey(key, 7, packed(), NOW + 60)
    assert not kept.store_subkey(DHTID.generate(source="x"), AUTHOR.peer_id, packed(), NOW + 60)
    assert not kept


def test_a_full_shard_gives_up_a_random_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.net.records.MAX_RECORDS_PER_SHARD", 5)
    kept, _ = storage(Clock())
    authors = [author for author in map(identity, range(1, 255)) if shard_of(author.peer_id) == 0][:15]
    for author in authors:
        assert keep(kept, author)
        assert held(kept, author) is not None
        assert len(kept) <= 5
    remaining = [number for number, author in enumerate(authors) if held(kept, author) is not None]
    assert len(remaining) == 5
    assert remaining != list(range(10, 15))
    assert MAX_RECORDS_PER_SHARD * 2100 < 1 << 20


def test_it_travels_as_hivemind_s_own_type() -> None:
    kept, _ = storage(Clock(time.time()))
    now = time.time()
    assert keep(kept, issued_at=now, expires_at=now + 60)
    [(key, found)] = list(kept.items())
    copy = MSGPackSerializer.loads(MSGPackSerializer.dumps(found.value))
    assert key == dht_key(shard_of(AUTHOR.peer_id))
    assert {peer: entry.value for peer, entry in copy.items()} == {AUTHOR.peer_id: held(kept)}  # type: ignore[attr-defined]


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


def test_the_table_is_bounded() -> None:
    table = PeerTable(AUTHOR.peer_id, heartbeat_s=10.0, clock=Clock())
    for number in range(MAX_PEERS + 10):
        table.announced(replace(announcement(AUTHOR), peer=PeerId(f"peer {number}")))
    assert len(table.alive()) == MAX_PEERS
    assert table.get(PeerId("peer 9")) is None
    assert table.get(PeerId("peer 10")) is not None


def test_strikes_add_up_fade_and_are_forgotten() -> None:
    clock = Clock(0.0)
    strikes = Strikes(clock)
    peer = AUTHOR.peer_id
    for _ in range(4):
        strikes.add(peer)
    assert not strikes.excluded(peer)
    strikes.add(peer)
    assert strikes.excluded(peer)
    clock.now = 59.0
    assert strikes.excluded(peer)
    clock.now = 61.0 * 2**0.5
    assert not strikes.excluded(peer)
    for _ in range(20):
        strikes.add(peer)
    clock.now += Strikes.LONGEST_S - 1
    assert strikes.excluded(peer)
    clock.now += 2
    assert not strikes.excluded(peer)
    clock.now += 10 * Strikes.HALF_LIFE_S
    strikes.add(peer)
    assert not strikes.excluded(peer)
    strikes.rest(peer, 5.0)
    assert strikes.excluded(peer)
    for number in range(2 * MAX_PEERS):
        strikes.add(PeerId(f"peer {number}"))
    assert len(strikes._records) == MAX_PEERS


def test_dht_requests_are_metered_by_method_and_by_peer() -> None:
    clock = Clock(0.0)
    meter = _Meter(clock)
    one, other = identity(1).peer_id, identity(2).peer_id
    assert not meter.admits("rpc_ping", one, 2000)
    assert not meter.admits("rpc_unheard_of", one, 1)
    size = 1 << 18
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


@pytest.mark.network
async def test_nobody_chooses_its_place_in_the_dht(tmp_path: Path) -> None:
    """One node sits where its key puts it, one next to a shard: only the first is taken into the routing table."""
    own = Identity.load_or_create(tmp_path / "identity.key")
    member = Participant(
        membership=MEMBERSHIP,
        identity=own,
        heartbeat_s=2.0,
        seeds=(),
        table=PeerTable(own.peer_id, 2.0, time.monotonic),
        book=AddressBook(tmp_path / "peers.json"),
        announcement=lambda: None,
        renewed=asyncio.Event(),
        rng=random.Random(0),
        clock=time.time,
    )
    for name in ("honest", "eclipse"):
        (tmp_path / name).mkdir()
    async with (
        open_stack(config(tmp_path)) as stack,
        open_directory(stack, member) as directory,
        open_stack(config(tmp_path / "honest")) as honest,
        open_stack(config(tmp_path / "eclipse")) as eclipse,
    ):
        chosen = DHTID(dht_key(0) + 1)
        for other, place in ((eclipse, chosen), (honest, place_of(honest.peer_id))):
            node = await DHTNode.create(p2p=other.p2p, node_id=place)
            await other.connect(stack.peer_id, stack.addresses)
            assert await node.protocol.call_ping(PeerID.from_base58(stack.peer_id)) == place_of(stack.peer_id)
            node.is_alive = False
        table = directory._node.protocol.routing_table
        async with asyncio.timeout(10):
            while directory._routes == 0:  # noqa: ASYNC110 - hivemind adds it in a task of its own
                await asyncio.sleep(0.01)
        assert set(table.uid_to_peer_id) == {place_of(honest.peer_id)}
