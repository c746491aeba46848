"""A node that is up: its loops, and what its operator may ask of it. Made by `node.daemon`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from node.backlog import Backlog
from node.clock import ClockWatch
from node.config import NodeConfig, P2PExchange
from node.disk import DiskWatch
from node.drawing import Drawing
from node.engine.base import Generator
from node.evaluation import Evaluation
from node.holds import Holds
from node.intake import Intake
from node.journal import Journal
from node.learning import Learning
from node.ledger import Ledger
from node.loops import evaluate, gather, produce, replay, save, share, train
from node.metrics import LoopDelay, MetricsLog
from node.pool import RolloutPool
from node.producer import Author, Producer
from node.resources import Resources
from node.rl.tracker import ValueTracker
from node.stopping import CHECKPOINT_S, LOOPS_S, SAMPLING_S
from node.supervision import Parts
from swarm.errors import CrashLoop, SwarmError
from swarm.net.base import Exchange
from swarm.net.standing import Standing
from swarm.types import Announcement, family_of
from swarm.wire.v1 import node_pb2

log = logging.getLogger(__name__)

VERSION = importlib.metadata.version("swarm-node")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunningNode:
    config: NodeConfig
    author: Author
    journal: Journal
    backlog: Backlog
    pool: RolloutPool
    producer: Producer
    intake: Intake
    exchange: Exchange
    standing: Standing
    generator: Generator
    learning: Learning
    evaluation: Evaluation
    tracker: ValueTracker
    ledger: Ledger
    metrics_log: MetricsLog
    disk: DiskWatch
    resources: Resources
    running: Holds
    """Held while the node is paused."""
    parts: Parts
    clock_watch: ClockWatch
    stopping: asyncio.Event
    delay: LoopDelay = field(default_factory=LoopDelay)
    started: float = field(default_factory=time.monotonic)

    async def run(self) -> bool:
        """The loops, until `stopping` is set; then a last checkpoint. Any loop's error stops them all and is raised.
        Returns whether all that was learned is in a checkpoint."""
        try:
            await self._loop()
        except BaseExceptionGroup as errors:
            error = _foreseen(errors)
            if isinstance(error, CrashLoop) and self.parts.learner.state == "up":
                await self._save()  # it was another part
            raise error or errors from None
        return await self._save()

    async def _loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            loops = [
                replay(self.backlog, self.pool, self.ledger.counters),
                *(self._produce() for _ in range(self._groups_in_flight)),
                share(self.journal, self.exchange, self._announcement, self._heartbeat_s),
                gather(self.exchange, self.intake, self.journal, self.pool),
                self.parts.learner.keep(
                    lambda: train(self._drawing, self.learning, self.generator, self.config.max_steps)
                ),
                save(self.learning),
                self.disk.run(),
                self.resources.run(),
                self.delay.run(),
                self.metrics_log.run(),
                self.clock_watch.run(),
            ]
            if self.config.eval.every_steps:
                loops.append(evaluate(self.evaluation, self.learning, self.config.eval.every_steps))
            tasks = [group.create_task(loop) for loop in loops]
            await self.stopping.wait()
            await self._wind_down(tasks)

    async def _wind_down(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Nothing new is begun, what is in flight is finished and journalled, as far as it takes no longer than it may;
        then the loops end."""
        self.running.hold("stop", "the node is being stopped")
        with suppress(TimeoutError):
            async with asyncio.timeout(SAMPLING_S):
                await self.producer.idle()
                await self.journal.flush()
        for task in tasks:
            task.cancel()
        _, late = await asyncio.wait(tasks, timeout=LOOPS_S)
        for task in late:
            log.warning("after %g s a step, or another piece of work that nothing can cut short, goes on", LOOPS_S)
            task.cancel()  # it is not waited for any more

    async def _save(self) -> bool:
        if not self.learning.steps:
            return True
        saving = asyncio.ensure_future(self.learning.checkpoint())
        done, _ = await asyncio.wait([saving], timeout=CHECKPOINT_S)
        if not done:
            log.error("no checkpoint within %g s: the steps since the last one are lost", CHECKPOINT_S)
            saving.cancel()
            return False
        saving.result()
        return True

    def stuck(self) -> str:
        """What does not come back and cannot be ended alone, in words; nothing if all is well."""
        limit_s = self.config.supervision.stall_s
        engine_s = self.generator.gauges().get("engine_busy_s", 0.0)
        for what, busy_s in (("the learner's step", self.learning.busy_s), ("the engine's batch", engine_s)):
            if limit_s and busy_s > limit_s:
                return f"{what} takes {busy_s:.0f} s by now (supervision.stall_s = {limit_s:g})"
        return ""

    def summary(self) -> str:
        """In a line, for a service manager."""
        state = node_pb2.NodeState.Name(self.state).removeprefix("NODE_STATE_").lower()
        return f"{state}, step {self.learning.steps}, {len(self.exchange.peers())} peers, network {self.exchange.state}"

    async def _learn(self) -> None:
        await train(self._drawing, self.learning, self.generator, self.config.max_steps)

    async def _produce(self) -> None:
        await self.backlog.replayed.wait()
        await produce(self.producer, self.journal, self.pool, self.exchange)

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.learning, self.pool, ahead=self.config.learner.draw_ahead)

    @property
    def _groups_in_flight(self) -> int:
        sampler = self.config.sampler
        return sampler.concurrency or -(-self.generator.in_flight // sampler.group_size)

    @property
    def _heartbeat_s(self) -> float:
        exchange = self.config.exchange
        return exchange.heartbeat_s if isinstance(exchange, P2PExchange) else 3600.0

    def _announcement(self, head: int) -> Announcement:
        return self.author.announcement(self.config.name, self.exchange.addresses, self.journal.epoch, head)

    # What an operator asks (node.rpc.Operated) ------------------------------------------------------------------------

    @property
    def state(self) -> node_pb2.NodeState:
        if self.stopping.is_set():
            return node_pb2.NODE_STATE_STOPPING
        paused = self._holds
        return node_pb2.NODE_STATE_PAUSED if paused else node_pb2.NODE_STATE_RUNNING

    @property
    def _holds(self) -> list[str]:
        """Why it does not go on, if it does not."""
        return [*self.running.reasons, *self.disk.room.reasons]

    def status(self) -> node_pb2.NodeStatus:
        status = node_pb2.NodeStatus(
            name=self.config.name,
            peer=self.author.identity.peer_id,
            version=VERSION,
            state=self.state,
            uptime_s=time.monotonic() - self.started,
            swarm=self.author.membership.swarm,
            addresses=self.exchange.addresses,
            peers=len(self.exchange.peers()),
            network=self.exchange.state,
            holds=self._holds,
        )
        level = self.pool.level
        pool = {
            "pool_own": level.own,
            "pool_foreign": level.foreign,
            "pool_newcomers": level.newcomers,
            "pool_foreign_mib": level.foreign_bytes / (1 << 20),
        }
        learner = {"learner_busy_s": self.learning.busy_s}
        used = learner | self.delay.gauges() | self.resources.gauges() | self.disk.gauges()
        self.ledger.fill(status, pool | used | dict(self.generator.gauges()))
        status.learner_time.update(self.learning.times.learner.shares())
        status.generator_time.update(self.learning.times.generator.shares())
        status.parts.extend(
            node_pb2.Part(
                name=part.name,
                state=part.state,
                restarts=part.restarts,
                recent_failures=part.recent,
                allowed_failures=part.allowed,
                last_error=part.last_error,
                last_error_s=part.last_error_s,
            )
            for part in self.parts
        )
        values = self.tracker.source_values(self.ledger.policy_version)
        status.values.update({family_of(source): value for source, value in values.items()})
        return status

    def peers(self) -> Sequence[node_pb2.Peer]:
        now = time.monotonic()
        return [
            node_pb2.Peer(
                peer=info.peer,
                name=info.name,
                addresses=info.addresses,
                last_seen_s=now - info.last_seen,
                head=info.head,
                cursor=info.cursor,
                admitted=self.ledger.admitted[info.peer],
                refused=self.ledger.refusals_of(info.peer),
                trust=self.standing.trust(info.peer),
                trusted=self.standing.trusted(info.peer),
                ban_s=self.standing.ban_s(info.peer),
            )
            for info in self.exchange.peers()
        ]

    def verdicts(self, limit: int) -> Sequence[node_pb2.VerdictRecord]:
        return self.ledger.verdict_records(limit)

    def pause(self) -> None:
        self.running.hold("operator", "paused by its operator")

    def resume(self) -> None:
        self.running.release("operator")
        self.learning.resume()

    async def checkpoint(self) -> tuple[str, int]:
        path = await self.learning.checkpoint()
        return str(path), self.learning.steps

    def stop(self) -> None:
        self.stopping.set()


def _foreseen(errors: BaseExceptionGroup) -> SwarmError | None:
    """The first of `errors`, when all of them are sentences for the operator and none is a bug."""
    swarm_errors, bugs = errors.split(SwarmError)
    first: BaseException | None = swarm_errors if bugs is None else None
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, SwarmError) else None
