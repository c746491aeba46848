from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from node import rpc
from node.config import RpcConfig
from node.operator_client import NodeClient, discover
from node.rpc import RpcServer, read_token
from swarm.errors import CheckpointError, ConfigError, NetworkError
from swarm.wire.v1 import node_pb2, node_pb2_grpc

TOKEN = "correct-horse-battery-staple"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class StillNode:
    """An `Operated` that does nothing but remember what it was asked."""

    def __init__(self) -> None:
        self.state = node_pb2.NODE_STATE_RUNNING
        self.steps = 0
        self.stopped = asyncio.Event()
        self.disk_is_full = False

    def status(self) -> node_pb2.NodeStatus:
        self.steps += 1
        return node_pb2.NodeStatus(name="still", state=self.state, steps=self.steps, metrics={"loss": 0.5})

    def peers(self) -> Sequence[node_pb2.Peer]:
        return [node_pb2.Peer(peer="12D3KooWa", name="a", admitted=3, refused={"stale": 1})]

    def verdicts(self, limit: int) -> Sequence[node_pb2.VerdictRecord]:
        return [node_pb2.VerdictRecord(origin="12D3KooWa", reason="admitted", age_s=i) for i in range(limit)]

    def pause(self) -> None:
        self.state = node_pb2.NODE_STATE_PAUSED

    def resume(self) -> None:
        self.state = node_pb2.NODE_STATE_RUNNING

    async def checkpoint(self) -> tuple[str, int]:
        if self.disk_is_full:
            raise CheckpointError("the disk is full")
        return "runs/node/checkpoints/7", 7

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def node() -> StillNode:
    return StillNode()


