"""What a node that is slowed ten times costs the others, in processes with real loops, journals, judges, verdicts,
pools and libp2p daemons, in which sampling and learning are sleep.

Three of them trade and a fourth is alone, all at the same time, so that whatever else the machine does happens to all.
In every second window the third one, with its daemon and its judge, is stopped nine tenths of the time.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from node.algorithms import PoolConfig
from node.config import SamplerConfig
from node.drawing import Drawing
from node.engine.base import Completion, Weights
from node.engine.trainer import PreparedStep
from node.experience import Experience
from node.holds import Holds
from node.learning import Learning
from node.loops import gather, produce, share, train
from node.pool import RolloutPool
from node.producer import Author, Producer
from node.rl.sampler import TaskSampler
from node.time_account import Times
from swarm.types import FinishReason, PolicyVersion, SamplingParams, VersionSpan
from tests.bench.child import Child, child, report, run_child, told
from tests.bench.peer import Parts, Peer, open_peer
from tests.bench.slow_virtual import SLOWER
from tests.builders import Characters

# Real: one process ----------------------------------------------------------------------------------------------------

ROLLOUT_S, STEP_S, WORKERS = 2.0, 0.2, 16
"""16 groups under way for 2 s each: 8 groups per second and node, with hardly any work for the machine."""
TOKENS = 64
PARAMS = SamplingParams(max_new_tokens=TOKENS)


class Sleeping:
    """A `Generator` and a `Learning` without a model: what they would take, they sleep."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.steps = 0
        self.times = Times()
        self.max_length, self.in_flight = 4096, WORKERS

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        await asyncio.sleep(ROLLOUT_S)
        return [self._completion() for _ in range(n)]

    def _completion(self) -> Completion:
        return Completion(
            ids=self._rng.integers(ord("a"), ord("z") + 1, TOKENS, dtype=np.int32),
            logprobs=np.full(TOKENS, -0.5, dtype=np.float32),
            versions=(VersionSpan(version=PolicyVersion(self.steps), length=TOKENS),),
            finish=FinishReason.LENGTH,
        )

    async def load(self, weights: Weights) -> None:
        pass

    def make_room(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def gauges(self) -> Mapping[str, float]:
        return {}

    @property
    def version(self) -> PolicyVersion:
        return PolicyVersion(self.steps)

    async def recover(self) -> bool:
        return False

    async def draw(self, pool: RolloutPool, version: PolicyVersion | None = None) -> list[Experience]:
        now = asyncio.get_running_loop().time
        return await pool.draw(PolicyVersion(self.steps), now, lambda task: 0.5, lambda group, value: 1.0)

    async def step(self, batch: Sequence[Experience], prepared: PreparedStep | None) -> None:
        await asyncio.sleep(STEP_S)
        self.steps += 1

    async def weights(self) -> None:
        pass

    async def copy_if_due(self) -> None:
        pass


async def node(task: dict[str, Any]) -> None:
    """Is told its peers, and lives until its parent goes; to every further word it answers what it has done."""
    started = await told() or {"peers": []}
    parts = Parts(pool_config=PoolConfig(own_groups=8, foreign_groups=24))
    async with open_peer(Path(task["directory"]), *started["peers"], parts=parts) as peer:
        sleeping = Sleeping(task["seed"])
        learning = cast(Learning, sleeping)
        producer = _producer(peer, sleeping, task["seed"])
        report({"addresses": peer.exchange.addresses})
        loops = [
            share(peer.journal, peer.exchange, peer.announcement, heartbeat_s=2.0),
            gather(peer.exchange, peer.intake, peer.journal, peer.pool),
            train(Drawing(learning, peer.pool), learning, sleeping, max_steps=0),
            *(_worker(number, producer, peer) for number in range(WORKERS)),
        ]
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(loop) for loop in loops]
            while await told() is not None:
                own, foreign = peer.ledger.counters["own_groups"], peer.ledger.admitted.total()
                report({"at": time.monotonic(), "own": own, "foreign": foreign})
            for each in running:
                each.cancel()


