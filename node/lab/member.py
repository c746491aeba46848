"""One node of a simulated swarm, opened and alive: the daemon's parts, with a pace, a journal in memory and somebody
who writes everything down."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from node.algorithms import PeerGuidance
from node.assembly import Hands, Mind, hands_of, mind_of, trainer_of
from node.backlog import Nothing
from node.checkpoint import CheckpointStore
from node.config import NodeConfig, TransformersEngine
from node.drawing import Drawing
from node.engine.policy import Policy, load_policy
from node.engine.transformers import TransformersGenerator
from node.experience import Experience
from node.lab.exam import Exam, Marks
from node.lab.journal import MemoryJournal
from node.lab.pace import Pace, PacedGenerator
from node.lab.scoring import Guide, Scorer, Scoring, honest, lying
from node.loops import gather, produce, share, train
from node.metrics import MetricsLog
from node.pool import RolloutPool
from node.precedents import Precedents
from node.progress import Progress
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from swarm.manifest import Manifest
from swarm.membership import Membership
from swarm.net.base import Exchange
from swarm.net.memory import Hub
from swarm.net.standing import Standing
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
    """What a simulated node is made from. Its config's engine, exchange and directories are not looked at."""

    config: NodeConfig
    pace: Pace
    lag: int | None = None
    """Own rollouts are exactly so many steps old when they are learned from; None for what its pace makes of it."""
    tracker: type[ValueTracker] = ValueTracker
    """Another one, to compare with."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surroundings:
    """What all nodes of a run have in common."""

    seed: int
    """With a member's number it makes everything random about that one."""
    judge: LocalJudge
    manifest: Manifest
    exam: Exam
    exam_every: int
    scoring: Scoring
    scratch: Path
    stack: AsyncExitStack
    """Closes what the nodes open."""
    scorers: dict[PeerId, Scorer] = field(default_factory=dict)
    """Every node that is open."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedNode:
    member: Member
    identity: Identity
    mind: Mind
    hands: Hands
    pool: RolloutPool
    journal: MemoryJournal
    record: NodeRecord
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    """It has made its steps."""

    async def live(self, hub: Hub) -> None:
        """From its start until it is cancelled."""
        await asyncio.sleep(self.member.pace.start_s)
        async with hub.join(self.identity.peer_id, self.journal) as exchange:
            await self._loops(exchange)

    async def _loops(self, exchange: Exchange) -> None:
        config, mind, hands, pool = self.member.config, self.mind, self.hands, self.pool
        groups_in_flight = config.sampler.concurrency or config.pool.own_groups
        async with asyncio.TaskGroup() as group:
            for _ in range(groups_in_flight):
                group.create_task(produce(hands.producer, self.journal, pool, exchange))
            group.create_task(share(self.journal, exchange, self._announcement, heartbeat_s=HEARTBEAT_S))
            group.create_task(gather(exchange, hands.intake, self.journal, pool))
            await train(Drawing(mind.learning, pool), mind.learning, mind.generator, config.max_steps)
            self.finished.set()

    def _announcement(self, head: int) -> Announcement:
        return self.hands.author.announcement(self.member.config.name, (), self.journal.epoch, head)


async def open_member(member: Member, number: int, around: Surroundings, *, lies: bool) -> SimulatedNode:
    """`lies`: about what it thinks of others' rollouts, where it is asked."""
    never = member.config.checkpoint.model_copy(update={"every_steps": 1_000_000})
    config = member.config.model_copy(update={"seed": _derived(around.seed, number), "checkpoint": never})
    record = NodeRecord(name=config.name)
    standing = Standing(asyncio.get_running_loop().time)
    mind = await _mind(member, config, number, around, record, standing)
    policy = mind.policy
    identity = Identity(hashlib.sha256(f"laboratory/{around.seed}/{number}".encode()).digest())
    journal = MemoryJournal(JOURNAL_GROUPS, epoch=hashlib.sha256(identity.peer_id.encode()).digest()[:16])
    membership = Membership(swarm=around.manifest.id)
    judges = (around.judge, around.judge)
    hands = hands_of(config, identity, around.manifest, membership, judges, journal, mind, standing, wall_clock)
    scorer = lying(policy, np.random.default_rng([config.seed, 1])) if lies else honest(policy)
    around.scorers[identity.peer_id] = scorer
    record.exams.append(Sitting(0, 0.0, around.exam.sit(policy, around.seed)))
    return SimulatedNode(
        member=member,
        identity=identity,
        mind=mind,
        hands=hands,
        pool=mind.pool,
        journal=journal,
        record=record,
    )


async def _mind(
    member: Member, config: NodeConfig, number: int, around: Surroundings, record: NodeRecord, standing: Standing
) -> Mind:
    loop = asyncio.get_running_loop()
    policy = load_policy(config.policy)
    progress = _progress(member, config, policy, around)
    trainer = await around.stack.enter_async_context(trainer_of(config, policy, None, PolicyVersion(0), progress.gate))

    def after_step() -> None:
        record.steps.append({"step": float(progress.steps), "time": loop.time()} | progress.ledger.metrics)
        if progress.steps % around.exam_every == 0:
            record.exams.append(Sitting(progress.steps, loop.time(), around.exam.sit(policy, around.seed)))

    generator = PacedGenerator(
        await around.stack.enter_async_context(_generator(config, progress)),
        member.pace,
        np.random.default_rng(config.seed),
        after_step,
        lag=member.lag,
        batch_groups=config.pool.own_groups,
    )
    pool = _WatchedPool(
        config.pool,
        progress.drawing_rng,
        progress.ledger.counters,
        standing,
        Precedents(config.pool),
        heard=progress.hear,
    )
    pool.predictions = record.predictions
    if isinstance(config.guidance, PeerGuidance):
        pool.guide = Guide(around.scorers, around.scoring.latency_s)
    return mind_of(
        config,
        policy,
        progress,
        trainer,
        generator,
        pool,
        standing=standing,
        store=CheckpointStore(around.scratch / f"node-{number}", 1),
        metrics_log=MetricsLog(around.scratch / f"metrics-{number}.jsonl", max_waiting=1),
        outstanding=Nothing(),
    )


def _progress(member: Member, config: NodeConfig, policy: Policy, around: Surroundings) -> Progress:
    progress = Progress(config, policy, around.judge.sources, None)
    if member.tracker is not ValueTracker:
        progress.tracker = member.tracker(config.tracker)
        weights = [task.weight for task in config.tasks]
        progress.sampler = TaskSampler(around.judge.sources, weights, progress.tracker, config.sampler, config.seed)
    return progress


def _generator(config: NodeConfig, progress: Progress) -> TransformersGenerator:
    """Over a copy of the policy: it has its own weights, which arrive when a step is over."""
    copied = load_policy(config.policy)
    # Requests that are made at the same virtual moment are one batch; a millisecond brings them together.
    engine = TransformersEngine(batch_size=512, linger_ms=1.0)
    return TransformersGenerator(copied.model, copied.codec, engine, PolicyVersion(0), progress.sampling_rng)


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


def wall_clock() -> float:
    """Unix seconds."""
    return EPOCH + asyncio.get_running_loop().time()


def _derived(seed: int, number: int) -> int:
    """Far from that of any other node or run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])
