"""Real nodes: real processes, real libp2p, real gRPC, and a real kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from node.operator_client import NodeClient, discover
from swarm.errors import SwarmError
from swarm.wire.v1 import node_pb2
from tests.policies import save_tiny_policy

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(240)]

PATIENCE_S = 90.0
ROOT = Path(__file__).parents[1]

CONFIG = """\
name = "{name}"
data_dir = "{data}"
threads = 1
policy = {{ model = "{policy}" }}
tasks = [{{ type = "plugin", factory = "tests.plain_tasks:Plain", name = "plain" }}]
sampler = {{ group_size = 4, concurrency = 4, max_new_tokens = 6 }}
learner = {{ lr = 1e-3 }}
pool = {{ own_groups = 4, foreign_groups = 4, own_capacity = 4 }}
eval = {{ every_steps = 0 }}
checkpoint = {{ every_steps = 5 }}

[exchange]
type = "p2p"
listen = ["/ip4/127.0.0.1/tcp/0"]
initial_peers = {peers}
heartbeat_s = 2.0
relay = false
"""


class Node:
    """One `swarm-node run` that can be killed and started again in the same directory."""

    def __init__(self, directory: Path, policy: Path) -> None:
        self.directory, self.policy = directory, policy
        self.data = directory / "data"
        self.process: Process | None = None

    async def start(self, peers: Sequence[str] = ()) -> node_pb2.NodeStatus:
        """Returns its first status."""
        self.directory.mkdir(exist_ok=True)
        config = self.directory / "node.toml"
        quoted = "[" + ", ".join(f'"{peer}"' for peer in peers) + "]"
        config.write_text(CONFIG.format(name=self.directory.name, data=self.data, policy=self.policy, peers=quoted))
        with (self.directory / "log").open("ab") as log:
            command = [sys.executable, "-m", "node.cli", "run", str(config)]
            self.process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        return await self.until(lambda status: bool(status.addresses))

    async def until(self, condition: Callable[[node_pb2.NodeStatus], bool]) -> node_pb2.NodeStatus:
        """The first status for which `condition` holds."""
        assert self.process is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self.process.returncode is None:
                    try:
                        async with NodeClient(discover(self.data)) as client:
                            async for status in client.watch(0.2):
                                if condition(status):
                                    return status
                    except SwarmError:  # not up yet, or the address of the one before
                        await asyncio.sleep(0.2)
        except TimeoutError:
            pass
        raise AssertionError(f"{self.directory.name}: {(self.directory / 'log').read_text()[-3000:]}")

    async def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def sweep(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()


@asynccontextmanager
async def nodes(tmp_path: Path, names: Sequence[str]) -> AsyncIterator[list[Node]]:
    policy = save_tiny_policy(tmp_path / "policy")
    made = [Node(tmp_path / name, policy) for name in names]
    async with AsyncExitStack() as stack:
        for node in made:
            stack.push_async_callback(node.sweep)
        yield made


def from_peer(peer: str, at_least: int) -> Callable[[node_pb2.NodeStatus], bool]:
    return lambda status: status.admitted.get(peer, 0) >= at_least


async def test_a_killed_node_leaves_the_others_learning_and_is_taken_back(tmp_path: Path):
    async with nodes(tmp_path, ["alpha", "beta", "gamma"]) as (alpha, beta, gamma):
        first = await alpha.start()
        b, c = await asyncio.gather(beta.start(first.addresses), gamma.start(first.addresses))
        peers = {first.peer, b.peer, c.peer}
        for node, me in ((alpha, first.peer), (beta, b.peer), (gamma, c.peer)):
            await node.until(lambda status, me=me: set(status.admitted) == peers - {me})

        before = await beta.until(lambda status: status.counters["checkpoints"] >= 1)
        children = psutil.Process(beta.process.pid).children(recursive=True)  # pyright: ignore[reportOptionalMemberAccess]
        await beta.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "what the killed node had started outlived it"

        then = await alpha.until(lambda status: True)
        await alpha.until(lambda status: status.steps >= then.steps + 10)  # the others go on
        seen = await alpha.until(lambda status: True)

        again = await beta.start(first.addresses)
        assert again.peer == before.peer
        assert again.steps >= 5  # from its last checkpoint, not from the start
        assert again.counters["own_groups"] >= 5 * 4
        await beta.until(lambda status: status.steps >= again.steps + 5)
        await alpha.until(from_peer(b.peer, seen.admitted[b.peer] + 1))  # taken back
        await gamma.until(from_peer(b.peer, 1))


async def test_it_stops_when_asked_and_leaves_nothing_behind(tmp_path: Path):
    async with nodes(tmp_path, ["solo"]) as (node,):
        await node.start()
        await node.until(lambda status: status.steps >= 1)
        assert node.process is not None
        family = psutil.Process(node.process.pid).children(recursive=True)
        assert family  # the judge, and libp2p
        async with NodeClient(discover(node.data)) as client:
            await client.stop()
        assert await asyncio.wait_for(node.process.wait(), 30) == 0
        assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        assert not (node.data / "rpc").exists()
        assert any((node.data / "checkpoints").iterdir())


async def test_sigterm_is_a_clean_stop(tmp_path: Path):
    async with nodes(tmp_path, ["solo"]) as (node,):
        await node.start()
        assert node.process is not None
        node.process.terminate()
        assert await asyncio.wait_for(node.process.wait(), 30) == 0
        assert "Traceback" not in (node.directory / "log").read_text()


async def test_its_event_loop_is_never_held_up_for_long(tmp_path: Path):
    async with nodes(tmp_path, ["solo"]) as (node,):
        await node.start()
        status = await node.until(lambda status: status.steps >= 30)
        assert status.metrics["loop_delay_p99_ms"] < 50.0
