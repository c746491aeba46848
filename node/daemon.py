"""One node, start to finish: everything is opened in order, the loops run in one task group, everything is closed in
reverse. Assembly only: what happens is in `node/loops.py`.

Order of opening: data directory (lock), identity, journal, judge (child process), policy, trainer and generator
(threads), exchange (libp2p), operator's RPC; then the loops.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import uvloop

from node.checkpoint import Checkpoint, CheckpointStore, restore_optimizer
from node.config import NodeConfig, NoExchange
from node.datadir import DataDirectory
from node.engine.policy import Policy, load_policy, prepare_process
from node.engine.trainer import PolicyTrainer
from node.engine.transformers import TransformersGenerator
from node.evaluation import Evaluation
from node.intake import Intake
from node.journal import Journal
from node.learning import Learning
from node.ledger import Ledger
from node.metrics import MetricsLog
from node.operated import RunningNode
from node.pool import RolloutPool
from node.producer import Author, Producer
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from node.rpc import RpcServer
from node.settings import task_specs
from swarm.manifest import Manifest
from swarm.net.base import Exchange
from swarm.net.exchange import P2PExchange, P2PSettings
from swarm.net.memory import Hub
from swarm.tasks.base import Judge
from swarm.tasks.judge import ProcessJudge
from swarm.types import PolicyVersion, SamplingParams
from swarm.wire.identity import Identity

log = logging.getLogger(__name__)

#: (identity, id of the swarm, journal) -> the exchange, open as long as its context is.
Join = Callable[[Identity, str, Journal], AbstractAsyncContextManager[Exchange]]


def run(config: NodeConfig) -> int:
    """Runs the node until SIGTERM, SIGINT or the operator's Stop. Returns the exit status; raises SwarmError."""
    prepare_process(config.threads)
    uvloop.run(serve(config))
    return 0


async def serve(config: NodeConfig) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        node = await open_node(config, stack, stopping)
        await node.run()
    log.info("%s has stopped", config.name)


async def open_node(
    config: NodeConfig, stack: AsyncExitStack, stopping: asyncio.Event, join: Join | None = None
) -> RunningNode:
    """Opens everything on `stack`, which closes it. `join` replaces the config's exchange. Raises SwarmError."""
    data = DataDirectory(config.data_dir)
    stack.enter_context(data.lock())
    identity = Identity.load_or_create(data.identity)
    journal = await stack.enter_async_context(Journal.open(data.journal, config.journal.max_groups))
    judge = await stack.enter_async_context(ProcessJudge(task_specs(config), timeout_s=config.score_timeout_s))
    manifest = Manifest.of(config.swarm.name, judge.sources)

    store = CheckpointStore(data.checkpoints, config.checkpoint.keep)
    checkpoint = await asyncio.to_thread(store.latest)
    policy = await asyncio.to_thread(load_policy, config.policy, checkpoint.model_dir if checkpoint else None)
    kept = _Kept(config, policy, judge, checkpoint)
    trainer = await stack.enter_async_context(_trainer(config, policy, kept.version))
    if checkpoint:
        restore_optimizer(trainer.optimizer, trainer.parameter_names, checkpoint.tensors())
    generator = await stack.enter_async_context(_generator(config, policy, kept.version))

    running = asyncio.Event()
    running.set()
    metrics_log = MetricsLog(data.metrics, warn=kept.ledger.warn)
    author = Author(
        identity=identity,
        swarm=manifest.id,
        model=kept.fingerprint,
        codec=policy.codec,
        sampling=_sampling(config),
        share_ids=config.sampler.share_ids,
    )
    learning = Learning(
        policy=policy,
        fingerprint=kept.fingerprint,
        trainer=trainer,
        tracker=kept.tracker,
        sampler=kept.sampler,
        foreign=config.foreign,
        store=store,
        config=config.checkpoint,
        running=running,
        ledger=kept.ledger,
        metrics_log=metrics_log,
        steps=kept.steps,
    )
    node = RunningNode(
        config=config,
        author=author,
        journal=journal,
        pool=RolloutPool(config.pool, random.Random(config.seed + kept.steps), kept.ledger.counters),
        producer=Producer(
            config=config.sampler,
            sampler=kept.sampler,
            tracker=kept.tracker,
            judge=judge,
            generator=generator,
            author=author,
            version=lambda: trainer.version,
            running=running,
            ledger=kept.ledger,
        ),
        intake=Intake(
            me=identity.peer_id,
            manifest=manifest,
            limits=config.limits,
            judge=judge,
            journal=journal,
            tracker=kept.tracker,
            version=lambda: trainer.version,
            ledger=kept.ledger,
        ),
        exchange=await stack.enter_async_context((join or _exchange(config, data))(identity, manifest.id, journal)),
        generator=generator,
        learning=learning,
        evaluation=Evaluation(
            config=config.eval,
            judge=judge,
            generator=generator,
            codec=policy.codec,
            params=_sampling(config),
            learning=learning,
            ledger=kept.ledger,
        ),
        tracker=kept.tracker,
        ledger=kept.ledger,
        metrics_log=metrics_log,
        running=running,
        stopping=stopping,
    )
    rpc = await stack.enter_async_context(RpcServer(config.rpc, node))
    stack.enter_context(data.serving(rpc.address))
    log.info("%s is up: peer %s, RPC at %s, step %d", config.name, identity.peer_id, rpc.address, kept.steps)
    return node


