"""One node, start to finish: everything is opened in order, the loops run in one task group, everything is closed in
reverse. Assembly only: what happens is in `node/loops.py`.

Order of opening: data directory (lock), identity, journal, judge (child process), policy, trainer (thread), generator
(thread, or vLLM's processes), exchange (libp2p), operator's RPC; then the loops.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import TypeVar

import uvloop

from node.assembly import Hands, Mind, hands_of, mind_of, trainer_of
from node.backlog import Backlog
from node.checkpoint import CheckpointStore
from node.clock import ClockWatch
from node.config import NodeConfig, NoExchange
from node.datadir import DataDirectory
from node.disk import DiskWatch, next_checkpoint
from node.engine.devices import learner_devices
from node.engine.opening import foresee, open_generator
from node.engine.policy import Policy, load_policy, prepare_process
from node.evaluation import Evaluation
from node.exit_codes import SOFTWARE
from node.holds import Holds
from node.joining import check_policy, joining
from node.journal import Journal
from node.logs import ids
from node.metrics import MetricsLog
from node.operated import RunningNode
from node.pool import RolloutPool
from node.precedents import Precedents
from node.progress import Progress, moments_of
from node.resources import Resources
from node.rl.demand import announced_values
from node.rpc import RpcServer
from node.service_manager import ServiceManager
from node.settings import doubts, task_specs
from node.stopping import Closing, Ending, beside
from node.supervision import Part, Parts
from node.time_account import Times
from swarm.errors import CheckpointError, CrashLoop, JournalError, SwarmError
from swarm.manifest import Manifest
from swarm.membership import Membership
from swarm.net.base import Exchange
from swarm.net.exchange import P2PExchange
from swarm.net.memory import Hub
from swarm.net.standing import Standing
from swarm.tasks.base import Judge
from swarm.tasks.judge import ProcessJudge
from swarm.types import RolloutGroup
from swarm.wire.identity import Identity

T = TypeVar("T")

log = logging.getLogger(__name__)

#: (identity, who is in the swarm, journal) -> the exchange, open as long as its context is.
Join = Callable[[Identity, Membership, Journal], AbstractAsyncContextManager[Exchange]]


def run(config: NodeConfig) -> int:
    """Runs the node until SIGTERM, SIGINT or the operator's Stop. Returns the exit code; raises SwarmError."""
    prepare_process(config.threads)
    try:
        return uvloop.run(serve(config))
    except (CrashLoop, JournalError, CheckpointError) as error:
        DataDirectory(config.data_dir).note_end(str(error))
        raise
    except SwarmError:
        raise
    except Exception as error:
        log.critical("a bug has ended the node", exc_info=True)
        DataDirectory(config.data_dir).note_end(f"of a bug: {error!r}; its traceback is in the log")
        return SOFTWARE
    finally:
        gc.unfreeze()
        gc.collect()  # of what is still there at the interpreter's end, libraries complain


async def serve(config: NodeConfig) -> int:
    """Returns the exit code."""
    ending, manager = Ending(), ServiceManager()
    ending.on_signals()
    async with beside(ending.watch()):
        async with AsyncExitStack() as stack:
            node = await ending.unless_stopped(open_node(config, stack, ending.stopping))
            if node is not None:
                gc.freeze()  # none of this becomes garbage, and a full collection of it holds the loop up for 0.1 s
                ending.saved = False
                manager.tell(READY=1)
                async with beside(manager.watch(node.stuck, node.summary, ending)):
                    ending.saved = await node.run()
                manager.tell(STOPPING=1)
        log.info("%s has stopped", config.name)
    if ending.why:
        DataDirectory(config.data_dir).note_end(ending.why)
    return ending.code


