"""Dial-back, relays, IPv6 and the addresses they need. Whom a peer may make another dial needs no network to test."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ConfigError, NetworkError, WireError
from swarm.limits import Limits
from swarm.net import addresses as addresses_module
from swarm.net.addressbook import AddressBook
from swarm.net.addresses import has_ipv6, is_free, parse, port_of, usable, with_ports
from swarm.net.dialback import (
    MAX_BYTES,
    PEER_BURST,
    PEER_EVERY_S,
    REACH,
    TOTAL_BURST,
    TOTAL_EVERY_S,
    DialBack,
    Reach,
    ask,
    is_public,
    permitted,
)
from swarm.net.exchange import P2PExchange
from swarm.net.frames import read_frame, write_frame
from swarm.net.handshake import answers
from swarm.net.memory import MemoryLog
from swarm.net.multiaddr import pack, unpack
from swarm.net.p2pd import StackConfig, stack_config
from swarm.net.reservation import reserve
from swarm.net.settings import P2PSettings
from swarm.net.stack import Stack, open_stack
from swarm.types import PeerId
from swarm.wire.identity import Identity
from tests.builders import MEMBERSHIP, NOW, announcement, identity, signed
from tests.test_exchange import Cursors

ME, OTHER = identity(1).peer_id, identity(2).peer_id
DEADLINE_S = 60.0
needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


# Who may be dialled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("203.0.113.7", "10.0.0.1", "127.0.0.1", "224.0.0.1", "169.254.1.1", "100.64.0.1", "0.0.0.0"),
        *("255.255.255.255", "::", "::1", "fe80::1", "fd00::1", "ff02::1", "::ffff:8.8.8.8", "2002:a00:1::"),
        *("64:ff9b::a00:1", "2001:0:1::1"),
    ],
)
def test_not_everything_is_public(host: str) -> None:
    assert not is_public(ipaddress.ip_address(host))


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1"])
def test_what_is_public(host: str) -> None:
    assert is_public(ipaddress.ip_address(host))


@pytest.mark.parametrize(
    ("address", "where"),
    [
        (f"/ip4/8.8.8.8/tcp/4001/p2p/{ME}", ("8.8.8.8", 4001)),
        (f"/ip6/2606:4700::1/tcp/4001/p2p/{ME}", ("2606:4700::1", 4001)),
        (f"/ip4/192.168.1.5/tcp/4001/p2p/{ME}", ("192.168.1.5", 4001)),
        (f"/ip4/192.168.1.6/tcp/4001/p2p/{ME}", None),
        (f"/ip4/127.0.0.1/tcp/4001/p2p/{ME}", None),
        (f"/ip4/8.8.8.8/tcp/4001/p2p/{OTHER}", None),
        ("/ip4/8.8.8.8/tcp/4001", None),
        (f"/ip4/8.8.8.8/tcp/0/p2p/{ME}", None),
        (f"/ip4/8.8.8.8/udp/4001/p2p/{ME}", None),
        (f"/ip4/8.8.8.8/udp/4001/quic-v1/p2p/{ME}", None),
        (f"/dns4/localhost/tcp/4001/p2p/{ME}", None),
        (f"/ip4/8.8.8.8/tcp/4001/p2p/{OTHER}/p2p-circuit/p2p/{ME}", None),
        ("nonsense", None),
    ],
)
def test_only_the_asker_itself_is_dialled_and_only_where_it_may_be(address: str, where: tuple[str, int] | None) -> None:
    found = permitted(address, ME, {ipaddress.ip_address("192.168.1.5")})
    assert found == (None if where is None else (ipaddress.ip_address(where[0]), where[1]))


def test_loopback_is_for_those_who_come_from_there() -> None:
    address = f"/ip4/127.0.0.1/tcp/4001/p2p/{ME}"
    assert permitted(address, ME, {ipaddress.ip_address("::1")}) is not None
    assert permitted(address, ME, {ipaddress.ip_address("192.168.1.5")}) is None


# One question ---------------------------------------------------------------------------------------------------------


class Wire:
    """A connection in memory: `remote` answers what `handler` does on the other end of a real socket pair."""

    def __init__(self, handler: Callable[..., object], remote: Sequence[str] = ()) -> None:
        self._handler, self._remote = handler, remote

    async def remote_addresses(self, peer: PeerId) -> Sequence[str]:
        return self._remote

    async def open_stream(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert protocol == REACH
        return await asyncio.open_connection("127.0.0.1", self._handler(), limit=1 << 16)  # type: ignore[arg-type]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Dialled:
    """Notes whom it is asked to dial; only `alive` answer."""

    def __init__(self, *alive: int) -> None:
        self.alive, self.asked = alive, []

    async def __call__(self, host: str, port: int, peer: PeerId, timeout: float) -> bool:
        self.asked.append((host, port))
        return port in self.alive


@asynccontextmanager
async def served(
    dial: Dialled, remote: Sequence[str] = ("/ip4/192.168.1.5/tcp/50000",), clock: Clock | None = None
) -> AsyncIterator[Wire]:
    """Everybody who connects is ME."""
    wire = Wire(lambda: port, remote)
    dial_back = DialBack(wire, lambda: NOW, clock or Clock(), dial)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await dial_back.serve(ME, reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield wire


def at(port: int, host: str = "192.168.1.5") -> str:
    return f"/ip4/{host}/tcp/{port}/p2p/{ME}"


async def test_it_says_which_addresses_work_where_we_are_seen_and_what_time_it_is() -> None:
    dial = Dialled(1, 3)
    async with served(dial) as wire:
        found = await ask(wire, OTHER, [at(1), at(2), at(3, "8.8.8.8"), at(4, "10.0.0.1")])
    assert found == Reach(reached=(at(1), at(3, "8.8.8.8")), seen_at="/ip4/192.168.1.5/tcp/50000", time=NOW)
    assert sorted(dial.asked) == [("192.168.1.5", 1), ("192.168.1.5", 2), ("8.8.8.8", 3)]


async def test_a_relay_s_address_is_not_ours() -> None:
    dial = Dialled(1)
    async with served(dial, [f"/ip4/10.0.0.9/tcp/4001/p2p/{OTHER}/p2p-circuit"]) as wire:
        found = await ask(wire, OTHER, [at(1, "10.0.0.9")])
    assert (found.reached, found.seen_at, dial.asked) == ((), "", [])


async def test_who_asks_too_often_is_not_answered_until_later() -> None:
    clock, dial = Clock(), Dialled(1)
    async with served(dial, clock=clock) as wire:
        for _ in range(int(PEER_BURST)):
            await ask(wire, OTHER, [at(1)])
        with pytest.raises(NetworkError):
            await ask(wire, OTHER, [at(1)])
        clock.now += PEER_EVERY_S
        await ask(wire, OTHER, [at(1)])
        with pytest.raises(NetworkError):
            await ask(wire, OTHER, [at(1)])
    assert len(dial.asked) == PEER_BURST + 1


async def test_a_thousand_identities_get_no_more_than_a_few() -> None:
    clock, dial = Clock(), Dialled()
    dial_back = DialBack(Wire(lambda: 0), lambda: NOW, clock, dial)
    taken = [dial_back._allowance.take(PeerId(str(number))) for number in range(1000)]
    assert sum(taken) == TOTAL_BURST
    clock.now += 10 * TOTAL_EVERY_S
    assert sum(dial_back._allowance.take(PeerId(f"new {number}")) for number in range(1000)) == 10


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"[" * MAX_BYTES,
        b'{"addresses": "x"}',
        b'{"addresses": ["a", "b", "c", "d", "e"]}',
        b'{"addresses": [], "more": 1}',
        b'{"addresses": [1]}',
        b"\xff",
        b'{"addresses": []}' + b" " * MAX_BYTES,
    ],
)
async def test_what_is_no_question_gets_no_answer(question: bytes) -> None:
    dial = Dialled()
    async with served(dial) as wire:
        reader, writer = await wire.open_stream(OTHER, REACH)
        await write_frame(writer, question)
        with pytest.raises(NetworkError):
            await read_frame(reader, MAX_BYTES, 5)
        writer.close()
    assert dial.asked == []


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b'{"reached": [], "seen_at": "", "time": NaN}',
        b'{"reached": [], "seen_at": "", "time": 1e999}',
        b'{"reached": ["/ip4/8.8.8.8/tcp/1"], "seen_at": "", "time": 1}',
        b'{"reached": [], "seen_at": "' + b"x" * 300 + b'", "time": 1}',
        b"x" * (MAX_BYTES + 1),
    ],
)
async def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader, MAX_BYTES, 5)
        await write_frame(writer, answer)
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        with pytest.raises(WireError):
            await ask(Wire(lambda: server.sockets[0].getsockname()[1]), OTHER, [at(1)])


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "packed"),
    [
        ("/ip4/127.0.0.1/tcp/4001", "047f000001060fa1"),
        ("/ip6/::1/tcp/4001", "2900000000000000000000000000000001060fa1"),
        ("/dns4/a.org/tcp/443/wss", "3605612e6f72670601bbde03"),
        ("/ip4/1.2.3.4/udp/1/quic-v1", "0401020304910200 01cd03".replace(" ", "")),
    ],
)
def test_multiaddrs_as_the_specification_has_them(address: str, packed: str) -> None:
    assert pack(address).hex() == packed
    assert unpack(bytes.fromhex(packed)) == address


def test_a_relay_s_peer_id_is_a_multihash() -> None:
    address = f"/ip4/127.0.0.1/tcp/4001/p2p/{ME}/p2p-circuit"
    packed = pack(address)
    assert packed[8:13].hex() == "a503260024"  # p2p, 38 bytes: identity multihash of 36
    assert packed[-2:].hex() == "a202"
    assert unpack(packed) == address


@given(st.binary(max_size=64))
def test_what_the_daemon_says_is_an_address_or_an_error(data: bytes) -> None:
    try:
        text = unpack(data)
    except WireError:
        return
    assert isinstance(text, str)


def test_ipv4_and_ipv6_share_a_port_and_keep_it(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "peers.json")
    settings = P2PSettings()
    first = stack_config(settings, tmp_path / "key", book).listen
    assert len({port_of(address) for address in first}) == 1
    assert stack_config(settings, tmp_path / "key", AddressBook(tmp_path / "peers.json")).listen == first


def test_a_machine_without_ipv6_listens_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses_module, "has_ipv6", lambda: False)
    assert usable(P2PSettings().listen) == ("/ip4/0.0.0.0/tcp/0",)
    assert usable(("/ip6/::/tcp/1",)) == ("/ip6/::/tcp/1",)


def test_who_listens_on_loopback_only_asks_nobody_for_help(tmp_path: Path) -> None:
    relay = f"/ip4/8.8.8.8/tcp/1/p2p/{OTHER}"
    local = P2PSettings(listen=("/ip4/127.0.0.1/tcp/0",), initial_peers=(relay,), reachability="private")
    config = stack_config(local, tmp_path / "key", AddressBook(tmp_path / "a"))
    assert (config.relay, config.relays, config.port_mapping, local.circuits(ME)) == (False, (), False, ())
    config = stack_config(P2PSettings(initial_peers=(relay,)), tmp_path / "key", AddressBook(tmp_path / "b"))
    assert (config.relay, config.relays, config.port_mapping) == (True, (relay,), True)


def test_who_cannot_be_dialled_is_announced_behind_its_relays() -> None:
    seed, relay = f"/ip4/8.8.8.8/tcp/1/p2p/{OTHER}", f"/ip4/9.9.9.9/tcp/1/p2p/{OTHER}"
    circuit = f"{relay}/p2p-circuit/p2p/{ME}"
    settings = P2PSettings(initial_peers=(seed,), relays=(relay,), reachability="private")
    assert settings.circuits(ME) == (circuit,)
    assert parse(circuit) == (f"{relay}/p2p-circuit", ME)
    assert P2PSettings(initial_peers=(seed,), listen=()).circuits(ME) == (f"{seed}/p2p-circuit/p2p/{ME}",)
    assert P2PSettings(initial_peers=(seed,), listen=(), relay=False).circuits(ME) == ()
    assert P2PSettings(initial_peers=(seed,)).circuits(ME) == ()


def test_a_relay_needs_a_name() -> None:
    with pytest.raises(ConfigError, match=r"exchange\.relays: '/ip4/8\.8\.8\.8/tcp/1' must be .*/p2p/"):
        P2PSettings(relays=("/ip4/8.8.8.8/tcp/1",)).check_addresses()


# Real daemons ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def stacks(tmp_path: Path, **configs: StackConfig | dict[str, object]) -> AsyncIterator[list[Stack]]:
    async with AsyncExitStack() as opened:
        made = []
        for name, settings in configs.items():
            key = tmp_path / name
            Identity.load_or_create(key)
            made.append(await opened.enter_async_context(open_stack(StackConfig(identity_path=key, **settings))))  # type: ignore[arg-type]
        yield made


LOCAL: dict[str, object] = {"listen": with_ports(["/ip4/127.0.0.1/tcp/0"], lambda _: 0)}


@pytest.mark.network
async def test_a_peer_is_dialled_back_by_another(tmp_path: Path) -> None:
    [first], [second] = (with_ports(["/ip4/127.0.0.1/tcp/0"], lambda _: 0) for _ in range(2))
    async with stacks(tmp_path, a={"listen": (first,)}, b={"listen": (second,)}) as [a, b]:
        await a.serve(REACH, DialBack(a, time.time, time.monotonic).serve)
        await b.connect(a.peer_id, a.addresses)
        own, wrong = f"{second}/p2p/{b.peer_id}", f"{first}/p2p/{b.peer_id}"
        found = await ask(b, a.peer_id, [own, wrong])
        assert found.reached == (own,)
        assert found.seen_at.startswith("/ip4/127.0.0.1/tcp/")
        assert abs(found.time - time.time()) < 10
        assert await answers("127.0.0.1", port_of(first), a.peer_id, 5)
        assert not await answers("127.0.0.1", port_of(first), b.peer_id, 5)


async def test_what_is_no_libp2p_peer_does_not_answer() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x13/multistream/1.0.0\n\x07/noise\n" + (200).to_bytes(2, "big") + bytes(200))
        await reader.read()
        writer.close()

    for peer in (silent, chatty):
        async with await asyncio.start_server(peer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            assert not await answers("127.0.0.1", port, ME, 0.5)
    assert not await answers("127.0.0.1", port, ME, 5)


@needs_ipv6
@pytest.mark.network
async def test_a_peer_is_reached_by_ipv6(tmp_path: Path) -> None:
    listen = with_ports(["/ip6/::1/tcp/0"], lambda _: 0)
    assert is_free(listen[0])
    async with stacks(tmp_path, a={"listen": listen}, b=LOCAL) as [a, b]:
        assert not is_free(listen[0])
        assert a.addresses == (f"{listen[0]}/p2p/{a.peer_id}",)
        await b.connect(a.peer_id, a.addresses)
        assert [place.split("/")[:3] for place in await b.remote_addresses(a.peer_id)] == [["", "ip6", "::1"]]
        assert await answers("::1", port_of(listen[0]), a.peer_id, 5)


@pytest.mark.network
async def test_two_peers_that_listen_nowhere_meet_through_a_third(tmp_path: Path) -> None:
    """By circuit relay v2, on real daemons."""
    listen = with_ports(["/ip4/127.0.0.1/tcp/0"], lambda _: 0)
    relaying: dict[str, object] = {"listen": listen, "relay": True, "reachability": "public"}
    hidden: dict[str, object] = {"listen": (), "relay": True, "reachability": "private"}
    async with stacks(tmp_path, relay=relaying, a=hidden, b=hidden) as [relay, a, b]:
        at = f"{listen[0]}/p2p/{relay.peer_id}"
        circuit = P2PSettings(listen=(), relays=(at,)).circuits(a.peer_id)
        assert (a.addresses, b.addresses) == ((), ())

        async def shout(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readexactly(5)).upper())
            await writer.drain()

        await a.serve("/test/shout", shout)
        await a.connect(relay.peer_id, [at])
        await reserve(a, relay.peer_id)
        await b.connect(a.peer_id, circuit)
        assert await b.remote_addresses(a.peer_id) == (f"{at}/p2p-circuit",)
        reader, writer = await b.open_stream(a.peer_id, "/test/shout")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        writer.close()


@asynccontextmanager
async def exchange_of(directory: Path, settings: P2PSettings) -> AsyncIterator[tuple[P2PExchange, MemoryLog]]:
    directory.mkdir()  # noqa: ASYNC240 - a test has nothing else to do
    own, log = Identity.load_or_create(directory / "key"), MemoryLog()
    async with P2PExchange(
        settings,
        identity=own,
        identity_path=directory / "key",
        membership=MEMBERSHIP,
        log=log,
        cursors=Cursors(),
        limits=Limits(),
        peers_file=directory / "peers.json",
    ) as exchange:
        await exchange.announce(announcement(own))
        yield exchange, log


@pytest.mark.network
async def test_a_node_behind_nat_publishes_to_another_through_their_seed(tmp_path: Path) -> None:
    """Exchanges as a node opens them."""
    listen = with_ports(["/ip4/127.0.0.1/tcp/0"], lambda _: 0)
    seed = P2PSettings(listen=listen, heartbeat_s=2)
    async with exchange_of(tmp_path / "seed", seed) as (relay, _):
        at = f"{listen[0]}/p2p/{relay.peer_id}"
        hidden = P2PSettings(listen=(), initial_peers=(at,), port_mapping=False, heartbeat_s=2)
        async with exchange_of(tmp_path / "a", hidden) as (a, log), exchange_of(tmp_path / "b", hidden) as (b, _):
            assert a.addresses == (f"{at}/p2p-circuit/p2p/{a.peer_id}",)
            log.append(signed(7))
            async with asyncio.timeout(DEADLINE_S):
                received = await anext(aiter(b.receive()))
            assert received.sender == a.peer_id


# Reservations ---------------------------------------------------------------------------------------------------------


class Relay:
    """At a port of this machine, over a real socket."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def connect(self, peer: PeerId, addresses: tuple[str, ...]) -> None: ...

    async def open_stream(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("0408022864", None),
        ("0808021a0208012864", None),
        ("05080228c801", NetworkError),
        ("020802", NetworkError),
        ("03080228", WireError),
        ("020d00", WireError),
        ("ffff7f", WireError),
        ("ffffffff01", WireError),
        ("04", NetworkError),
        ("", NetworkError),
    ],
)
async def test_a_relay_s_word_is_ok_or_an_error(answer: str, error: type[Exception] | None) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(3) == b"\x02\x08\x00"
        writer.write(bytes.fromhex(answer))
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        relay = Relay(server.sockets[0].getsockname()[1])
        if error is None:
            await reserve(relay, OTHER)
        else:
            with pytest.raises(error):
                await reserve(relay, OTHER)
