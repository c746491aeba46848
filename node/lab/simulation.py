"""A whole swarm in one process and in virtual time: the real loops, learner, pool, verifier and wire format, over the
in-memory exchange. The same setup and seed give the same numbers.

What is not the real thing: time (every node has a `Pace`), the network (`swarm.net.memory`), the journal (in memory)
and the judge's process (the sources are our own here).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from node.lab.adversary import Adversary, Attack
from node.lab.exam import Exam
from node.lab.member import Member, NodeRecord, Surroundings, open_member, wall_clock
from node.lab.scoring import Scoring
from node.settings import task_specs
from swarm.manifest import Manifest
from swarm.net import virtual_time
from swarm.net.memory import Hub
from swarm.tasks.judge import LocalJudge


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    members: Sequence[Member]
    attacks: Sequence[Attack] = ()
    """One hostile peer each."""
    scoring: Scoring = field(default_factory=Scoring)
    """Of the members whose config has guidance = "peer_scores", by all the others."""
    exam_every: int = 25
    """Steps between two looks at the held-out questions."""
    exam_tasks: int = 48
    """Questions per family."""
    exam_samples: int = 2
    """Answers per question."""
    hours: float = 1000.0
    """Virtual time after which the run ends, finished or not."""


@dataclass(slots=True, kw_only=True)
class SwarmRecord:
    nodes: list[NodeRecord]
    seconds: float
    """Virtual."""


def simulate(setup: Setup, seed: int) -> SwarmRecord:
    """Until every member has made its config's `max_steps`. Whoever has goes on sharing what it has sampled."""
    torch.set_num_threads(1)  # sums in one order, and a core for every run
    return virtual_time.run(_simulate(setup, seed))


async def _simulate(setup: Setup, seed: int) -> SwarmRecord:
    judge = LocalJudge(task_specs(setup.members[0].config))
    manifest = Manifest.of("laboratory", judge.sources)
    hub = Hub(clock=asyncio.get_running_loop().time)
    async with AsyncExitStack() as stack:
        surroundings = Surroundings(
            seed=seed,
            judge=judge,
            manifest=manifest,
            exam=await Exam.prepare(judge, setup.exam_tasks, setup.exam_samples),
            exam_every=setup.exam_every,
            scoring=setup.scoring,
            scratch=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarm-lab-"))),
            stack=stack,
        )
        first_liar = len(setup.members) - setup.scoring.liars
        nodes = [
            await open_member(member, number, surroundings, lies=number >= first_liar)
            for number, member in enumerate(setup.members)
        ]
        hostile = [Adversary(a, i, seed, judge, manifest, wall_clock) for i, a in enumerate(setup.attacks)]
        try:
            async with asyncio.timeout(setup.hours * 3600), asyncio.TaskGroup() as group:
                running = [group.create_task(peer.live(hub)) for peer in (*nodes, *hostile)]
                await asyncio.gather(*(node.finished.wait() for node in nodes))
                for task in running:
                    task.cancel()
        except TimeoutError:
            pass
        for node in nodes:
            node.record.counters = dict(node.mind.progress.ledger.counters)
        return SwarmRecord(nodes=[node.record for node in nodes], seconds=asyncio.get_running_loop().time())
