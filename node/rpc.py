"""The operator's service: gRPC `swarm.v1.SwarmNode`, the standard health service, and reflection.

It is for the person who runs the node, never for peers: it listens on loopback unless a token is asked for, compares
the token in constant time, bounds messages, calls and streams, and knows of the node only what `Operated` says.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from node.config import RpcConfig
from node.settings import check_rpc
from swarm.errors import ConfigError, SwarmError
from swarm.wire.v1 import node_pb2, node_pb2_grpc

SERVICE = node_pb2.DESCRIPTOR.services_by_name["SwarmNode"].full_name
MIN_WATCH_INTERVAL_S = 0.1
MAX_REQUEST_BYTES = 64 * 1024
MAX_REPLY_BYTES = 16 * 1024 * 1024
MAX_CALLS = 128
MAX_WATCHERS = 32
"""Streams that last. Fewer than MAX_CALLS, so that watching can never keep an operator from stopping the node."""
STOP_GRACE_S = 1.5
MIN_TOKEN_CHARS = 16
_HEALTH_POLL_S = 0.5

Context = grpc.aio.ServicerContext

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_REPLY_BYTES),
    ("grpc.max_concurrent_streams", MAX_CALLS),  # per connection
    ("grpc.so_reuseport", 0),  # a port that another node has is an error, not half of the calls
)


class Operated(Protocol):
    """A node, as its operator sees it. Nothing here may block the event loop."""

    @property
    def state(self) -> node_pb2.NodeState: ...

    def status(self) -> node_pb2.NodeStatus: ...

    def peers(self) -> Sequence[node_pb2.Peer]: ...

    def verdicts(self, limit: int) -> Sequence[node_pb2.VerdictRecord]:
        """Up to `limit`, the newest first."""
        ...

    def pause(self) -> None:
        """No new sampling and no more steps; the exchange goes on. Nothing if it is paused."""
        ...

    def resume(self) -> None: ...

    async def checkpoint(self) -> tuple[str, int]:
        """Writes one and returns its path and step. Raises SwarmError.

        Cancelled when the caller's deadline passes: it must then come to its end or leave no trace."""
        ...

    def stop(self) -> None:
        """Asks the node to checkpoint, close and exit. Returns at once."""
        ...


