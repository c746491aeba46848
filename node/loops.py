"""The four things a node does, each a loop with one input and one output.

              tasks ──► produce ──► journal ──► share ──► peers
                           │
                           ▼
    generator ◄── train ◄─ pool ◄── gather ◄── peers
        └── new policy version ──┘

They share two things only: the pool of experience and the weights (latest wins). None of them ever waits for another
machine: `gather` and `share` move what is there, `train` draws what it has.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable

from node.backlog import Backlog
from node.drawing import Drawing
from node.engine.base import Generator
from node.evaluation import Evaluation
from node.intake import Intake
from node.journal import GroupJournal
from node.learning import Learning
from node.pool import RolloutPool
from node.producer import Producer
from node.time_account import ENGINE, POOL_FULL
from swarm.net.base import Exchange
from swarm.types import Announcement


async def produce(producer: Producer, journal: GroupJournal, pool: RolloutPool, exchange: Exchange) -> None:
    """Task -> own group -> journal, pool. Waits for the generator, and for room in the pool. What peers announced may
    have a say in the task; nobody is asked."""
    while True:
        judged = await producer.next_group(exchange.peers)
        await journal.keep(judged)
        exchange.made(judged.signed, judged.experience.use)
        with producer.times.generator.during(POOL_FULL):
            await pool.put_own(judged.experience)


async def share(
    journal: GroupJournal, exchange: Exchange, announcement: Callable[[int], Announcement], heartbeat_s: float
) -> None:
    """Journal -> whoever asks: tells the swarm that our log is there, which peers then pull and keep pulling. Waits for
    the next heartbeat; news travels by the open streams and not by the directory."""
    while True:
        await exchange.announce(announcement(journal.head))
        await asyncio.sleep(heartbeat_s)


async def gather(exchange: Exchange, intake: Intake, journal: GroupJournal, pool: RolloutPool) -> None:
    """Peers' groups -> journal, pool, if they pass. Waits for a peer to have something; never for a particular one."""
    async for received in exchange.receive():
        findings, judged = await intake.judge(received)
        if judged is None:
            exchange.blame(findings.origin, findings.verdict)
        elif await journal.keep(judged):
            pool.put_foreign(judged.experience)
            exchange.thank(received, judged.signed, judged.experience.use)


async def train(drawing: Drawing, learning: Learning, generator: Generator, max_steps: int) -> None:
    """Pool -> optimiser step -> new policy version -> generator. Waits for own groups only. The node's clock."""
    if await learning.recover():
        await generator.load(await learning.weights())
    async with drawing:
        for _ in range(learning.steps, max_steps) if max_steps else itertools.count():
            batch = await drawing.next()
            with learning.times.learner.during(ENGINE):
                async with generator.make_room():
                    await learning.step(batch.groups, batch.prepared)
            await generator.load(await learning.weights())
            await learning.copy_if_due()
    await learning.checkpoint()


async def save(learning: Learning) -> None:
    """Beside the four: the copies that `train` takes -> checkpoints. Waits for the next one, and for the disk."""
    while True:
        await learning.save()


async def replay(backlog: Backlog, pool: RolloutPool, counters: Counter[str]) -> None:
    """Before the first of `produce`: journal -> pool, what the checkpoint knows nothing of. Waits for room in it."""
    async for experience in backlog.replay():
        counters["replayed_groups"] += 1
        if experience.own:
            await pool.put_own(experience)
        else:
            pool.put_foreign(experience)


async def evaluate(evaluation: Evaluation, learning: Learning, every_steps: int) -> None:
    """Beside the four: held-out questions -> status. Waits for the next multiple of `every_steps`."""
    await evaluation.prepare()
    while True:
        await evaluation.once()
        await learning.reached((learning.steps // every_steps + 1) * every_steps)
