"""A node without a learner, in a process of its own: a real exchange, a log, and loops that stand for produce, gather
and train. Told what to do by lines on stdin, answers in JSON lines; ends with its stdin.

    publish N     N groups more in its log                  report        what it has seen and done; answers a Report
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from swarm.errors import SwarmError
from swarm.limits import Limits
from swarm.net.base import Received
from swarm.net.memory import MemoryLog
from swarm.net.settings import P2PSettings
from swarm.net.without_torch import leave_out_torch
from swarm.types import GroupId, PeerId
from swarm.wire.codec import decode_group, seal
from swarm.wire.identity import GROUP_DOMAIN, Identity, check_signature
from tests.bench.light_words import Report, Task
from tests.builders import MEMBERSHIP, announcement, group, task_ref

leave_out_torch()
from swarm.net.exchange import P2PExchange  # noqa: E402 - it imports hivemind

STEP_GROUPS = 4
"""Own groups that a step takes."""


class LightNode:
    def __init__(self, task: Task) -> None:
        directory = Path(task.directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.task, self.log = task, MemoryLog(4096)
        self.identity = Identity.load_or_create(directory / "identity.key")
        self._made, self._steps, self._longest = 0, 0, 0.0
        self._me = psutil.Process()
        self._daemon: psutil.Process | None = None
        self._got: dict[PeerId, list[int]] = {}
        self._known: set[GroupId] = set()
        self._pulled: Counter[tuple[PeerId, GroupId]] = Counter()
        self._relayed_again = 0
        self._latencies: list[float] = []
        self._ready: asyncio.Queue[None] = asyncio.Queue()
        self._positions: dict[PeerId, tuple[bytes, int]] = {}
        self.exchange = P2PExchange(
            P2PSettings(listen=(task.listen,), initial_peers=tuple(task.initial_peers), heartbeat_s=task.heartbeat_s),
            identity=self.identity,
            identity_path=directory / "identity.key",
            membership=MEMBERSHIP,
            log=self.log,
            cursors=self,
            limits=Limits(),
            peers_file=directory / "peers.json",
            known=self._is_known,
        )

    def cursor(self, peer: PeerId) -> tuple[bytes, int]:
        return self._positions.get(peer, (b"", 0))

    def set_cursor(self, peer: PeerId, epoch: bytes, cursor: int) -> None:
        self._positions[peer] = epoch, cursor

    async def _is_known(self, id: GroupId) -> bool:
        return id in self._known

    def publish(self, count: int) -> None:
        for _ in range(count):
            self._made += 1
            content = group(ref=task_ref(self._made), origin=self.identity.peer_id, created_at=time.time())
            self.log.append(seal(content, self.identity))
            self._ready.put_nowait(None)

    async def produce(self) -> None:
        while True:
            await asyncio.sleep(self.task.every_s)
            self.publish(1)

    async def gather(self) -> None:
        async for received in self.exchange.receive():
            try:
                self._take(received)
            except SwarmError as error:
                sys.exit(f"{received.sender} sent what no node of ours makes: {error}")

    def _take(self, received: Received) -> None:
        signed = decode_group(received.body, received.signature, Limits())
        origin = signed.group.origin
        check_signature(origin, GROUP_DOMAIN, received.body, received.signature)
        if received.hops == 0:
            self._pulled[origin, signed.id] += 1
        if signed.id in self._known:
            self._relayed_again += received.hops > 0
            return
        self._known.add(signed.id)
        self._got.setdefault(origin, []).append(signed.group.task.index)
        self._latencies.append(time.time() - signed.group.created_at)
        self.exchange.thank(received, signed, use=0.25)

    async def train(self) -> None:
        """Own groups only, as the real loop."""
        while True:
            begin = time.monotonic()
            for _ in range(STEP_GROUPS):
                await self._ready.get()
            self._steps += 1
            self._longest = max(self._longest, time.monotonic() - begin)

    def _daemon_mb(self) -> float:
        """The daemon is looked for once: that goes through all processes of the machine, and reports are asked for all
        the time."""
        if self._daemon is None or not self._daemon.is_running():
            self._daemon = next((child for child in self._me.children() if child.name() == "p2pd"), None)
        return self._daemon.memory_info().rss / 1e6 if self._daemon is not None else 0.0

    def report(self) -> Report:
        latencies, self._latencies = self._latencies, []
        return Report(
            peers=[peer.peer for peer in self.exchange.peers()],
            made=self._made,
            got={str(peer): indices for peer, indices in self._got.items()},
            pulled_again=sum(count - 1 for count in self._pulled.values()),
            relayed_again=self._relayed_again,
            latencies_s=latencies,
            steps=self._steps,
            longest_step_s=self._longest,
            rss_mb=self._me.memory_info().rss / 1e6,
            daemon_mb=self._daemon_mb(),
        )

    async def obey(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode().split():
            if line[0] == "publish":
                self.publish(int(line[1]))
            else:
                print(json.dumps(asdict(self.report())), flush=True)


async def live(task: Task) -> None:
    begin = time.monotonic()
    node = LightNode(task)
    async with node.exchange:
        mine = announcement(node.identity, name=Path(task.directory).name)
        await node.exchange.announce(replace(mine, addresses=()))
        said = {
            "peer": node.identity.peer_id,
            "addresses": node.exchange.addresses,
            "up_s": time.monotonic() - begin,
        }
        print(json.dumps(said), flush=True)
        loops = [asyncio.create_task(loop) for loop in (node.gather(), node.train())]
        if task.every_s:
            loops.append(asyncio.create_task(node.produce()))
        obeying = asyncio.create_task(node.obey())
        done, others = await asyncio.wait({obeying, *loops}, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        await asyncio.wait({*others, obeying})
        for task_done in done:
            task_done.result()


if __name__ == "__main__":
    asyncio.run(live(Task(**json.loads(sys.argv[1]))))