class RpcServer:
    """Serves while its context is open; leaving it ends every call within STOP_GRACE_S.

    Raises ConfigError on entry: not loopback and no token, a token or certificate that cannot be used, a port that
    cannot be had.
    """

    def __init__(self, config: RpcConfig, node: Operated) -> None:
        check_rpc(config)
        self._config = config
        self._node = node
        self._stopping = asyncio.Event()
        self._port = 0

    @property
    def address(self) -> str:
        """host:port to dial from this machine."""
        return f"{_dialled(self._config.host)}:{self._port}"

    async def __aenter__(self) -> Self:
        token_file = self._config.token_file
        credentials = _server_credentials(self._config)
        self._server = grpc.aio.server(
            interceptors=[TokenCheck(read_token(token_file))] if token_file else [],
            options=OPTIONS,
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        watchers = asyncio.Semaphore(MAX_WATCHERS)
        node_pb2_grpc.add_SwarmNodeServicer_to_server(NodeService(self._node, self._stopping, watchers), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(self._node, self._stopping, watchers), self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        where = f"{_bracketed(self._config.host)}:{self._config.port}"
        try:
            if credentials is None:
                self._port = self._server.add_insecure_port(where)
            else:
                self._port = self._server.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"rpc.port = {self._config.port} cannot be had on rpc.host = {self._config.host!r}: "
                "another program listens there, or this machine has no such address; port 0 picks a free one"
            ) from error
        await self._server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Refuses new calls, ends the streams, and gives the calls under way STOP_GRACE_S. May be called again."""
        self._stopping.set()  # or streams would use up the whole grace
        await self._server.stop(STOP_GRACE_S)


class NodeService(node_pb2_grpc.SwarmNodeServicer):
    def __init__(self, node: Operated, stopping: asyncio.Event, watchers: asyncio.Semaphore) -> None:
        self._node = node
        self._stopping = stopping
        self._watchers = watchers

    async def GetStatus(self, request: node_pb2.GetStatusRequest, context: Context) -> node_pb2.NodeStatus:
        return self._node.status()

    async def WatchStatus(
        self, request: node_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[node_pb2.NodeStatus]:
        interval = request.interval_s or 1.0
        if not MIN_WATCH_INTERVAL_S <= interval < float("inf"):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"interval_s = {interval:g} is not allowed; it must be at least {MIN_WATCH_INTERVAL_S}",
            )
        async with await _slot(self._watchers, context):
            yield self._node.status()
            while not await _set_within(self._stopping, interval):
                yield self._node.status()

    async def ListPeers(self, request: node_pb2.ListPeersRequest, context: Context) -> node_pb2.ListPeersResponse:
        return node_pb2.ListPeersResponse(peers=self._node.peers())

    async def ListVerdicts(
        self, request: node_pb2.ListVerdictsRequest, context: Context
    ) -> node_pb2.ListVerdictsResponse:
        return node_pb2.ListVerdictsResponse(verdicts=self._node.verdicts(request.limit or 100))

    async def Pause(self, request: node_pb2.PauseRequest, context: Context) -> node_pb2.PauseResponse:
        self._node.pause()
        return node_pb2.PauseResponse()

    async def Resume(self, request: node_pb2.ResumeRequest, context: Context) -> node_pb2.ResumeResponse:
        self._node.resume()
        return node_pb2.ResumeResponse()

    async def Checkpoint(self, request: node_pb2.CheckpointRequest, context: Context) -> node_pb2.CheckpointResponse:
        try:
            path, step = await self._node.checkpoint()
        except SwarmError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return node_pb2.CheckpointResponse(path=path, step=step)

    async def Stop(self, request: node_pb2.StopRequest, context: Context) -> node_pb2.StopResponse:
        self._node.stop()
        return node_pb2.StopResponse()


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers for "" (the server) and for SERVICE. A node that its operator paused is well: no restart helps."""

    def __init__(self, node: Operated, stopping: asyncio.Event, watchers: asyncio.Semaphore) -> None:
        self._node = node
        self._stopping = stopping
        self._watchers = watchers

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        return self._now(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        async with await _slot(self._watchers, context):
            newest = self._now(request.service)
            yield newest
            while not await _set_within(self._stopping, _HEALTH_POLL_S):
                if (now := self._now(request.service)) != newest:
                    yield now
                    newest = now

    def _now(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in ("", SERVICE):
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        well = self._node.state in (node_pb2.NODE_STATE_RUNNING, node_pb2.NODE_STATE_PAUSED)
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=serving if well else not_serving)


class TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses every call without `authorization: Bearer TOKEN`, whether or not there is such a method. Health is open:
    whoever probes it holds no secrets, and learns none."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        call: Any = handler_call_details  # its fields are set from C
        if call.method.startswith(f"/{health.SERVICE_NAME}/") or self._holds(call.invocation_metadata):
            return await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(_refuse)

    def _holds(self, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
        given = [value for key, value in metadata if key == "authorization"]
        return len(given) == 1 and hmac.compare_digest(str(given[0]).encode(), self._expected)


async def _refuse(request: bytes, context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this node wants `authorization: Bearer TOKEN`")


def read_token(path: Path) -> str:
    """The secret in a token file: its only line. Raises ConfigError."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"rpc.token_file = {str(path)!r} cannot be read: {error}") from error
    if len(token) < MIN_TOKEN_CHARS or not token.isprintable():
        raise ConfigError(
            f"rpc.token_file = {str(path)!r} is not allowed; it must hold one line of at least "
            f"{MIN_TOKEN_CHARS} characters, such as `openssl rand -hex 32` prints"
        )
    return token


def _server_credentials(config: RpcConfig) -> grpc.ServerCredentials | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    try:  # gRPC says no more than that it failed; this says why
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_cert, config.tls_key, password="")
        pair = (config.tls_key.read_bytes(), config.tls_cert.read_bytes())
    except OSError as error:  # SSLError is one
        raise ConfigError(
            f"rpc.tls_cert = {str(config.tls_cert)!r} and rpc.tls_key = {str(config.tls_key)!r} "
            f"are not a PEM certificate and its key: {error}"
        ) from error
    return grpc.ssl_server_credentials([pair])


async def _slot(watchers: asyncio.Semaphore, context: Context) -> asyncio.Semaphore:
    """`watchers`, if one more may come in: a caller is refused rather than kept waiting."""
    if watchers.locked():
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHERS} streams are open already")
    return watchers


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _dialled(host: str) -> str:
    """Where a server that listens on `host` is reached from its own machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return _bracketed(host)
