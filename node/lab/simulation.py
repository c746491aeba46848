"""A whole swarm in one process and in virtual time: the real loops, learner, pool, verifier and wire format, over the
in-memory exchange. The same setup and seed give the same numbers.

What is not the real thing: time (every node has a `Pace`), the network (`swarm.net.memory`), the journal (in memory)
and the judge's process (the sources are our own here).
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from node.algorithms import PeerGuidance
from node.assembly import Hands, Mind, hands_of, trainer_of
from node.checkpoint import CheckpointStore
from node.config import NodeConfig, TransformersEngine
from node.engine.policy import Policy, load_policy
from node.engine.transformers import TransformersGenerator
from node.experience import Experience
from node.lab.adversary import Attack, adversaries
from node.lab.exam import Exam, Marks
from node.lab.journal import MemoryJournal
from node.lab.pace import Pace, PacedGenerator
from node.lab.scoring import Guide, Scorer, Scoring, honest, lying
from node.learning import Learning
from node.loops import gather, produce, share, train
from node.metrics import MetricsLog
from node.pool import RolloutPool
from node.progress import Progress
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from node.settings import task_specs
from swarm.manifest import Manifest
from swarm.net import virtual_time
from swarm.net.base import Exchange
from swarm.net.memory import Hub
from swarm.tasks.judge import LocalJudge
from swarm.types import Announcement, PeerId, PolicyVersion
from swarm.wire.identity import Identity

#: Unix seconds at virtual time 0.
EPOCH = 1_800_000_000.0
JOURNAL_GROUPS = 4096
#: Virtual seconds between two announcements: about as many steps as in a real swarm.
HEARTBEAT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One node of a simulated swarm. Its config's engine, exchange and directories are not looked at."""

    config: NodeConfig
    pace: Pace
    lag: int | None = None
    """Own rollouts are exactly so many steps old when they are learned from; None for what its pace makes of it."""
    tracker: type[ValueTracker] = ValueTracker
    """Another one, to compare with."""


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


@dataclass(frozen=True, slots=True)
class Sitting:
    step: int
    time: float
    """Virtual seconds."""
    marks: Marks

    @property
    def rates(self) -> Mapping[str, float]:
        """Family -> pass@1."""
        return self.marks.rates


@dataclass(slots=True, kw_only=True)
class NodeRecord:
    """What became of one node."""

    name: str
    steps: list[dict[str, float]] = field(default_factory=list)
    """One record per step: `step`, `time` (virtual seconds) and the learner's metrics."""
    exams: list[Sitting] = field(default_factory=list)
    """The first before the first step."""
    predictions: list[tuple[float, float]] = field(default_factory=list)
    """(value, mean reward) of every own group."""
    counters: dict[str, int] = field(default_factory=dict)


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
    specs = task_specs(setup.members[0].config)
    judge = LocalJudge(specs)
    manifest = Manifest.of("laboratory", judge.sources)
    hub = Hub(clock=asyncio.get_running_loop().time)
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarm-lab-")))
        exam = await Exam.prepare(judge, setup.exam_tasks, setup.exam_samples)
        scorers: dict[PeerId, Scorer] = {}
        nodes = [
            await _open(member, number, seed, setup, exam, judge, manifest, scratch, stack, scorers)
            for number, member in enumerate(setup.members)
        ]
        hostile = adversaries(setup.attacks, seed, judge, manifest, _wall_clock)
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


@dataclass(slots=True, kw_only=True, eq=False)
class _Node:
    member: Member
    identity: Identity
    mind: Mind
    hands: Hands
    generator: PacedGenerator
    journal: MemoryJournal
    record: NodeRecord
    finished: asyncio.Event

    async def live(self, hub: Hub) -> None:
        await asyncio.sleep(self.member.pace.start_s)
        async with hub.join(self.identity.peer_id, self.journal) as exchange:
            await self._loops(exchange)

    async def _loops(self, exchange: Exchange) -> None:
        config, mind, hands = self.member.config, self.mind, self.hands
        groups_in_flight = config.sampler.concurrency or config.pool.own_groups
        async with asyncio.TaskGroup() as group:
            for _ in range(groups_in_flight):
                group.create_task(produce(hands.producer, self.journal, hands.pool, exchange))
            group.create_task(share(self.journal, exchange, self._announcement, heartbeat_s=HEARTBEAT_S))
            group.create_task(gather(exchange, hands.intake, self.journal, hands.pool))
            await train(hands.pool, mind.learning, mind.generator, config.max_steps)
            self.finished.set()

    def _announcement(self, head: int) -> Announcement:
        return self.hands.author.announcement(self.member.config.name, (), self.journal.epoch, head)


