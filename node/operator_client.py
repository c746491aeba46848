"""The other end of `node/rpc.py`: what a command or a program asks a running node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self, TypeVar

import grpc
import grpc.aio

from node.datadir import DataDirectory
from swarm.errors import ConfigError, NetworkError
from swarm.wire.v1 import node_pb2, node_pb2_grpc

MAX_REPLY_BYTES = 16 * 1024 * 1024
CALL_TIMEOUT_S = 5.0
CHECKPOINT_TIMEOUT_S = 300.0

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment is for the web; it cannot reach a node on loopback
)

Request = TypeVar("Request")
Reply = TypeVar("Reply")


def discover(data_dir: Path) -> str:
    """The address of the node that runs in `data_dir`. Raises NetworkError if none does."""
    try:
        endpoint = (directory := DataDirectory(data_dir)).endpoint()
    except (ConfigError, OSError) as error:
        raise NetworkError(str(error)) from error
    if endpoint is None:
        why = f"; the last one ended because {last}" if (last := directory.last_end()) else ""
        raise NetworkError(f"no node is running in {data_dir}: start one there, or name another directory{why}")
    return endpoint.address


class NodeClient:
    """One channel to one node, while the context is open. Every call has a deadline and raises NetworkError, whose
    sentence says what to do."""

    def __init__(
        self, address: str, token: str | None = None, ca: Path | None = None, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """`ca`: PEM file that the node's certificate is checked with; without one the connection is not encrypted."""
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        self._ca = ca
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        if self._ca is None:
            self._channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(_read_certificate(self._ca))
            self._channel = grpc.aio.secure_channel(self._address, credentials, options=OPTIONS)
        self._stub = node_pb2_grpc.SwarmNodeStub(self._channel)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def status(self) -> node_pb2.NodeStatus:
        return await self._ask(self._stub.GetStatus, node_pb2.GetStatusRequest())

    async def watch(self, interval_s: float = 1.0) -> AsyncIterator[node_pb2.NodeStatus]:
        """A status now and every `interval_s`, until the node stops. The deadline is for each, not for all."""
        call = self._stub.WatchStatus(node_pb2.WatchStatusRequest(interval_s=interval_s), metadata=self._metadata)
        limit_s = interval_s + self._timeout_s
        replies = aiter(call)
        try:
            while True:
                async with asyncio.timeout(limit_s):
                    reply = await anext(replies, None)
                if reply is None:
                    return
                yield reply
        except TimeoutError:
            raise NetworkError(f"the node at {self._address} sent nothing for {limit_s:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise self._explained(error, limit_s) from error
        finally:
            call.cancel()

    async def peers(self) -> Sequence[node_pb2.Peer]:
        return (await self._ask(self._stub.ListPeers, node_pb2.ListPeersRequest())).peers

    async def verdicts(self, limit: int = 100) -> Sequence[node_pb2.VerdictRecord]:
        """The newest first."""
        return (await self._ask(self._stub.ListVerdicts, node_pb2.ListVerdictsRequest(limit=limit))).verdicts

    async def pause(self) -> None:
        await self._ask(self._stub.Pause, node_pb2.PauseRequest())

    async def resume(self) -> None:
        await self._ask(self._stub.Resume, node_pb2.ResumeRequest())

    async def checkpoint(self) -> tuple[str, int]:
        """Where it is on the node's disk, and of which step."""
        request = node_pb2.CheckpointRequest()
        reply = await self._ask(self._stub.Checkpoint, request, max(self._timeout_s, CHECKPOINT_TIMEOUT_S))
        return reply.path, reply.step

    async def stop(self) -> None:
        """Returns when the node has heard it, not when it is gone."""
        await self._ask(self._stub.Stop, node_pb2.StopRequest())

    async def _ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Reply], request: Request, timeout_s: float | None = None
    ) -> Reply:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return await method(request, timeout=limit_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._explained(error, limit_s) from error

    def _explained(self, error: grpc.aio.AioRpcError, limit_s: float) -> NetworkError:
        code, where = error.code(), f"the node at {self._address}"
        match code:
            case grpc.StatusCode.UNAVAILABLE:
                hint = (
                    "is it running?" if self._ca is None else "is it running, with a certificate that --ca vouches for?"
                )
                return NetworkError(f"{where} does not answer; {hint} ({error.details()})")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return NetworkError(f"{where} did not answer within {limit_s:g} s")
            case grpc.StatusCode.UNAUTHENTICATED:
                return NetworkError(f"{where} wants the token that its rpc.token_file holds; this one is not it")
        return NetworkError(f"{where} refused: {error.details()} ({code.name})")


def _read_certificate(ca: Path) -> bytes:
    try:
        return ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"--ca {ca}: cannot be read: {error.strerror}") from error
