"""The learner's side of a node: what it draws, what a step leaves behind, and how all of it is kept.

Everything that a node has learned is here: weights, optimiser, tracker, sampler, counters. A checkpoint is a copy that
is taken between two steps, so that its parts belong together, and is written while the next steps are made.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from node.algorithms import ForeignConfig
from node.appetite import Appetite
from node.backlog import Outstanding
from node.checkpoint import CheckpointStore, Score
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
from node.rl.average import Average
from node.rl.foreign import FOREIGN
from node.rl.lessons import credits
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
REWARD_STEPS = 50
"""That the moving average of own rewards goes back, by which checkpoints are compared before anything is evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Copy:
    """All that goes into a checkpoint, as it was between two steps."""

    step: int
    weights: Mapping[str, torch.Tensor]
    tensors: Mapping[str, torch.Tensor]
    state: Callable[[], dict[str, Any]]
    """Makes the JSON of then, in any thread."""
    score: Score | None
    spare: Collection[int]
    """Steps whose checkpoints stay."""


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
        self._policy = policy
        self._trainer = trainer
        self._progress = progress
        self._foreign = foreign
        self._store = store
        self._config = config
        self._running = running
        self._metrics_log = metrics_log
        self._credit = credit
        self.appetite = appetite
        self._reload = reload
        self._trainer.lr_scale = progress.divergence.lr_scale
        self.times = times or Times()
        self._failed = False  # in a step; what it left behind is still there
        self._outstanding = outstanding
        self._drawn: dict[GroupId, Experience] = {}
        self._reward = Average()
        self._last_step = asyncio.get_running_loop().time()
        self._between_steps = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._copied_at = progress.steps
        self._unsaved: _Copy | None = None
        self._copied = asyncio.Event()
        self._stepped = asyncio.Event()

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
        if "own_reward" in report.metrics:
            self._reward = self._reward.observe(report.metrics["own_reward"], 1.0 - 1.0 / REWARD_STEPS)
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
        never for the disk: as long as the one before is being written, none is due."""
        due = self.steps - self._copied_at >= self._config.every_steps
        if due and self._unsaved is None and not self._saving.locked():
            with self.times.learner.during(CHECKPOINT):
                self._unsaved = await to_its_end(self._copy())
            self._copied.set()

    async def save(self) -> None:
        """Writes the next copy down, waiting for one. A disk that fails costs that checkpoint and a warning: the
        earlier ones are still there, and the next is tried when it is due. Cancelled, it first comes to its end."""
        await self._copied.wait()
        self._copied.clear()
        async with self._saving:
            copy, self._unsaved = self._unsaved, None
            if copy is None:  # `checkpoint` has written a newer one
                return
            try:
                await to_its_end(self._write(copy))
            except CheckpointError as error:
                log.warning("%s; the node goes on from memory", error)
                self._progress.ledger.warn(str(error))
                self._progress.ledger.counters["failed_checkpoints"] += 1

    async def checkpoint(self) -> Path:
        """Writes everything down now and returns where. Raises CheckpointError. Cancelled, it first comes to its end:
        the next one would sweep away what this one is still writing."""
        async with self._saving:
            self._unsaved = None
            return await to_its_end(self._copy_and_write())

    async def _copy_and_write(self) -> Path:
        await self.recover()
        return await self._write(await self._copy())

    async def _copy(self) -> _Copy:
        async with self._between_steps:
            weights, tensors = await self._trainer.snapshot()
            # Nothing is awaited from here on: what is known, drawn and waiting is of one moment.
            state, outstanding = self._progress.freeze(), self._outstanding.state([*self._drawn.values()])
            self._copied_at = self.steps
            return _Copy(
                step=self.steps,
                weights=weights,
                tensors=tensors | self._progress.tensors(),
                state=lambda: state() | outstanding,
                score=self._score(),
                spare=self._progress.divergence.kept,
            )

    async def _write(self, copy: _Copy) -> Path:
        await self._outstanding.sync()

        def write(directory: Path) -> None:
            self._policy.save(directory, copy.weights)

        save = self._store.save
        path = await asyncio.to_thread(
            lambda: save(copy.step, write, copy.tensors, copy.state(), copy.score, copy.spare)
        )
        self._progress.divergence.saved(copy.step)
        self._progress.ledger.counters["checkpoints"] += 1
        log.info("checkpoint %s", path, extra=ids(step=copy.step))
        return path

    def _score(self) -> Score | None:
        ledger = self._progress.ledger
        if ledger.held_out:
            mean = math.fsum(ledger.held_out.values()) / len(ledger.held_out)
            return Score(metric="held_out", value=mean, step=ledger.held_out_step)
        if self._reward.weight:
            return Score(metric="own_reward", value=self._reward.mean, step=self.steps)
        return None


def _place(step: int | None) -> str:
    return f"the checkpoint of step {step}" if step is not None else "where it began"