async def open_node(
    config: NodeConfig,
    stack: AsyncExitStack,
    stopping: asyncio.Event,
    join: Join | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> RunningNode:
    """Opens everything on `stack`, which closes it. `join` replaces the config's exchange. `wall_clock`: unix seconds,
    as others see us. Raises SwarmError."""
    swarm = joining(config)
    config = swarm.config
    data = DataDirectory(config.data_dir)
    stack.enter_context(data.lock())
    identity = Identity.load_or_create(data.identity)
    opened, room = _Opening(stack), Holds()
    kept = config.journal
    journal = await opened(
        Journal.open(data.journal, kept.max_groups, room, max_bytes=kept.max_bytes, max_age_s=kept.max_age_s),
        "the journal",
    )
    specs = task_specs(config)
    judge = await opened(ProcessJudge(specs, timeout_s=config.score_timeout_s), "the judge")
    # Strangers' texts are judged apart: what they make hang holds up nothing of ours.
    foreign_judge = await opened(
        ProcessJudge(specs, timeout_s=config.foreign_score_timeout_s), "the judge of peers' groups"
    )
    manifest, membership = swarm.agreed(judge.sources)
    standing = Standing(time.monotonic, data.standing)
    stack.callback(standing.save)
    mind, backlog, parts, metrics_log = await _open_mind(config, opened, data, judge, manifest, standing, journal)
    join = join or _exchange(config, data, standing, mind, parts.network, wall_clock)
    exchange = await opened(join(identity, membership, journal), "the network")
    hands = hands_of(
        config, identity, manifest, membership, (judge, foreign_judge), journal, mind, standing, wall_clock
    )
    clock_watch = ClockWatch(warn=mind.progress.ledger.warn, refresh=exchange.refresh, wall_clock=wall_clock)
    parameters = sum(p.numel() for p in mind.policy.model.parameters() if p.requires_grad)
    disk = DiskWatch(
        config.disk, data.path, room, lambda: next_checkpoint(data.checkpoints, parameters), mind.progress.ledger.warn
    )
    node = _assemble(
        config,
        journal,
        backlog,
        judge,
        mind,
        hands,
        exchange,
        standing,
        metrics_log,
        disk,
        parts,
        clock_watch,
        stopping,
    )
    rpc = await opened(RpcServer(config.rpc, node), "the operator's service")
    stack.enter_context(data.serving(rpc.address))
    about = ids(peer=identity.peer_id, step=mind.progress.steps, version=mind.progress.version)
    log.info("%s is up, RPC at %s", config.name, rpc.address, extra=about)
    return node


async def _open_mind(
    config: NodeConfig,
    opened: _Opening,
    data: DataDirectory,
    judge: Judge,
    manifest: Manifest,
    standing: Standing,
    journal: Journal,
) -> tuple[Mind, Backlog, Parts, MetricsLog]:
    """From the newest checkpoint, where there is one, and from the journal what it refers to."""
    store = CheckpointStore(data.checkpoints, config.checkpoint.keep, config.checkpoint.keep_best)
    checkpoint = await asyncio.to_thread(store.latest)
    devices = learner_devices(config.policy, config.learner)
    model_dir = checkpoint.model_dir if checkpoint else None
    chosen, demands = await asyncio.to_thread(foresee, config, devices, model_dir)
    log.info("the policy fits: %s", "; ".join(map(str, demands)))
    policy = await asyncio.to_thread(load_policy, config.policy, model_dir, devices)
    progress = Progress(config, policy, judge.sources, checkpoint)
    check_policy(manifest, progress.fingerprint, policy.codec.fingerprint)
    probe = chosen.probe(policy.codec)
    trainer = await opened(trainer_of(config, policy, probe, progress.version, progress.gate), "the learner")
    weights = await trainer.weights()
    ledger = progress.ledger
    for doubt in doubts(config):
        log.warning(doubt)
        ledger.warn(doubt)
    times, parts = Times(), Parts.of(config.supervision, ledger.counters, ledger.warn)
    engine = open_generator(
        config,
        chosen,
        policy,
        weights,
        progress.sampling_rng,
        ledger.counters,
        ledger.warn,
        times.generator,
        parts.engine,
    )
    generator = await opened(engine, "the engine")
    if checkpoint:  # after the engine has found out how much memory the learner leaves: it counts this as still to come
        await trainer.restore(moments_of(checkpoint))
    metrics_log = MetricsLog(data.metrics, warn=ledger.warn)
    pool = RolloutPool(
        config.pool, progress.drawing_rng, ledger.counters, standing, Precedents(config.pool), heard=progress.hear
    )
    backlog = Backlog(
        journal,
        pool,
        judge,
        ours=lambda group, own: _is_ours(group, own, manifest, progress.fingerprint, policy),
        max_age_s=config.pool.foreign_max_age_s,
    )
    await backlog.restore(checkpoint.state if checkpoint else None)
    mind = mind_of(
        config,
        policy,
        progress,
        trainer,
        generator,
        pool,
        standing=standing,
        store=store,
        metrics_log=metrics_log,
        outstanding=backlog,
        reload=partial(load_policy, config.policy.model_copy(update={"device": "cpu"})),
        times=times,
    )
    return mind, backlog, parts, metrics_log


def _is_ours(group: RolloutGroup, own: bool, manifest: Manifest, model: str, policy: Policy) -> bool:
    """A group of the journal: whether it is of this swarm and, if we made it, of this policy."""
    made_by_it = (group.model, group.tokenizer) == (model, policy.codec.fingerprint)
    return group.swarm == manifest.id and (made_by_it or not own)


def _assemble(
    config: NodeConfig,
    journal: Journal,
    backlog: Backlog,
    judge: Judge,
    mind: Mind,
    hands: Hands,
    exchange: Exchange,
    standing: Standing,
    metrics_log: MetricsLog,
    disk: DiskWatch,
    parts: Parts,
    clock_watch: ClockWatch,
    stopping: asyncio.Event,
) -> RunningNode:
    progress = mind.progress
    return RunningNode(
        config=config,
        author=hands.author,
        journal=journal,
        backlog=backlog,
        pool=mind.pool,
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
        parts=parts,
        clock_watch=clock_watch,
        stopping=stopping,
    )


def _exchange(
    config: NodeConfig,
    data: DataDirectory,
    standing: Standing,
    mind: Mind,
    part: Part,
    wall_clock: Callable[[], float],
) -> Join:
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
            wall_clock=wall_clock,
            watcher=part,
            warn=mind.progress.ledger.warn,
        )

    return join


class _Opening:
    """Enters contexts on `stack`, which gives none of them more than its time to close."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def __call__(self, context: AbstractAsyncContextManager[T], what: str) -> T:
        return await self._stack.enter_async_context(Closing(context, what))
