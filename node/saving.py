"""How what a node has learned is kept: a checkpoint is a copy that is taken between two steps, so that its parts belong
together, and is written while the next steps are made."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from node.backlog import Outstanding
from node.checkpoint import CheckpointStore, Score
from node.config import CheckpointConfig
from node.engine.policy import Policy
from node.engine.trainer import PolicyTrainer
from node.engine.uninterrupted import to_its_end
from node.experience import Experience
from node.logs import ids
from node.progress import Progress
from swarm.errors import CheckpointError

log = logging.getLogger(__name__)


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


class Saving:
    def __init__(
        self,
        *,
        policy: Policy,
        trainer: PolicyTrainer,
        progress: Progress,
        store: CheckpointStore,
        config: CheckpointConfig,
        outstanding: Outstanding,
        between_steps: asyncio.Lock,
        drawn: Callable[[], Sequence[Experience]],
        recover: Callable[[], Awaitable[object]],
    ) -> None:
        """No step is under way while somebody holds `between_steps`. `drawn`: what was taken out of the pool and has
        not been trained on. `recover` mends what a failed step left behind."""
        self._policy = policy
        self._trainer = trainer
        self._progress = progress
        self._store = store
        self._config = config
        self._outstanding = outstanding
        self._between_steps = between_steps
        self._drawn = drawn
        self._recover = recover
        self._writing = asyncio.Lock()
        self._copied_at = progress.steps
        self._unwritten: _Copy | None = None
        self._copied = asyncio.Event()

    @property
    def due(self) -> bool:
        """Whether it is time for a copy. As long as the one before is being written, it is not."""
        steps = self._progress.steps - self._copied_at
        return steps >= self._config.every_steps and self._unwritten is None and not self._writing.locked()

    async def copy(self) -> None:
        """Takes the copy that `write_next` writes. Cancelled, it first comes to its end."""
        self._unwritten = await to_its_end(self._copy())
        self._copied.set()

    async def write_next(self) -> None:
        """Writes the next copy down, waiting for one. A disk that fails costs that checkpoint and a warning: the
        earlier ones are still there, and the next is tried when it is due. Cancelled, it first comes to its end."""
        await self._copied.wait()
        self._copied.clear()
        async with self._writing:
            copy, self._unwritten = self._unwritten, None
            if copy is None:  # `write_now` has written a newer one
                return
            try:
                await to_its_end(self._write(copy))
            except CheckpointError as error:
                log.warning("%s; the node goes on from memory", error)
                self._progress.ledger.warn(str(error))
                self._progress.ledger.counters["failed_checkpoints"] += 1

    async def write_now(self) -> Path:
        """Recovers, copies, writes and returns where. Raises PolicyError, CheckpointError. Cancelled, it first comes
        to its end: the next one would sweep away what this one is still writing."""
        async with self._writing:
            self._unwritten = None
            return await to_its_end(self._copy_and_write())

    async def _copy_and_write(self) -> Path:
        await self._recover()
        return await self._write(await self._copy())

    async def _copy(self) -> _Copy:
        async with self._between_steps:
            weights, tensors = await self._trainer.snapshot()
            # Nothing is awaited from here on: what is known, drawn and waiting is of one moment.
            progress, step = self._progress, self._progress.steps
            state, outstanding = progress.freeze(), self._outstanding.state(self._drawn())
            self._copied_at = step
            return _Copy(
                step=step,
                weights=weights,
                tensors=tensors | progress.tensors(),
                state=lambda: state() | outstanding,
                score=self._score(),
                spare=progress.divergence.kept,
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
        if ledger.own_reward.weight:
            return Score(metric="own_reward", value=ledger.own_reward.mean, step=self._progress.steps)
        return None
