"""Real nodes as processes of this machine: started, watched over gRPC, stopped, swept.

No node waits for another: all are started at once, and one that dies is shown as dead while the others go on.
"""

from __future__ import annotations

import asyncio
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

from node.datadir import DataDirectory, RpcEndpoint
from node.demo.plan import NodePlan, to_toml
from node.demo.processes import Children, end, ends_within, last_line
from node.demo.state import GONE, FleetView, NodeView
from node.operator_client import NodeClient
from swarm.errors import ConfigError, NetworkError
from swarm.wire.v1 import node_pb2

STOP_GRACE_S = 20.0
"""For a node that heard "stop" to write its checkpoint and close."""
TERM_GRACE_S = 10.0
POLL_S = 0.1
ASK_TIMEOUT_S = 3.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Node:
    plan: NodePlan
    view: NodeView
    process: Process | None = None
    life: asyncio.Task[None] | None = None


class Fleet:
    """`view` is kept up to date while `running()` is open; `view.nodes` are those of `plans`, in order."""

    def __init__(
        self,
        plans: Sequence[NodePlan],
        view: FleetView,
        children: Children,
        *,
        settings: Callable[[NodePlan], Mapping[str, object]],
        command: Callable[[Path], Sequence[str]],
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settings`: a node's config. `command`: runs a node, given its config file."""
        self._nodes = [_Node(plan=p, view=v) for p, v in zip(plans, view.nodes, strict=True)]
        self.view = view
        self._children = children
        self._settings = settings
        self._command = command
        self._interval_s = interval_s
        self._clock = clock
        self._news = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts every node on entry (and returns at once); on exit, however it comes about, all of them are gone."""
        self.view.started_at = self._clock()
        async with asyncio.TaskGroup() as group:
            for node in self._nodes:
                node.life = group.create_task(self._look_after(node))
            try:
                yield
            finally:
                self.view.stopped_at = self._clock()
                for node in self._nodes:
                    if node.life is not None and node.process is None:
                        node.life.cancel()  # on its way to start a process
                await asyncio.gather(*(self._stop(node) for node in self._nodes))

    async def until_done(self, budget_s: float) -> None:
        """Returns when every node that lives has made its steps, or when `budget_s` have passed since the start."""
        began = self.view.started_at if self.view.started_at is not None else self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(began + budget_s - self._clock()):
                while not all(node.view.phase == "done" or node.view.phase in GONE for node in self._nodes):
                    self._news.clear()
                    await self._news.wait()

    async def _look_after(self, node: _Node) -> None:
        """One node's process from start to end."""
        node.plan.directory.mkdir(parents=True, exist_ok=True)
        node.plan.config_file.write_text(to_toml(self._settings(node.plan)), encoding="utf-8")
        node.view.phase = "starting"
        process = await self._children.start_logged(self._command(node.plan.config_file), node.plan.log_file)
        node.process = process
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch(node, process.pid))
            code = await self._children.reap(process)
            watching.cancel()
        node.view.exit_code = code
        node.view.phase = "stopped" if code in (0, -SIGTERM) else "died"
        node.view.last_words = last_line(node.plan.log_file) if node.view.phase == "died" else ""
        self._news.set()

    async def _watch(self, node: _Node, pid: int) -> None:
        """Statuses as they come, for as long as the process lives; a lost connection is made again."""
        while True:
            if (endpoint := _endpoint(node.plan)) and endpoint.pid == pid:
                async with NodeClient(endpoint.address) as client:
                    with suppress(NetworkError):
                        async for status in client.watch(self._interval_s):
                            self._observe(node, status)
            await asyncio.sleep(POLL_S)

    def _observe(self, node: _Node, status: node_pb2.NodeStatus) -> None:
        node.view.observe(status, self.view.elapsed_s(self._clock()))
        self._news.set()

    async def _stop(self, node: _Node) -> None:
        if node.process is None or node.process.returncode is not None:
            return
        await self._ask_to_stop(node)
        node.view.phase = "stopping"
        if not await ends_within(node.process, STOP_GRACE_S):
            await end(node.process, patience_s=TERM_GRACE_S)

    async def _ask_to_stop(self, node: _Node) -> None:
        """By gRPC where the node has got that far, which also gives the last numbers; by SIGTERM where it has not."""
        assert node.process is not None
        try:
            endpoint = _endpoint(node.plan)
            if endpoint is None or endpoint.pid != node.process.pid:
                raise NetworkError("it does not serve yet")
            async with NodeClient(endpoint.address, timeout_s=ASK_TIMEOUT_S) as client:
                self._observe(node, await client.status())
                await client.stop()
        except NetworkError:
            with suppress(ProcessLookupError):
                node.process.terminate()


def _endpoint(plan: NodePlan) -> RpcEndpoint | None:
    with suppress(ConfigError):
        return DataDirectory(plan.directory).endpoint()
    return None