async def _worker(number: int, producer: Producer, peer: Peer) -> None:
    await asyncio.sleep(number * ROLLOUT_S / WORKERS)
    await produce(producer, peer.journal, peer.pool, peer.exchange)


def _producer(peer: Peer, generator: Sleeping, seed: int) -> Producer:
    running = Holds()
    config = SamplerConfig(group_size=2, max_new_tokens=TOKENS)
    author = Author(
        identity=peer.identity,
        membership=peer.membership,
        model="none",
        codec=Characters(),
        sampling=PARAMS,
    )
    return Producer(
        config=config,
        truncated="scored",
        sampler=TaskSampler(peer.judge.sources, [1.0], peer.tracker, config, seed),
        tracker=peer.tracker,
        judge=peer.judge,
        generator=generator,
        author=author,
        version=lambda: PolicyVersion(generator.steps),
        running=running,
        ledger=peer.ledger,
    )


# Real: all of them ----------------------------------------------------------------------------------------------------

ALONE = 1
"""Number of the node that nobody trades with."""
PERIOD_S = 0.5
"""Of stopping and going on."""
SETTLE_S = 6.0
"""Until they have found each other, and all workers are under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    slowed: bool
    alone: float
    """Own groups per second of the node that nobody trades with."""
    others: float
    """The same of the two that are not slowed, their mean."""
    traded: float
    """Peers' groups that each of those two admitted per second."""

    @property
    def ratio(self) -> float:
        return self.others / self.alone


async def real_windows(seconds: float, slowed: Sequence[bool]) -> list[Window]:
    """One after the other, of so many seconds each, with the third node slowed or not."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        async with AsyncExitStack() as stack:
            first, alone, second, slow = await _open(Path(directory), stack)
            await asyncio.sleep(SETTLE_S)
            windows = []
            for now in slowed:
                async with _slowed(slow) if now else nullcontext():
                    before = await _counts(alone, first, second)
                    await asyncio.sleep(seconds)
                    after = await _counts(alone, first, second)
                own, traded = (
                    [(b[key] - a[key]) / (b["at"] - a["at"]) for a, b in zip(before, after, strict=True)]
                    for key in ("own", "foreign")
                )
                windows.append(
                    Window(slowed=now, alone=own[0], others=(own[1] + own[2]) / 2, traded=(traded[1] + traded[2]) / 2)
                )
            return windows


async def _open(directory: Path, stack: AsyncExitStack) -> list[Child]:
    """The first of those who trade, the one that is alone, and two more. All of them start at the same time."""
    nodes = []
    for number in range(4):
        task = {"directory": str(directory / f"node-{number}"), "seed": number}
        nodes.append(await stack.enter_async_context(child("tests.bench.slow_peer", task)))
    peers: list[str] = []
    for number, each in enumerate(nodes):
        await each.say({"peers": [] if number == ALONE else peers})
        addresses = (await each.tell())["addresses"]
        peers = peers or addresses
    return nodes


async def _counts(*nodes: Child) -> list[dict[str, float]]:
    for each in nodes:
        await each.say({})
    return [await each.tell() for each in nodes]


@asynccontextmanager
async def _slowed(node: Child) -> AsyncIterator[None]:
    process = psutil.Process(node.process.pid)
    everything = [process, *process.children(recursive=True)]

    def send(number: signal.Signals) -> None:
        for each in everything:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    async def stutter() -> None:
        while True:
            send(signal.SIGSTOP)
            await asyncio.sleep(PERIOD_S * (1 - 1 / SLOWER))
            send(signal.SIGCONT)
            await asyncio.sleep(PERIOD_S / SLOWER)

    stuttering = asyncio.create_task(stutter())
    try:
        yield
    finally:
        stuttering.cancel()
        await asyncio.wait({stuttering})
        send(signal.SIGCONT)


if __name__ == "__main__":
    run_child(node)
