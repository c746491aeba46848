"""Real libp2p daemons on loopback. Every wait ends with what it waits for, or with a deadline that fails the test."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import uvloop

import swarm.net.p2pd as p2pd_module
import swarm.net.stack as stack_module
from swarm.errors import ConfigError, NetworkError
from swarm.limits import Limits
from swarm.membership import Membership
from swarm.net.addressbook import AddressBook
from swarm.net.base import LogEntry, Received
from swarm.net.directory import Participant, open_directory
from swarm.net.exchange import P2PExchange
from swarm.net.following import QUEUE_GROUPS
from swarm.net.memory import MemoryLog
from swarm.net.p2pd import StackConfig
from swarm.net.peertable import PeerTable
from swarm.net.rundir import STALE_AFTER_S, run_directory
from swarm.net.settings import P2PSettings
from swarm.net.stack import StreamHandler, open_stack
from swarm.net.streams import PULL, read_frame, write_frame
from swarm.types import PeerId, Reason, SignedGroup, Verdict
from swarm.wire.codec import Pull, decode_group, encode_entry, encode_pull
from swarm.wire.identity import GROUP_DOMAIN, Identity, check_signature
from tests.builders import MEMBERSHIP, announcement, cell_value, signed

pytestmark = pytest.mark.network

DEADLINE_S = 20.0
LISTEN = ("/ip4/127.0.0.1/tcp/0",)
WORTH = (cell_value("rg/spell", 0.5),)
DEAD = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWHHaWjRnUXvqY4MZ8R1nqmwn8hiMoeHr5VTVtRyfbrKVE"


class Cursors:
    def __init__(self) -> None:
        self.kept: dict[PeerId, tuple[bytes, int]] = {}

    def cursor(self, peer: PeerId) -> tuple[bytes, int]:
        return self.kept.get(peer, (b"", 0))

    def set_cursor(self, peer: PeerId, epoch: bytes, cursor: int) -> None:
        self.kept[peer] = (epoch, cursor)


@dataclass
class Node:
    exchange: P2PExchange
    identity: Identity
    log: MemoryLog
    cursors: Cursors

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    def publish(self, *indices: int) -> None:
        for index in indices:
            self.log.append(signed(index, self.identity))

    async def receive(self, count: int) -> list[Received]:
        received: list[Received] = []
        async with asyncio.timeout(DEADLINE_S):
            async for group in self.exchange.receive():
                received.append(group)
                if len(received) == count:
                    break
        return received

    async def see(self, *others: Node) -> None:
        wanted = {other.peer for other in others}
        await until(lambda: wanted <= {peer.peer for peer in self.exchange.peers()})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.02)


def indices(received: list[Received]) -> list[int]:
    return [decode_group(r.body, r.signature, Limits()).group.task.index for r in received]


@asynccontextmanager
async def node(
    directory: Path,
    *peers: str,
    cursors: Cursors | None = None,
    log: MemoryLog | None = None,
    membership: Membership = MEMBERSHIP,
    heartbeat_s: float = 2.0,
    compression: bool = True,
) -> AsyncIterator[Node]:
    directory.mkdir(exist_ok=True)  # noqa: ASYNC240 - a test has nothing else to do
    identity = Identity.load_or_create(directory / "identity.key")
    log, cursors = log or MemoryLog(), cursors or Cursors()
    exchange = P2PExchange(
        P2PSettings(listen=LISTEN, initial_peers=peers, heartbeat_s=heartbeat_s, compression=compression),
        identity=identity,
        identity_path=directory / "identity.key",
        membership=membership,
        log=log,
        cursors=cursors,
        limits=Limits(),
        peers_file=directory / "peers.json",
    )
    async with exchange:
        assert exchange.state == "up"
        mine = announcement(identity, name=directory.name, values=WORTH)
        await exchange.announce(replace(mine, swarm=membership.swarm))
        yield Node(exchange, identity, log, cursors)


@asynccontextmanager
async def hostile(directory: Path, *peers: str, handler: StreamHandler) -> AsyncIterator[None]:
    """A peer that is in the directory as it should be, and answers pulls with `handler`."""
    directory.mkdir()  # noqa: ASYNC240 - as above
    identity = Identity.load_or_create(directory / "identity.key")
    member = Participant(
        membership=MEMBERSHIP,
        identity=identity,
        heartbeat_s=2.0,
        seeds=peers,
        table=PeerTable(identity.peer_id, 2.0, time.monotonic),
        book=AddressBook(directory / "peers.json"),
        announcement=lambda: replace(announcement(identity, name="hostile"), addresses=()),
        renewed=asyncio.Event(),
        rng=random.Random(0),
        clock=time.time,
    )
    config = StackConfig(identity_path=directory / "identity.key", listen=LISTEN)
    async with open_stack(config) as stack, open_directory(stack, member) as its_directory:
        await stack.serve(PULL, handler)
        task = asyncio.create_task(its_directory.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


def daemons() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name() == "p2pd"]


def run_directories() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("swarm-node-*")}


@pytest.fixture(autouse=True)
def leaves_nothing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A place of its own: other tests, in other processes, leave and remove what they need meanwhile. Not `tmp_path`,
    # which is longer than the name of a socket may be.
    with tempfile.TemporaryDirectory(prefix="swarm-test-") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        monkeypatch.setenv("TMPDIR", place)
        yield
        assert not daemons()
        assert not run_directories()
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


async def test_two_peers_find_each_other_and_exchange_groups(tmp_path: Path) -> None:
    async with node(tmp_path / "a") as a, node(tmp_path / "b", *a.exchange.addresses) as b:
        a.publish(1, 2)
        b.publish(3)
        from_b, from_a = await asyncio.gather(a.receive(1), b.receive(2))
        assert (indices(from_b), indices(from_a)) == ([3], [1, 2])
        assert {group.sender for group in from_a} == {a.peer}
        check_signature(b.peer, GROUP_DOMAIN, from_b[0].body, from_b[0].signature)
        a.publish(4)
        assert indices(await b.receive(1)) == [4]
        [info] = b.exchange.peers()
        assert (info.peer, info.name, info.addresses) == (a.peer, "a", a.exchange.addresses)
        assert info.values == WORTH
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_on_uvloop_too(tmp_path: Path) -> None:
    async def main() -> list[int]:
        async with node(tmp_path / "a") as a, node(tmp_path / "b", *a.exchange.addresses) as b:
            a.publish(1)
            received = indices(await b.receive(1))
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return received

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == [1]


async def test_a_friend_of_a_friend_is_found(tmp_path: Path) -> None:
    async with (
        node(tmp_path / "a") as a,
        node(tmp_path / "b", *a.exchange.addresses) as b,
        node(tmp_path / "c", *b.exchange.addresses) as c,
    ):
        await asyncio.gather(c.see(a, b), a.see(b, c), b.see(a, c))
        a.publish(7)
        assert indices(await c.receive(1)) == [7]


async def test_dead_addresses_delay_nothing_and_a_remembered_one_is_enough(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with node(tmp_path / "a") as a:
        async with node(tmp_path / "b", *a.exchange.addresses) as b:
            await b.see(a)
        started = loop.time()
        async with node(tmp_path / "b", DEAD) as b:
            assert loop.time() - started < 5
            a.publish(1)
            assert indices(await b.receive(1)) == [1]


async def test_a_restart_keeps_the_address_and_goes_on_from_the_cursor(tmp_path: Path) -> None:
    cursors = Cursors()
    async with node(tmp_path / "a") as a:
        a.publish(1, 2, 3)
        async with node(tmp_path / "b", *a.exchange.addresses, cursors=cursors) as b:
            assert indices(await b.receive(3)) == [1, 2, 3]
            # The third was taken, but nothing was asked for after it.
            assert cursors.cursor(a.peer) == (a.log.epoch, 2)
            addresses = b.exchange.addresses
        a.publish(4)
        async with node(tmp_path / "b", cursors=cursors) as b:
            assert b.exchange.addresses == addresses
            assert indices(await b.receive(2)) == [3, 4]


async def test_a_killed_daemon_comes_back(tmp_path: Path) -> None:
    async with node(tmp_path / "a") as a:
        before = {process.pid for process in daemons()}
        async with node(tmp_path / "b", *a.exchange.addresses) as b:
            a.publish(1)
            assert indices(await b.receive(1)) == [1]
            addresses = b.exchange.addresses
            [killed] = [process.pid for process in daemons() if process.pid not in before]
            os.kill(killed, signal.SIGKILL)
            await until(lambda: b.exchange.state.startswith("restarting: "))
            assert b.exchange.addresses == ()
            await b.exchange.announce(announcement(b.identity, name="b"))
            await until(lambda: b.exchange.state == "up")
            assert b.exchange.addresses == addresses
            a.publish(2)
            b.publish(3)
            assert await asyncio.gather(b.receive(1), a.receive(1)) != []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_nodes_of_another_swarm_are_not_seen_and_not_served(tmp_path: Path) -> None:
    async with (
        node(tmp_path / "a") as a,
        node(tmp_path / "b", *a.exchange.addresses, membership=Membership(swarm="another")) as b,
    ):
        a.publish(1)
        stack = b.exchange._stack
        assert stack is not None
        await stack.connect(a.peer, a.exchange.addresses)
        reader, writer = await stack.open_stream(a.peer, PULL)
        async with asyncio.timeout(DEADLINE_S):
            await write_frame(writer, encode_pull(Pull(swarm="another", epoch=b"", cursor=0, max_groups=1)))
            assert await reader.read() == b""
        writer.close()
        assert not b.exchange.peers()
        assert not a.exchange.peers()


async def test_a_process_that_is_killed_leaves_no_daemon(tmp_path: Path) -> None:
    script = """
        import asyncio, os, psutil, sys
        from pathlib import Path
        from swarm.net.p2pd import StackConfig
        from swarm.net.stack import open_stack

        async def main():
            config = StackConfig(identity_path=Path(sys.argv[1]), listen=("/ip4/127.0.0.1/tcp/0",))
            async with open_stack(config) as stack:
                await stack.serve("/none", None)
                print(*[child.pid for child in psutil.Process().children()], flush=True)
                os.kill(os.getpid(), 9)

        asyncio.run(main())
    """
    Identity.load_or_create(tmp_path / "identity.key")
    run = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(tmp_path / "identity.key")]
    before = run_directories()
    child = await asyncio.to_thread(subprocess.run, run, capture_output=True, text=True, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr
    [pid] = map(int, child.stdout.split())
    await until(lambda: not psutil.pid_exists(pid))
    # Its sockets are left; whoever comes next removes them, once they are surely nobody's.
    [left] = run_directories() - before
    path = Path(tempfile.gettempdir()) / left
    with run_directory():
        assert path.exists()
    os.utime(path, (0, time.time() - 2 * STALE_AFTER_S))
    with run_directory():
        assert not path.exists()


async def test_a_publisher_of_junk_stops_nobody(tmp_path: Path) -> None:
    group = signed(0)
    entry = LogEntry(cursor=1, body=group.body, signature=group.signature)
    streams = 0

    async def junk(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal streams
        streams += 1
        await read_frame(reader, 1024, DEADLINE_S)
        if streams == 1:
            writer.write((2**32 - 1).to_bytes(4, "big") + bytes(1000))
        elif streams == 2:
            await write_frame(writer, b"\xff" * 100)
        else:
            response = encode_entry(bytes(16), entry)
            await write_frame(writer, response)
            await write_frame(writer, response)
        await writer.drain()
        await reader.read()

    async with (
        node(tmp_path / "a") as a,
        node(tmp_path / "b", *a.exchange.addresses) as b,
        hostile(tmp_path / "c", *a.exchange.addresses, handler=junk),
    ):
        await until(lambda: len(a.exchange.peers()) == 2)
        for index in range(5):
            b.publish(index)
            received = await a.receive(1)
            assert received[0].sender == b.peer
        await until(lambda: streams >= 3)
        b.publish(5)
        got = [received.sender for received in await a.receive(2)]
        assert b.peer in got
        assert a.exchange.state == "up"


async def test_a_slow_reader_makes_the_publisher_wait(tmp_path: Path) -> None:
    class CountingLog(MemoryLog):
        read_to = 0

        async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
            entries = await super().read(cursor, limit)
            self.read_to = max([self.read_to, *(entry.cursor for entry in entries)])
            return entries

    log, count, group = CountingLog(), 600, signed(0)

    async def stuck() -> bool:
        before = log.read_to
        await asyncio.sleep(0.3)
        return log.read_to == before

    async with (  # What is random is not compressed, and to try takes as long as all the rest.
        node(tmp_path / "a", log=log, compression=False) as a,
        node(tmp_path / "b", *a.exchange.addresses) as b,
    ):
        a.publish(0)
        await b.receive(1)
        for _ in range(count):
            log.append(SignedGroup(id=group.id, group=group.group, body=os.urandom(100_000), signature=bytes(64)))
        async with asyncio.timeout(DEADLINE_S):
            await until(b.exchange._following.queue.full)
            while not await stuck():
                pass
        assert b.exchange._following.queue.qsize() == QUEUE_GROUPS
        assert log.read_to < count / 2
        entries = await log.read(1, count)
        assert [received.body for received in await b.receive(count)] == [entry.body for entry in entries]


async def test_whoever_is_blamed_is_not_followed_any_more(tmp_path: Path) -> None:
    async with node(tmp_path / "a") as a, node(tmp_path / "b", *a.exchange.addresses) as b:
        a.publish(1)
        await b.receive(1)
        for _ in range(10):
            b.exchange.blame(a.peer, Verdict(reason=Reason.STALE))
        a.publish(2)
        assert indices(await b.receive(1)) == [2]
        for _ in range(5):
            b.exchange.blame(a.peer, Verdict(reason=Reason.BAD_SIGNATURE))
        streams = a.exchange._publisher._streams
        await until(lambda: not streams)
        assert [peer.peer for peer in b.exchange.peers()] == [a.peer]


async def test_a_daemon_that_hangs_is_noticed_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "CONTROL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(stack_module, "WATCH_INTERVAL_S", 0.1)
    monkeypatch.setattr(p2pd_module, "CLOSE_TIMEOUT_S", 0.5)
    Identity.load_or_create(tmp_path / "identity.key")
    async with open_stack(StackConfig(identity_path=tmp_path / "identity.key", listen=LISTEN)) as stack:
        [daemon] = daemons()
        daemon.suspend()
        with pytest.raises(NetworkError):
            async with asyncio.timeout(DEADLINE_S):
                await stack.watch()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"initial_peers": ("/ip4/1.2.3.4/tcp/4001",)}, ["exchange.initial_peers", "/ip4/1.2.3.4/tcp/4001", "/p2p/"]),
        ({"initial_peers": ("/ip4/1.2.3.4/tcp/4001/p2p/Qm",)}, ["exchange.initial_peers", "Qm"]),
        ({"listen": ("0.0.0.0:4001",)}, ["exchange.listen", "0.0.0.0:4001", "/ip4/203.0.113.7/tcp/4001"]),
        ({"listen": ("/ip4/1.2.3.400/tcp/1",)}, ["exchange.listen", "1.2.3.400"]),
        ({"announce": ("/ip4/1.2.3.4/tcp/0",)}, ["exchange.announce", "port 0"]),
        ({"announce": (DEAD,)}, ["exchange.announce", "peer id"]),
    ],
)
def test_what_cannot_work_is_said_at_once(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        P2PSettings.model_validate(settings).check_addresses()
    assert all(word in str(error.value) for word in words), error.value
