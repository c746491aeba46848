"""One libp2p daemon, and everything that this project asks of it. A stack is opened, breaks or is closed, and is never
repaired: `swarm.net.exchange` opens another.

hivemind 1.1.12 (pinned) starts the daemon and speaks to it; what it leaves open is closed here, on the instance:

* a unary call that is cancelled when its answer arrives kills the control connection, after which every call hangs
  while the daemon is said to be alive (`guards.PendingCalls`);
* a remote can pile up handler tasks, and cancelled ones are never forgotten (`guards.HandlerTasks`);
* a stream's length prefix is believed: hivemind's own framing (`ServicerBase` streams) reads whatever a peer states.
  So streams are raw here and framed by `swarm.net.streams`. Unary messages are capped by hivemind at 4 MiB, and by
  `meter_unary` far below;
* control requests leak their connection when they fail or are cancelled, so they are made here (`_ask`);
* sockets are made in a world-visible directory and are left there when the daemon is killed (`rundir`).

The daemon ends by itself as soon as its control connection does, so it does not outlive a process that was killed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Never, TypeVar

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, P2PHandlerError, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2 as untyped_pb2

from swarm.errors import NetworkError, WireError
from swarm.net.addresses import is_loopback, parse
from swarm.net.guards import HandlerTasks, PendingCalls
from swarm.net.limiter import Answer, StreamLimiter
from swarm.net.multiaddr import pack, unpack
from swarm.net.p2pd import CLOSE_TIMEOUT_S, StackConfig, end, launch, settled
from swarm.net.rundir import run_directory
from swarm.types import PeerId

T = TypeVar("T")
StreamHandler = Callable[[PeerId, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CONTROL_TIMEOUT_S = 10.0
"""For what the daemon answers by itself."""
DIAL_TIMEOUT_S = 20.0
WATCH_INTERVAL_S = 10.0
VALUED, VALUED_WEIGHT = "followed", 100
"""Of the daemon's connection manager. Its own routing table gives its peers 5."""

logger = logging.getLogger(__name__)
p2pd_pb2: Any = untyped_pb2  # Generated without type stubs.