class _Kept:
    """What a checkpoint brings back, or what there is without one."""

    def __init__(self, config: NodeConfig, policy: Policy, judge: Judge, checkpoint: Checkpoint | None) -> None:
        state = checkpoint.state if checkpoint else {}
        self.steps: int = state.get("steps", 0)
        self.version = PolicyVersion(state.get("policy_version", 0))
        self.fingerprint: str = state.get(
            "fingerprint", policy.fingerprint
        )  # of the base, which training leaves behind
        self.tracker = ValueTracker(config.tracker)
        self.ledger = Ledger()
        if checkpoint:
            self.tracker = ValueTracker.restore(config.tracker, state["tracker"])
            self.ledger.restore(state["counters"])
            self.ledger.steps, self.ledger.policy_version = self.steps, self.version
        weights = [task.weight for task in config.tasks]
        self.sampler = TaskSampler(judge.sources, weights, self.tracker, config.sampler, config.seed)
        if checkpoint:
            self.sampler.restore(state["sampler"])


def _sampling(config: NodeConfig) -> SamplingParams:
    sampler = config.sampler
    return SamplingParams(temperature=sampler.temperature, top_p=sampler.top_p, max_new_tokens=sampler.max_new_tokens)


def _trainer(config: NodeConfig, policy: Policy, version: PolicyVersion) -> PolicyTrainer:
    return PolicyTrainer(
        policy,
        advantage=config.advantage,
        objective=config.objective,
        foreign=config.foreign,
        learner=config.learner,
        temperature=config.sampler.temperature,
        autocast=config.policy.dtype == "bfloat16",
        version=version,
    )


def _generator(config: NodeConfig, policy: Policy, version: PolicyVersion) -> TransformersGenerator:
    model = policy.sampling_copy(config.policy.dtype)
    return TransformersGenerator(model, policy.codec.eos_id, config.engine, version, config.seed + version)


def _exchange(config: NodeConfig, data: DataDirectory) -> Join:
    def join(identity: Identity, swarm: str, journal: Journal) -> AbstractAsyncContextManager[Exchange]:
        if isinstance(config.exchange, NoExchange):
            return Hub().join(identity.peer_id, journal)
        return P2PExchange(
            P2PSettings(**config.exchange.model_dump(exclude={"type"})),
            identity=identity,
            identity_path=data.identity,
            swarm=swarm,
            log=journal,
            cursors=journal,
            limits=config.limits,
            peers_file=data.peers,
        )

    return join