class _WatchedPool(RolloutPool):
    """Notes what was expected of every own group, and what came of it; has it scored where the node has a guide."""

    predictions: list[tuple[float, float]]
    guide: Guide | None = None

    async def put_own(self, experience: Experience) -> None:
        self.predictions.append((experience.value, experience.mean))
        await super().put_own(await self.guide.guided(experience) if self.guide else experience)

    def put_foreign(self, experience: Experience) -> None:
        if self.guide:
            self.guide.observe(experience)
        super().put_foreign(experience)


async def _open(
    member: Member,
    number: int,
    seed: int,
    setup: Setup,
    exam: Exam,
    judge: LocalJudge,
    manifest: Manifest,
    scratch: Path,
    stack: AsyncExitStack,
    scorers: dict[PeerId, Scorer],
) -> _Node:
    """`seed` and the member's number make everything random about it. `scorers` gets one more: this node."""
    config = member.config.model_copy(update={"seed": _derived(seed, number)})
    loop = asyncio.get_running_loop()
    policy = load_policy(config.policy)
    progress = Progress(config, policy, judge.sources, None)
    if member.tracker is not ValueTracker:
        progress.tracker = member.tracker(config.tracker)
        weights = [task.weight for task in config.tasks]
        progress.sampler = TaskSampler(judge.sources, weights, progress.tracker, config.sampler, config.seed)
    trainer = await stack.enter_async_context(trainer_of(config, policy, None, PolicyVersion(0)))
    record = NodeRecord(name=config.name)
    generator = await stack.enter_async_context(_generator(config, policy, progress))
    paced = PacedGenerator(
        generator,
        member.pace,
        np.random.default_rng(config.seed),
        lambda: _after_step(record, policy, progress, setup, exam, loop.time(), seed),
        lag=member.lag,
        batch_groups=config.pool.own_groups,
    )
    running = asyncio.Event()
    running.set()
    learning = Learning(
        policy=policy,
        trainer=trainer,
        progress=progress,
        foreign=config.foreign,
        store=CheckpointStore(scratch / f"node-{number}", 1),
        config=config.checkpoint.model_copy(update={"every_steps": 1_000_000}),
        running=running,
        metrics_log=MetricsLog(scratch / f"metrics-{number}.jsonl", max_waiting=1),
    )
    mind = Mind(policy=policy, progress=progress, trainer=trainer, generator=paced, learning=learning, running=running)
    identity = Identity(hashlib.sha256(f"laboratory/{seed}/{number}".encode()).digest())
    journal = MemoryJournal(JOURNAL_GROUPS, epoch=hashlib.sha256(identity.peer_id.encode()).digest()[:16])
    hands = hands_of(config, identity, manifest, (judge, judge), journal, mind, _wall_clock)
    pool = _WatchedPool(config.pool, progress.drawing_rng, progress.ledger.counters)
    pool.predictions = record.predictions
    liar = number >= len(setup.members) - setup.scoring.liars
    scorers[identity.peer_id] = lying(policy, np.random.default_rng([config.seed, 1])) if liar else honest(policy)
    if isinstance(config.guidance, PeerGuidance):
        pool.guide = Guide(scorers, setup.scoring.latency_s)
    record.exams.append(Sitting(0, 0.0, exam.sit(policy, seed)))
    return _Node(
        member=member,
        identity=identity,
        mind=mind,
        hands=replace(hands, pool=pool),
        generator=paced,
        journal=journal,
        record=record,
        finished=asyncio.Event(),
    )


def _generator(config: NodeConfig, policy: Policy, progress: Progress) -> TransformersGenerator:
    """Over a copy of the policy: it has its own weights, which arrive when a step is over."""
    copied = load_policy(config.policy)
    # Requests that are made at the same virtual moment are one batch; a millisecond brings them together.
    engine = TransformersEngine(batch_size=512, linger_ms=1.0)
    return TransformersGenerator(copied.model, copied.codec, engine, PolicyVersion(0), progress.sampling_rng)


def _after_step(
    record: NodeRecord, policy: Policy, progress: Progress, setup: Setup, exam: Exam, now: float, seed: int
) -> None:
    step = progress.steps
    record.steps.append({"step": float(step), "time": now} | progress.ledger.metrics)
    if step % setup.exam_every == 0:
        record.exams.append(Sitting(step, now, exam.sit(policy, seed)))


def _wall_clock() -> float:
    return EPOCH + asyncio.get_running_loop().time()


def _derived(seed: int, number: int) -> int:
    """Far from that of any other node or run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])