class Stack:
    """A running daemon. Every method has a deadline and raises NetworkError when the network or a peer fails."""

    def __init__(self, p2p: P2P) -> None:
        self.p2p: Any = p2p
        """hivemind types its attributes as None."""
        self.peer_id = PeerId(self.p2p.peer_id.to_base58())
        self.addresses: tuple[str, ...] = ()
        """Where we can be dialled, with our peer id."""
        self._control: ControlClient = self.p2p._client.control
        self._socket: str = p2p.daemon_listen_maddr["unix"]
        self._pending = PendingCalls()
        self._control._pending_calls = self._pending
        self._control._handler_tasks = HandlerTasks()
        self._limiter = StreamLimiter(time.monotonic)
        self._serving: set[asyncio.Task[Any]] = set()
        self._left_behind: set[asyncio.Task[Any]] = set()

    async def connect(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Returns when there is a connection: at once if there was one; without addresses, libp2p looks for some."""
        request = p2pd_pb2.ConnectRequest(peer=PeerID.from_base58(peer).to_bytes(), addrs=_packed(addresses))
        _, _, writer = await self._ask(
            p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=request), DIAL_TIMEOUT_S, f"connecting to {peer}"
        )
        writer.close()

    async def open_stream(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A raw byte stream. Whoever asked for it closes the writer."""
        request = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(peer).to_bytes(), proto=[protocol])
        _, reader, writer = await self._ask(
            p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=request),
            DIAL_TIMEOUT_S,
            f"opening {protocol} at {peer}",
        )
        return reader, writer

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Hands every incoming stream of `protocol` that there is room for to `handler`, in a task of its own, and
        closes it afterwards."""

        async def serve_stream(info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = PeerId(info.peer_id.to_base58())
            answer = self._limiter.ask(peer, len(self._serving))
            if answer is not Answer.SERVE:
                writer.transport.abort()
                if answer is Answer.HANG_UP:
                    await self._hang_up(peer)
                return
            task = asyncio.create_task(handler(peer, reader, writer))  # type: ignore[arg-type]
            self._serving.add(task)
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                self._serving.discard(task)
                writer.close()
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("%s failed for %s", protocol, info.peer_id, exc_info=error)

        await self.call(self.p2p.add_binary_stream_handler(protocol, serve_stream), CONTROL_TIMEOUT_S, "serving")

    async def _hang_up(self, peer: PeerId) -> None:
        request = p2pd_pb2.DisconnectRequest(peer=PeerID.from_base58(peer).to_bytes())
        with suppress(NetworkError):
            await self._tell(p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=request), "hanging up")
        logger.debug("%s opens streams without end: hung up", peer)

    async def value(self, peer: PeerId, valued: bool) -> None:
        """Whether our connection to `peer` is to be kept before others when there are too many."""
        kind = p2pd_pb2.ConnManagerRequest.TAG_PEER if valued else p2pd_pb2.ConnManagerRequest.UNTAG_PEER
        request = p2pd_pb2.ConnManagerRequest(
            type=kind, peer=PeerID.from_base58(peer).to_bytes(), tag=VALUED, weight=VALUED_WEIGHT
        )
        await self._tell(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNMANAGER, connManager=request), f"valuing {peer}")

    def meter_unary(self, admits: Callable[[str, PeerId, int], bool]) -> None:
        """Asks `admits(method, peer, bytes)` before any unary request is parsed; what is refused gets an error."""

        def metered(method: str, handler: Callable[[bytes, PeerID], Awaitable[bytes]]) -> Any:
            async def answer(data: bytes, remote: PeerID) -> bytes:
                if not admits(method, PeerId(remote.to_base58()), len(data)):
                    raise P2PHandlerError("too much")
                return await handler(data, remote)

            return answer

        handlers = self._control.unary_handlers
        handlers.update({name: metered(name.rpartition(".")[2], handler) for name, handler in handlers.items()})

    async def call(self, awaitable: Coroutine[Any, Any, T], timeout: float, what: str) -> T:
        """What hivemind does, under a deadline. It is left alone when the deadline passes, not cancelled, and ends with
        the stack at the latest."""
        task = asyncio.create_task(awaitable)
        self._left_behind.add(task)
        task.add_done_callback(self._forget)
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            raise NetworkError(f"{what}: nothing for {timeout:g} s")
        try:
            return task.result()
        # hivemind passes on whatever its internals raise (assertions, protobuf, msgpack): to us it is all one.
        except Exception as error:
            raise NetworkError(f"{what}: {error or type(error).__name__}") from error

    async def watch(self) -> Never:
        """Keeps the addresses up to date; raises NetworkError as soon as the stack is broken."""
        vital = {
            self._control._read_task: "control connection was lost",
            self._control._write_task: "control connection was lost",
            self.p2p._listen_task: "stream listener ended",
            self.p2p._reader_task: "daemon ended",
        }
        failures = 0
        while True:
            try:
                await self._refresh()
                failures = 0
            except NetworkError:
                # Once may be our own event loop's fault (a suspended machine, a long step): twice is not.
                failures += 1
                if failures == 2:
                    raise
            ended, _ = await asyncio.wait(
                {task for task in vital if task is not None},
                timeout=WATCH_INTERVAL_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if ended or not self.p2p.is_alive:
                raise NetworkError(next((vital[task] for task in ended), "daemon ended"))

    async def _refresh(self) -> None:
        """Tries both ways to the daemon: a request of its own, and a call over the persistent connection. The call is
        to ourselves, which the daemon refuses at once: any answer will do."""
        self.addresses = await self._identify()
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                await self._control.call_unary_handler(self.p2p.peer_id, "echo", b"")
        except TimeoutError:
            raise NetworkError("daemon does not answer") from None
        except (P2PDaemonError, P2PHandlerError):
            pass

    async def remote_addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where our connections to `peer` lead, by what the transport says; one through a relay names the relay."""
        return tuple((await self.connections()).get(peer, ()))

    async def connections(self) -> dict[PeerId, list[str]]:
        """The same of everybody that we have a connection to."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS)
        response, _, writer = await self._ask(request, CONTROL_TIMEOUT_S, "asking the daemon for its connections")
        writer.close()
        found = dict[PeerId, list[str]]()
        for peer in response.peers:  # a connection each
            found.setdefault(PeerId(PeerID(peer.id).to_base58()), []).extend(_unpacked(peer.addrs))
        return found

    async def _identify(self) -> tuple[str, ...]:
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY)
        response, _, writer = await self._ask(request, CONTROL_TIMEOUT_S, "asking the daemon for its addresses")
        writer.close()
        return _with_peer(response.identify.addrs, self.peer_id)

    async def _tell(self, request: Any, what: str) -> None:
        _, _, writer = await self._ask(request, CONTROL_TIMEOUT_S, what)
        writer.close()

    async def _ask(
        self, request: Any, timeout: float, what: str
    ) -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    await write_pbmsg(writer, request)
                    response = p2pd_pb2.Response()
                    await read_pbmsg_safe(reader, response)
                    if response.type == p2pd_pb2.Response.ERROR:
                        raise P2PDaemonError(" ".join(response.error.msg.split()))
                except BaseException:
                    writer.close()
                    raise
        except TimeoutError:
            raise NetworkError(f"{what}: nothing for {timeout:g} s") from None
        except (P2PDaemonError, OSError, EOFError, ValueError) as error:
            raise NetworkError(f"{what}: {error}") from error
        return response, reader, writer

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved, so that nothing is said about those that nobody waited for any more.

    async def close(self) -> None:
        """Ends the daemon and every task that belongs to it."""
        for task in self._serving:
            task.cancel()
        self._pending.close()
        await settled(self._serving | self._left_behind, CLOSE_TIMEOUT_S)
        await end(self.p2p)
        for task in self._left_behind:
            task.cancel()
        await settled(self._left_behind, CLOSE_TIMEOUT_S)


@asynccontextmanager
async def open_stack(config: StackConfig) -> AsyncIterator[Stack]:
    """A daemon of our own, without any peer yet. Raises NetworkError when it does not start."""
    with run_directory() as directory:
        p2p = await launch(config, directory)
        stack = Stack(p2p)
        try:
            stack.addresses = await stack._identify()
            yield stack
        finally:
            await stack.close()


def _packed(addresses: Iterable[str]) -> list[bytes]:
    """Of those that are well-formed, in the daemon's own form, without a peer id at the end."""
    places = []
    for address in addresses:
        try:
            place, _ = parse(address)
            places.append(pack(place))
        except WireError as error:
            logger.debug("address %r: %s", address, error)
    return places


def _with_peer(places: Iterable[bytes], peer: PeerId) -> tuple[str, ...]:
    """The daemon's addresses as text, with a peer id. Those on loopback only if there are no others."""
    texts = _unpacked(places)
    public = [text for text in texts if not is_loopback(text)]
    return tuple(f"{text}/p2p/{peer}" for text in public or texts)


def _unpacked(places: Iterable[bytes]) -> list[str]:
    texts = []
    for place in places:
        try:
            texts.append(unpack(place))
        except WireError as error:  # The daemon knows more protocols than we do.
            logger.debug("%s", error)
    return texts
