"""What the loops work with, put together: the same for a daemon and for a simulated swarm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from node.appetite import Appetite
from node.backlog import Outstanding
from node.checkpoint import CheckpointStore
from node.config import NodeConfig
from node.engine.base import Generator
from node.engine.policy import Policy, torch_dtype
from node.engine.ranks.several import SeveralDevices
from node.engine.trainer import Learner, OneDevice, PolicyTrainer
from node.engine.updates import Rules, Updates
from node.holds import Holds
from node.intake import Intake
from node.journal import GroupJournal
from node.learning import Learning
from node.metrics import MetricsLog
from node.pool import RolloutPool
from node.producer import Author, Producer
from node.progress import Progress
from node.rl.demand import announced_values
from node.rl.gate import GateMemory
from node.time_account import Times
from node.way_back import Reload
from swarm.manifest import Manifest
from swarm.membership import Membership
from swarm.net.standing import Standing
from swarm.tasks.base import Judge
from swarm.types import PolicyVersion
from swarm.wire.identity import Identity


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mind:
    """The policy and all that learns with it."""

    policy: Policy
    progress: Progress
    trainer: PolicyTrainer
    generator: Generator
    pool: RolloutPool
    learning: Learning
    running: Holds
    """Held while the node is paused."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hands:
    """What makes experience, and takes it in."""

    author: Author
    producer: Producer
    intake: Intake


def mind_of(
    config: NodeConfig,
    policy: Policy,
    progress: Progress,
    trainer: PolicyTrainer,
    generator: Generator,
    pool: RolloutPool,
    *,
    standing: Standing,
    store: CheckpointStore,
    metrics_log: MetricsLog,
    outstanding: Outstanding,
    reload: Reload | None = None,
    times: Times | None = None,
) -> Mind:
    """`outstanding`, `reload`, `times`: as in `Learning`."""
    running = Holds()
    learning = Learning(
        policy=policy,
        trainer=trainer,
        progress=progress,
        foreign=config.foreign,
        store=store,
        config=config.checkpoint,
        running=running,
        metrics_log=metrics_log,
        credit=standing.credit,
        appetite=Appetite(config.pool.foreign_groups),
        outstanding=outstanding,
        reload=reload,
        times=times,
    )
    return Mind(
        policy=policy,
        progress=progress,
        trainer=trainer,
        generator=generator,
        pool=pool,
        learning=learning,
        running=running,
    )


def trainer_of(
    config: NodeConfig,
    policy: Policy,
    probe: np.ndarray | None,
    version: PolicyVersion,
    gate: GateMemory | None = None,
) -> PolicyTrainer:
    """`policy`'s, as the config has it; `probe` (int32 [P]) is what its generator compares, `gate` what earlier steps
    have seen."""
    rules = Rules(
        objective=config.objective,
        foreign=config.foreign,
        foreign_gate=config.foreign_gate,
        learner=config.learner,
        temperature=config.sampler.temperature,
        autocast=config.policy.dtype == "bfloat16",
    )
    return PolicyTrainer(
        _learner(policy, rules, config.threads),
        policy.codec,
        rules,
        advantage=config.advantage,
        guidance=config.guidance,
        max_length=getattr(policy.model.config, "max_position_embeddings", None),
        sampling_dtype=torch_dtype(config.policy.dtype),
        probe=probe,
        version=version,
        gate=gate,
    )


def _learner(policy: Policy, rules: Rules, threads: int) -> Learner:
    """`threads`: CPU threads of each process; 0 for a fair part of what there is."""
    if len(policy.devices) == 1:
        return OneDevice(Updates(policy.model, rules))
    fair = max(1, (os.cpu_count() or 1) // len(policy.devices))
    return SeveralDevices(policy, rules, policy.devices, threads or fair)


def hands_of(
    config: NodeConfig,
    identity: Identity,
    manifest: Manifest,
    membership: Membership,
    judges: tuple[Judge, Judge],
    journal: GroupJournal,
    mind: Mind,
    standing: Standing,
    wall_clock: Callable[[], float] = time.time,
) -> Hands:
    """`judges`: of our own groups and of strangers'. `wall_clock`: unix seconds."""
    progress, trainer = mind.progress, mind.trainer
    judge, foreign_judge = judges
    author = Author(
        identity=identity,
        membership=membership,
        model=progress.fingerprint,
        codec=mind.policy.codec,
        sampling=config.sampler.params,
        wall_clock=wall_clock,
        worth=lambda: announced_values(progress.tracker, trainer.version) if config.sampler.for_swarm else (),
    )
    producer = Producer(
        config=config.sampler,
        truncated=config.learner.truncated,
        sampler=progress.sampler,
        tracker=progress.tracker,
        judge=judge,
        generator=mind.generator,
        author=author,
        version=lambda: trainer.version,
        running=mind.running,
        ledger=progress.ledger,
        times=mind.learning.times,
    )
    intake = Intake(
        me=identity.peer_id,
        manifest=manifest,
        membership=membership,
        limits=config.limits,
        truncated=config.learner.truncated,
        judge=foreign_judge,
        journal=journal,
        tracker=progress.tracker,
        version=lambda: trainer.version,
        ledger=progress.ledger,
        precedents=mind.pool.precedents,
        banned=standing.banned,
        wall_clock=wall_clock,
    )
    return Hands(author=author, producer=producer, intake=intake)
