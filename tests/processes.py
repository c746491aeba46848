"""Real nodes as processes: `swarm-node run`, started, asked, killed and started again in the same directory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from node.operator_client import NodeClient, discover
from swarm.errors import SwarmError
from swarm.wire.v1 import node_pb2
from tests.policies import save_tiny_policy

PATIENCE_S = float(os.environ.get("TEST_PATIENCE_S", "90"))
"""More for a machine that is busy with something else."""
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
{more}
"""


class Node:
    """One `swarm-node run` that can be killed and started again in the same directory."""

    def __init__(
        self, directory: Path, policy: Path, more: str = "", program: Sequence[str] = ("-m", "node.cli")
    ) -> None:
        """`more`: further tables of its config. `program`: of Python, which gets "run CONFIG"."""
        self.directory, self.policy = directory, policy
        self.data = directory / "data"
        self.process: Process | None = None
        self._more, self._program = more, program

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def configure(self, peers: Sequence[str] = ()) -> Path:
        self.directory.mkdir(exist_ok=True)
        config = self.directory / "node.toml"
        quoted = "[" + ", ".join(f'"{peer}"' for peer in peers) + "]"
        config.write_text(
            CONFIG.format(name=self.directory.name, data=self.data, policy=self.policy, peers=quoted, more=self._more)
        )
        return config

    async def launch(self, peers: Sequence[str] = (), environment: dict[str, str] | None = None) -> Process:
        """Returns as soon as there is a process."""
        config = self.configure(peers)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self._program, "run", str(config)),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | (environment or {}),
            )
        return self.process

    async def start(self, peers: Sequence[str] = ()) -> node_pb2.NodeStatus:
        """Returns its first status with an address."""
        await self.launch(peers)
        return await self.until(lambda status: bool(status.addresses))

    async def until(
        self, condition: Callable[[node_pb2.NodeStatus], bool], token: str | None = None
    ) -> node_pb2.NodeStatus:
        """The first status for which `condition` holds."""
        assert self.process is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self.process.returncode is None:
                    try:
                        async with NodeClient(discover(self.data), token) as client:
                            async for status in client.watch(0.2):
                                if condition(status):
                                    return status
                    except SwarmError:  # not up yet, or the address of the one before
                        await asyncio.sleep(0.2)
        except TimeoutError:
            pass
        raise AssertionError(f"{self.directory.name}: {self.log.read_text()[-3000:]}")

    def family(self) -> list[psutil.Process]:
        """What it has started."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def daemon(self) -> psutil.Process:
        """Its libp2p daemon."""
        (found,) = [each for each in self.family() if "p2pd" in each.name()]
        return found

    async def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """Its exit code, after SIGTERM."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)

    async def sweep(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()


@asynccontextmanager
async def nodes(
    tmp_path: Path, names: Sequence[str], more: str = "", program: Sequence[str] = ("-m", "node.cli")
) -> AsyncIterator[list[Node]]:
    policy = save_tiny_policy(tmp_path / "policy")
    made = [Node(tmp_path / name, policy, more, program) for name in names]
    async with AsyncExitStack() as stack:
        for node in made:
            stack.push_async_callback(node.sweep)
        yield made


def events(log: Path) -> Iterator[dict[str, Any]]:
    """Of a log in JSON lines, if it is there; a last line that a kill cut off, and what libraries print, are none."""
    if not log.exists():  # killed before it could open it
        return
    for line in log.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def gone(processes: Sequence[psutil.Process], within_s: float = 20.0) -> bool:
    """Whether none of them outlives that."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive if process.is_running())