@pytest.fixture
async def server(node: StillNode) -> AsyncIterator[RpcServer]:
    async with RpcServer(RpcConfig(), node) as server:
        yield server


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@asynccontextmanager
async def channel_to(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        yield channel


def standard(stub: Any, channel: grpc.aio.Channel) -> Any:
    """A stub of the health or the reflection service, which have no types of their own."""
    return stub(channel)


async def test_every_question_reaches_the_node(node: StillNode, server: RpcServer) -> None:
    async with NodeClient(server.address) as client:
        status = await client.status()
        assert (status.name, status.state, dict(status.metrics)) == (
            "still",
            node_pb2.NODE_STATE_RUNNING,
            {"loss": 0.5},
        )
        assert [dict(peer.refused) for peer in await client.peers()] == [{"stale": 1}]
        assert [record.age_s for record in await client.verdicts(limit=3)] == [0, 1, 2]
        assert len(await client.verdicts(limit=0)) == 100
        await client.pause()
        assert (await client.status()).state == node_pb2.NODE_STATE_PAUSED
        await client.resume()
        assert (await client.status()).state == node_pb2.NODE_STATE_RUNNING
        assert await client.checkpoint() == ("runs/node/checkpoints/7", 7)
        await client.stop()
        assert node.stopped.is_set()


async def test_a_failed_checkpoint_says_why(node: StillNode, server: RpcServer) -> None:
    node.disk_is_full = True
    async with NodeClient(server.address) as client:
        with pytest.raises(NetworkError, match="refused: the disk is full"):
            await client.checkpoint()


async def test_watching_repeats_the_status_at_the_interval(server: RpcServer) -> None:
    async with NodeClient(server.address) as client:
        started = time.monotonic()
        steps = []
        async for status in client.watch(0.1):
            steps.append(status.steps)
            if len(steps) == 3:
                break
        assert steps == [1, 2, 3]
        assert time.monotonic() - started >= 0.19


@pytest.mark.parametrize("interval", [0.05, -1.0, float("nan"), float("inf")])
async def test_watching_refuses_a_bad_interval(server: RpcServer, interval: float) -> None:
    async with channel_to(server.address) as channel:
        stub = node_pb2_grpc.SwarmNodeStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(stub.WatchStatus(node_pb2.WatchStatusRequest(interval_s=interval), timeout=5)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == f"interval_s = {interval:g} is not allowed; it must be at least 0.1"


async def test_watching_ends_cleanly_and_at_once_when_the_server_stops(node: StillNode) -> None:
    async with RpcServer(RpcConfig(), node) as server, NodeClient(server.address) as client:
        watching = client.watch(60.0)
        assert (await anext(watching)).steps == 1
        started = time.monotonic()
        await server.stop()
        assert await anext(watching, "the end") == "the end"
        assert time.monotonic() - started < 1.0


async def test_watchers_cannot_shut_the_operator_out(
    node: StillNode, server: RpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with NodeClient(server.address) as client:
        watching = [client.watch(60.0) for _ in range(rpc.MAX_WATCHERS)]
        for watcher in watching:
            await anext(watcher)
        with pytest.raises(NetworkError, match="32 streams are open already"):
            await anext(client.watch(60.0))
        await client.stop()
        assert node.stopped.is_set()
        await server.stop()
        for watcher in watching:
            assert await anext(watcher, None) is None


async def test_stopping_does_not_wait_for_a_caller_that_lingers(node: StillNode) -> None:
    server = RpcServer(RpcConfig(), node)
    async with server, channel_to(server.address) as channel:
        call = standard(reflection_pb2_grpc.ServerReflectionStub, channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await call.read()
        started = time.monotonic()
        await server.stop()
        assert time.monotonic() - started < 2.0


async def test_health_follows_the_state(node: StillNode, server: RpcServer) -> None:
    async with channel_to(server.address) as channel:
        stub = standard(health_pb2_grpc.HealthStub, channel)
        for state, expected in (
            (node_pb2.NODE_STATE_STARTING, NOT_SERVING),
            (node_pb2.NODE_STATE_RUNNING, SERVING),
            (node_pb2.NODE_STATE_PAUSED, SERVING),
            (node_pb2.NODE_STATE_STOPPING, NOT_SERVING),
        ):
            node.state = state
            for service in ("", "swarm.v1.SwarmNode"):
                reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
                assert reply.status == expected
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_can_be_watched(node: StillNode, server: RpcServer) -> None:
    async with channel_to(server.address) as channel:
        call = standard(health_pb2_grpc.HealthStub, channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        replies = aiter(call)
        assert (await anext(replies)).status == SERVING
        node.state = node_pb2.NODE_STATE_STOPPING
        assert (await anext(replies)).status == NOT_SERVING
        call.cancel()


async def test_reflection_lists_the_services(server: RpcServer) -> None:
    async with channel_to(server.address) as channel:
        call = standard(reflection_pb2_grpc.ServerReflectionStub, channel).ServerReflectionInfo(timeout=5)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await call.done_writing()
        reply = await call.read()
        assert {service.name for service in reply.list_services_response.service} == {
            "swarm.v1.SwarmNode",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


async def test_a_request_beyond_the_size_limit_is_refused(server: RpcServer) -> None:
    async with channel_to(server.address) as channel:
        call = channel.unary_unary("/swarm.v1.SwarmNode/GetStatus")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bytes(rpc.MAX_REQUEST_BYTES + 1), timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("given", [None, "", TOKEN[:-1], TOKEN + "x", TOKEN.upper()])
async def test_without_its_token_nothing_but_health_answers(
    node: StillNode, token_file: Path, given: str | None
) -> None:
    async with RpcServer(RpcConfig(token_file=token_file), node) as server:
        async with NodeClient(server.address, token=given) as client:
            with pytest.raises(NetworkError, match=r"wants the token that its rpc\.token_file holds"):
                await client.stop()
            with pytest.raises(NetworkError, match="wants the token"):
                await anext(client.watch(1.0))
        async with channel_to(server.address) as channel:
            check = standard(health_pb2_grpc.HealthStub, channel).Check
            assert (await check(health_pb2.HealthCheckRequest(), timeout=5)).status == SERVING
            call = standard(reflection_pb2_grpc.ServerReflectionStub, channel).ServerReflectionInfo(timeout=5)
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                await channel.unary_unary("/swarm.v1.SwarmNode/NoSuchMethod")(b"", timeout=5)
    assert not node.stopped.is_set()


async def test_with_its_token_everything_answers(node: StillNode, token_file: Path) -> None:
    config = RpcConfig(token_file=token_file)
    async with RpcServer(config, node) as server, NodeClient(server.address, token=TOKEN) as client:
        assert (await client.status()).name == "still"
        assert (await anext(client.watch(1.0))).name == "still"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "node.example.org"])
def test_what_strangers_can_reach_needs_a_token(node: StillNode, host: str) -> None:
    with pytest.raises(ConfigError, match=r"^rpc\.token_file is missing; rpc\.host = "):
        RpcServer(RpcConfig(host=host), node)


async def test_all_interfaces_with_a_token(node: StillNode, token_file: Path) -> None:
    async with RpcServer(RpcConfig(host="0.0.0.0", token_file=token_file), node) as server:
        assert server.address.startswith("127.0.0.1:")
        async with NodeClient(server.address, token=TOKEN) as client:
            assert (await client.status()).name == "still"


@pytest.mark.parametrize(
    "content", [b"", b"short", b"two lines of\nsixteen or more", "schl\u00fcssel-schl\u00fcssel".encode()]
)
def test_a_token_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^rpc\.token_file = "):
        read_token(path)


async def test_a_port_in_use_is_a_config_error(node: StillNode, server: RpcServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"^rpc\.port = {port} cannot be had on rpc\.host = '127.0.0.1'"):
        async with RpcServer(RpcConfig(port=port), node):
            pytest.fail("it serves on a port that is taken")


def self_signed(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(addresses, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


async def test_tls(node: StillNode, tmp_path: Path, token_file: Path) -> None:
    cert, key = self_signed(tmp_path)
    config = RpcConfig(tls_cert=cert, tls_key=key, token_file=token_file)
    async with RpcServer(config, node) as server:
        async with NodeClient(server.address, token=TOKEN, ca=cert) as client:
            assert (await client.status()).name == "still"
        async with NodeClient(server.address, token=TOKEN) as plain:
            with pytest.raises(NetworkError, match="does not answer"):
                await plain.status()


async def test_a_key_of_another_certificate_is_refused(node: StillNode, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (cert, _), (_, key) = self_signed(tmp_path), self_signed(tmp_path / "other")
    with pytest.raises(ConfigError, match="are not a PEM certificate and its key"):
        async with RpcServer(RpcConfig(tls_cert=cert, tls_key=key), node):
            pytest.fail("it serves with a key that does not fit")


async def test_nobody_there(server: RpcServer, node: StillNode) -> None:
    async with RpcServer(RpcConfig(), node) as gone:
        address = gone.address
    async with NodeClient(address) as client:
        with pytest.raises(NetworkError, match=rf"^the node at {address} does not answer; is it running\?"):
            await client.status()


async def test_a_server_that_hangs_costs_one_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel connects; nobody ever reads
        port = silent.getsockname()[1]
        async with NodeClient(f"127.0.0.1:{port}", timeout_s=0.2) as client:
            started = time.monotonic()
            with pytest.raises(NetworkError, match=r"did not answer within 0\.2 s"):
                await client.status()
            with pytest.raises(NetworkError, match=r"sent nothing for 0\.3 s"):
                await anext(client.watch(0.1))
            assert time.monotonic() - started < 3.0


def test_a_node_is_found_by_its_directory(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=rf"^no node is running in {tmp_path}"):
        discover(tmp_path)
    (tmp_path / "rpc").write_text(json.dumps({"address": "127.0.0.1:4711", "pid": 1}))
    assert discover(tmp_path) == "127.0.0.1:4711"
    (tmp_path / "rpc").write_text("nonsense")
    with pytest.raises(NetworkError):
        discover(tmp_path)


def test_it_works_under_uvloop() -> None:
    async def ask() -> str:
        node = StillNode()
        async with RpcServer(RpcConfig(), node) as server, NodeClient(server.address) as client:
            await anext(client.watch(0.1))
            return (await client.status()).name

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()) == "still"
