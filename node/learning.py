"""The learner's side of a node: what it draws, what a step leaves behind, and how it goes back where a step failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from node.algorithms import ForeignConfig
from node.appetite import Appetite
from node.backlog import Outstanding
from node.checkpoint import CheckpointStore
from node.config import CheckpointConfig
from node.divergence import GoBack
from node.engine.base import StepReport, Weights
from node.engine.policy import Policy
from node.engine.trainer import PolicyTrainer, PreparedStep
from node.engine.uninterrupted import to_its_end
from node.experience import Experience
from node.holds import Holds
from node.logs import ids
from node.metrics import MetricsLog
from node.pool import RolloutPool
from node.progress import Progress
from node.rl.foreign import FOREIGN
from node.rl.lessons import credits
from node.saving import Saving
from node.time_account import CHECKPOINT, OWN_GROUPS, PAUSED, WEIGHTS, WORKING, Times
from node.way_back import Reload, go_back
from swarm.errors import CheckpointError
from swarm.net.standing import Standing
from swarm.types import GroupId, PeerId, PolicyVersion, Task

T = TypeVar("T")
log = logging.getLogger(__name__)

HOLDER = "divergence"
POISONED = Standing.TRUSTED
"""Trust that a peer loses for a step that its groups made impossible. Who has none to lose is struck for it."""


class Learning:
    def __init__(
        self,
        *,
        policy: Policy,
        trainer: PolicyTrainer,
        progress: Progress,
        foreign: ForeignConfig,
        store: CheckpointStore,
        config: CheckpointConfig,
        running: Holds,
        metrics_log: MetricsLog,
        credit: Callable[[PeerId, float], None],
        appetite: Appetite,
        outstanding: Outstanding,
        reload: Reload | None = None,
        times: Times | None = None,
    ) -> None:
        """`credit` is told what a step was worth to whom (`node.rl.lessons.credits`). Without `reload`, the node goes
        back to no earlier checkpoint, whatever happens."""
        self._trainer = trainer
        self._progress = progress
        self._foreign = foreign
        self._store = store
        self._running = running
        self._metrics_log = metrics_log
        self._credit = credit
        self.appetite = appetite
        self._reload = reload
        self._trainer.lr_scale = progress.divergence.lr_scale
        self.times = times or Times()
        self._failed = False  # in a step; what it left behind is still there
        self._drawn: dict[GroupId, Experience] = {}
        self._last_step = asyncio.get_running_loop().time()
        self._between_steps = asyncio.Lock()
        self._stepped = asyncio.Event()
        self._saving = Saving(
            policy=policy,
            trainer=trainer,
            progress=progress,
            store=store,
            config=config,
            outstanding=outstanding,
            between_steps=self._between_steps,
            drawn=lambda: [*self._drawn.values()],
            recover=self.recover,
        )

    @property
    def steps(self) -> int:
        """Made in the node's life."""
        return self._progress.steps

    async def reached(self, step: int) -> None:
        """Returns once the node has made `step` steps."""
        while self.steps < step:
            await self._stepped.wait()

    def at_rest(self) -> AbstractAsyncContextManager[None]:
        """No step is under way inside."""
        return self._between_steps

    @property
    def version(self) -> PolicyVersion:
        return self._trainer.version

    @property
    def busy_s(self) -> float:
        """Seconds that the step under way has taken so far."""
        return self._trainer.busy_s

    async def recover(self) -> bool:
        """After a step that failed, back to the last good state: what is in memory, or the newest checkpoint where the
        step had begun to change the weights. Whether they are others now. Raises PolicyError, CheckpointError."""
        if not self._failed:
            return False
        async with self._between_steps:
            self._drawn.clear()  # the batch may be why
            if await self._trainer.settle():
                self._failed = False
                return False
            if self._reload is None:
                raise CheckpointError("a step failed half-way, and there is no way back")
            newest = await asyncio.to_thread(self._store.latest)
            to = newest.step if newest else None
            step = await go_back(to, self._store, self._trainer, self._progress, self._reload)
            self._failed = False
        text = f"step {self.steps + 1} failed half-way: the policy is that of {_place(step)} again"
        log.error(text)
        self._progress.ledger.warn(text)
        return True

    async def draw(self, pool: RolloutPool, version: PolicyVersion | None = None) -> list[Experience]:
        """A batch to train the policy's `version` on, by default the present one. Waits while the node is paused, and
        for own groups."""
        with self.times.learner.during(PAUSED):
            await self._running.wait()
        version = self._trainer.version if version is None else version
        rule = FOREIGN[type(self._foreign)]

        def value(task: Task) -> float:
            return self._progress.tracker.value(task, version)

        def demand(experience: Experience, present: float) -> float:
            return rule.demand(experience, present, self._foreign)

        clock, since = asyncio.get_running_loop().time, self._progress.line_began
        with self.times.learner.during(OWN_GROUPS):
            batch = await pool.draw(version, clock, value, demand, since=since)
        self._drawn.update((experience.id, experience) for experience in batch)
        return batch

    async def prepare(self, batch: Sequence[Experience], version: PolicyVersion) -> PreparedStep:
        """As far as a step of the policy's `version` can be made without the weights."""
        return await self._trainer.prepare(batch, version)

    async def waiting_for(self, drawn: Awaitable[T]) -> T:
        """What comes of `drawn`, which another draws for the learner; also while the node is paused."""
        with self.times.learner.during(OWN_GROUPS):
            result = await drawn
        with self.times.learner.during(PAUSED):
            await self._running.wait()
        return result

    async def step(self, batch: Sequence[Experience], prepared: PreparedStep | None = None) -> None:
        """One step, and what it leaves behind. Cancelled, it first comes to its end."""
        with self.times.learner.during(WORKING):
            await to_its_end(self._step(batch, prepared))

    async def _step(self, batch: Sequence[Experience], prepared: PreparedStep | None) -> None:
        async with self._between_steps:
            self._failed = True
            report = await self._trainer.step(batch, prepared)
            self._failed = False
            self._progress.steps += 1
            self._progress.version = report.version
            for experience in batch:
                self._drawn.pop(experience.id, None)
        ledger = self._progress.ledger
        ledger.counters["foreign_tokens"] += sum(e.group.num_sampled for e in batch if not e.own)
        ledger.counters["foreign_groups_trained"] += sum(not e.own for e in batch)
        ledger.counters["gated_rollouts"] += sum(lesson.gated for lesson in report.lessons.values())
        for origin, use in credits(batch, report.lessons).items():
            self._credit(origin, use)
        if report.metrics.get("skipped_update"):
            ledger.warn("a step changed nothing: its gradient was not finite (skipped_update in metrics.jsonl)")
            self._blame(report.culprits)
        self._record(report, batch)
        if self._reload and (order := self._progress.divergence.observe(self.steps, report.metrics)):
            await self._go_back(order, self._reload)
        self._trainer.lr_scale = self._progress.divergence.lr_scale
        stepped, self._stepped = self._stepped, asyncio.Event()
        stepped.set()

    def _blame(self, culprits: Collection[PeerId]) -> None:
        """Whose groups made a step come to nothing."""
        self._progress.ledger.counters["poisoned_steps"] += bool(culprits)
        for origin in culprits:
            self._credit(origin, -POISONED)
            log.warning("groups of %s have no finite gradient: the step was dropped for it", origin)

    async def _go_back(self, order: GoBack, reload: Reload) -> None:
        ledger, given_up = self._progress.ledger, self.steps
        async with self._between_steps:
            step = await go_back(order.to, self._store, self._trainer, self._progress, reload)
            self._drawn.clear()  # what was drawn ahead is of the line that is given up
        text = f"step {given_up}: {order.why}: the policy is that of {_place(step)} again"
        text += f", with {order.lr_scale:.3g} of the rate"
        log.error(text)
        ledger.warn(text)
        ledger.counters["rollbacks"] += 1
        if order.stop:
            why = f"learning has stopped: after {order.rollbacks} roll-backs it came apart once more ({order.why})"
            log.error(why)
            self._running.hold(HOLDER, f"{why}: look at learner.lr and the tasks, then resume")
        try:
            await self.checkpoint()  # or a restart would go on from what was given up
            await asyncio.to_thread(self._store.drop, range(0 if step is None else step + 1, given_up))
        except CheckpointError as error:
            ledger.warn(f"after going back: {error}")

    def resume(self) -> None:
        """An operator has had a look and wants a node that stopped learning to go on."""
        self._progress.divergence.forgive()
        self._running.release(HOLDER)

    def _record(self, report: StepReport, batch: Sequence[Experience]) -> None:
        now = asyncio.get_running_loop().time()
        seconds = max(now - self._last_step, 1e-3)  # the loop's clock has milliseconds
        rate = sum(e.group.num_sampled for e in batch if e.own) / seconds
        self._last_step = now
        self.appetite.stepped(batch, seconds)
        metrics = report.metrics | {"tokens_per_s": rate} | self._progress.ledger.take_refused_share()
        report = replace(report, metrics=metrics | self._alarmed(metrics) | self._progress.divergence.gauges())
        self._progress.ledger.step(self.steps, report)
        names = " ".join(alarm.name for alarm in self._progress.ledger.alarms)
        record = {"step": self.steps, "version": report.version, "time": time.time(), "alarms": names}
        self._metrics_log.append(record | report.metrics | self.times.metrics())
        if log.isEnabledFor(logging.DEBUG):  # a batch has a hundred names
            log.debug("step", extra=ids(step=self.steps, version=report.version, groups=[e.id for e in batch]))

    def _alarmed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Looks for alarms, says which begin and end, and returns what their averages add to the step's metrics."""
        alarms, ledger = self._progress.alarms, self._progress.ledger
        began, ended = alarms.observe(self.steps, metrics)
        for alarm in began:
            log.warning("alarm %s: %s", alarm.name, alarm.text, extra=ids(step=self.steps))
        for alarm in ended:
            log.info("alarm %s is over; it began at step %d", alarm.name, alarm.since_step, extra=ids(step=self.steps))
        ledger.counters["alarms"] += len(began)
        ledger.alarms = alarms.active
        return alarms.gauges()

    async def weights(self) -> Weights:
        with self.times.learner.during(WEIGHTS):
            return await self._trainer.weights()

    async def copy_if_due(self) -> None:
        """Takes the copy for the next checkpoint, which `save` writes. Training waits for the copy of the tensors, and
        never for the disk."""
        if self._saving.due:
            with self.times.learner.during(CHECKPOINT):
                await self._saving.copy()

    async def save(self) -> None:
        """Writes the next copy down, waiting for one. Cancelled, it first comes to its end."""
        await self._saving.write_next()

    async def checkpoint(self) -> Path:
        """Writes everything down now and returns where; what a failed step left behind is mended before. Raises
        PolicyError, CheckpointError. Cancelled, it first comes to its end."""
        return await self._saving.write_now()


def _place(step: int | None) -> str:
    return f"the checkpoint of step {step}" if step is not None else "where it began"
