"""One node, start to finish: everything is opened in order, the loops run in one task group, everything is closed in
reverse. Assembly only: what happens is in `node/loops.py`.

Order of opening: data directory (lock), identity, journal, judge (child process), policy, trainer (thread), generator
(thread, or vLLM's processes), exchange (libp2p), operator's RPC; then the loops.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

import uvloop

from node.appetite import Appetite
from node.assembly import Hands, Mind, hands_of, trainer_of
from node.checkpoint import CheckpointStore
from node.config import NodeConfig, NoExchange
from node.datadir import DataDirectory
from node.disk import DiskWatch, next_checkpoint
from node.engine.devices import learner_devices
from node.engine.opening import choose, open_generator
from node.engine.policy import load_policy, prepare_process
from node.evaluation import Evaluation
from node.holds import Holds
from node.joining import check_policy, joining
from node.journal import Journal
from node.learning import Learning
from node.metrics import MetricsLog
from node.operated import RunningNode
from node.pool import RolloutPool
from node.progress import SAMPLING_RNG, Progress
from node.resources import Resources
from node.rl.demand import announced_values
from node.rpc import RpcServer
from node.settings import doubts, task_specs
from node.time_account import Times
from swarm.manifest import Manifest
from swarm.membership import Membership
from swarm.net.base import Exchange
from swarm.net.exchange import P2PExchange
from swarm.net.memory import Hub
from swarm.net.standing import Standing
from swarm.tasks.base import Judge
from swarm.tasks.judge import ProcessJudge
from swarm.wire.identity import Identity

log = logging.getLogger(__name__)

#: (identity, who is in the swarm, journal) -> the exchange, open as long as its context is.
Join = Callable[[Identity, Membership, Journal], AbstractAsyncContextManager[Exchange]]


def run(config: NodeConfig) -> int:
    """Runs the node until SIGTERM, SIGINT or the operator's Stop. Returns the exit status; raises SwarmError."""
    prepare_process(config.threads)
    try:
        uvloop.run(serve(config))
    finally:
        gc.unfreeze()
        gc.collect()  # of what is still there at the interpreter's end, libraries complain
    return 0


async def serve(config: NodeConfig) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        node = await open_node(config, stack, stopping)
        gc.freeze()  # none of this becomes garbage, and a full collection of it holds the loop up for 0.1 s
        await node.run()
    log.info("%s has stopped", config.name)


async def open_node(
    config: NodeConfig, stack: AsyncExitStack, stopping: asyncio.Event, join: Join | None = None
) -> RunningNode:
    """Opens everything on `stack`, which closes it. `join` replaces the config's exchange. Raises SwarmError."""
    swarm = joining(config)
    config = swarm.config
    data = DataDirectory(config.data_dir)
    stack.enter_context(data.lock())
    identity = Identity.load_or_create(data.identity)
    room = Holds()
    journal = await stack.enter_async_context(Journal.open(data.journal, config.journal.max_groups, room))
    specs = task_specs(config)
    judge = await stack.enter_async_context(ProcessJudge(specs, timeout_s=config.score_timeout_s))
    # Strangers' texts are judged apart: what they make hang holds up nothing of ours.
    foreign_judge = await stack.enter_async_context(ProcessJudge(specs, timeout_s=config.foreign_score_timeout_s))
    manifest, membership = swarm.agreed(judge.sources)
    standing = Standing(time.monotonic, data.standing)
    stack.callback(standing.save)
    mind, metrics_log = await _open_mind(config, stack, data, judge, manifest, standing)
    join = join or _exchange(config, data, standing, mind)
    exchange = await stack.enter_async_context(join(identity, membership, journal))
    hands = hands_of(config, identity, manifest, membership, (judge, foreign_judge), journal, mind, standing)
    parameters = sum(p.numel() for p in mind.policy.model.parameters() if p.requires_grad)
    disk = DiskWatch(
        config.disk, data.path, room, lambda: next_checkpoint(data.checkpoints, parameters), mind.progress.ledger.warn
    )
    node = _assemble(config, journal, judge, mind, hands, exchange, standing, metrics_log, disk, stopping)
    rpc = await stack.enter_async_context(RpcServer(config.rpc, node))
    stack.enter_context(data.serving(rpc.address))
    log.info("%s is up: peer %s, RPC at %s, step %d", config.name, identity.peer_id, rpc.address, mind.progress.steps)
    return node


async def _open_mind(
    config: NodeConfig,
    stack: AsyncExitStack,
    data: DataDirectory,
    judge: Judge,
    manifest: Manifest,
    standing: Standing,
) -> tuple[Mind, MetricsLog]:
    """From the newest checkpoint, where there is one."""
    store = CheckpointStore(data.checkpoints, config.checkpoint.keep)
    checkpoint = await asyncio.to_thread(store.latest)
    devices = learner_devices(config.policy, config.learner)
    model_dir = checkpoint.model_dir if checkpoint else None
    policy = await asyncio.to_thread(load_policy, config.policy, model_dir, devices)
    progress = Progress(config, policy, judge.sources, checkpoint)
    check_policy(manifest, progress.fingerprint, policy.codec.fingerprint)
    chosen = choose(config, policy)
    trainer = await stack.enter_async_context(trainer_of(config, policy, chosen.probe, progress.version))
    if checkpoint:
        tensors = checkpoint.tensors()
        del tensors[SAMPLING_RNG]
        await trainer.restore(tensors)
    weights = await trainer.weights()
    ledger = progress.ledger
    for doubt in doubts(config):
        log.warning(doubt)
        ledger.warn(doubt)
    times = Times()
    generator = await stack.enter_async_context(
        open_generator(
            config, chosen, policy, weights, progress.sampling_rng, ledger.counters, ledger.warn, times.generator
        )
    )
    running = Holds()
    metrics_log = MetricsLog(data.metrics, warn=ledger.warn)
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
        reload=partial(load_policy, config.policy.model_copy(update={"device": "cpu"})),
        times=times,
    )
    mind = Mind(
        policy=policy,
        progress=progress,
        trainer=trainer,
        generator=generator,
        learning=learning,
        running=running,
        times=times,
    )
    return mind, metrics_log


def _assemble(
    config: NodeConfig,
    journal: Journal,
    judge: Judge,
    mind: Mind,
    hands: Hands,
    exchange: Exchange,
    standing: Standing,
    metrics_log: MetricsLog,
    disk: DiskWatch,
    stopping: asyncio.Event,
) -> RunningNode:
    progress = mind.progress
    return RunningNode(
        config=config,
        author=hands.author,
        journal=journal,
        pool=RolloutPool(config.pool, progress.drawing_rng, progress.ledger.counters, standing, hands.precedents),
        producer=hands.producer,
        intake=hands.intake,
        exchange=exchange,
        standing=standing,
        generator=mind.generator,
        learning=mind.learning,
        evaluation=Evaluation(
            config=config.eval,
            judge=judge,
            generator=mind.generator,
            codec=mind.policy.codec,
            params=config.sampler.params,
            learning=mind.learning,
            ledger=progress.ledger,
        ),
        tracker=progress.tracker,
        ledger=progress.ledger,
        metrics_log=metrics_log,
        disk=disk,
        resources=Resources(lambda: progress.steps, progress.ledger.grows),
        running=mind.running,
        stopping=stopping,
    )


def _exchange(config: NodeConfig, data: DataDirectory, standing: Standing, mind: Mind) -> Join:
    def join(identity: Identity, membership: Membership, journal: Journal) -> AbstractAsyncContextManager[Exchange]:
        if isinstance(config.exchange, NoExchange):
            return Hub().join(identity.peer_id, journal)
        return P2PExchange(
            config.exchange,
            identity=identity,
            identity_path=data.identity,
            membership=membership,
            log=journal,
            cursors=journal,
            limits=config.limits,
            peers_file=data.peers,
            known=journal.known,
            worth=lambda: announced_values(mind.progress.tracker, mind.trainer.version),
            standing=standing,
            appetite=lambda: mind.learning.appetite.groups_per_s,
        )

    return join
