"""The learner: a batch of experience, one or more optimiser updates, one new policy version. In a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
import torch

from node.algorithms import AdvantageConfig, GuidanceConfig
from node.engine.base import StepReport, Weights
from node.engine.optimizer_state import optimizer_tensors, restore_optimizer
from node.engine.thread import WorkThread
from node.engine.updates import Rules, Share, Updated, Updates
from node.experience import Experience
from node.rl.gate import GateMemory
from node.rl.lessons import Lesson
from node.rl.samples import RowPlan, build_rows
from node.text_codec import TextCodec
from swarm.types import PeerId, PolicyVersion

T = TypeVar("T")

#: Makes the updates of a batch whose rows are packed: on the policy of that version, with that threshold of the gate.
Step = Callable[[PolicyVersion, float], Updated]


class Learner(Protocol):
    """What computes: a device of this process, or ranks in processes of their own. Everything blocks, and belongs to
    the trainer's thread."""

    def open(self) -> None:
        """Once, before anything else. Raises EngineError."""
        ...

    def prepare(self, share: Share) -> Step:
        """Packs the rows. Reads no weights: the one thing that may be done in another thread, beside an update."""
        ...

    def probed(self, probe: np.ndarray) -> np.ndarray:
        """float32 [P - 1]: log-probability of `probe` (int32 [P]) after its first token, at temperature 1."""
        ...

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """A copy of what is trained, by parameter name (tied ones once); of one device, there."""
        ...

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What is trained, in float32, and the optimiser's state (`node.engine.optimizer_state`): copies in RAM."""
        ...

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts the optimiser's state of a `snapshot` back. Raises CheckpointError."""
        ...

    def settle(self) -> bool:
        """After a step that failed: drops what it left behind. False if it had begun to change the weights, which are
        then of no version until they are replaced."""
        ...

    def replace(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over what `tensors` gave at another time."""
        ...

    def close(self) -> None: ...


class OneDevice:
    """The one that the model of `updates` is on."""

    def __init__(self, updates: Updates) -> None:
        self.updates = updates

    def open(self) -> None: ...

    def prepare(self, share: Share) -> Step:
        packed = self.updates.packed(share)
        return lambda version, gate: self.updates.update(share, packed, version, gate)

    def probed(self, probe: np.ndarray) -> np.ndarray:
        return self.updates.probed(probe)

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {name: p.detach().to(dtype, copy=True) for name, p in self.updates.masters.items()}

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        moments = optimizer_tensors(self.updates.optimizer, list(self.updates.trained))
        return (
            {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in self.updates.masters.items()},
            {name: tensor.to("cpu", copy=True) for name, tensor in moments.items()},
        )

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        restore_optimizer(self.updates.optimizer, list(self.updates.trained), tensors)

    def settle(self) -> bool:
        return self.updates.settle()

    def replace(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.updates.replace(tensors)

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedStep:
    """A batch as far as it can be had without the weights."""

    plan: RowPlan
    step: Step | None
    """None where there is nothing to learn."""
    seconds: float
    """That it took."""


class PolicyTrainer:
    """Trains what `learner` holds, which belongs to it from now on. An asynchronous context manager.

    `sampling_dtype` is what the generator samples with. `probe`, int32 [P], is a text whose log-probabilities go along
    with the weights, so that a generator can tell whether it has the same ones. `max_length`: tokens that the model has
    positions for, None where it has no limit. `gate`: what earlier steps have seen, where there were some.
    """

    def __init__(
        self,
        learner: Learner,
        codec: TextCodec,
        rules: Rules,
        *,
        advantage: AdvantageConfig,
        guidance: GuidanceConfig,
        max_length: int | None = None,
        sampling_dtype: torch.dtype = torch.float32,
        probe: np.ndarray | None = None,
        version: PolicyVersion,
        gate: GateMemory | None = None,
    ) -> None:
        self._learner = learner
        self._codec = codec
        self._rules = rules
        self._advantage = advantage
        self._guidance = guidance
        self._gate = gate or GateMemory(rules.foreign_gate)
        self._max_length = max_length
        self._sampling_dtype = sampling_dtype
        self._probe = probe
        self._version = version
        self._thread = WorkThread("trainer")
        self.lr_scale = 1.0
        """What the configured learning rate is multiplied by."""

    @property
    def version(self) -> PolicyVersion:
        return self._version

    async def __aenter__(self) -> PolicyTrainer:
        try:
            await self.call(self._learner.open)
        except BaseException:
            await self._thread.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.call(self._learner.close)
        finally:
            await self._thread.close()

    async def prepare(self, batch: Sequence[Experience], version: PolicyVersion) -> PreparedStep:
        """Of a step that `version` will be the policy's before; in a thread of its own, beside the step under way."""
        return await asyncio.to_thread(self._prepare, batch, version)

    async def step(self, batch: Sequence[Experience], prepared: PreparedStep | None = None) -> StepReport:
        """`prepared`: what `prepare` made of the batch, where it has been asked."""
        return await self.call(lambda: self._step(batch, prepared))

    async def weights(self) -> Weights:
        """As they are to be sampled with."""
        return await self.call(self._weights)

    async def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What is trained, in float32, by parameter name (tied ones once); and the optimiser's state. Copies in RAM: a
        GPU that the plan fills has no room for them."""
        return await self.call(self._learner.snapshot)

    async def restore(self, optimizer: Mapping[str, torch.Tensor]) -> None:
        """Puts the optimiser's state of a `snapshot` back. Raises CheckpointError when it is another policy's."""
        await self.call(lambda: self._learner.restore(optimizer))

    @property
    def busy_s(self) -> float:
        """Seconds that the step, or whatever else is under way, has taken so far."""
        return self._thread.busy_s

    async def settle(self) -> bool:
        """As `Learner.settle`."""
        return await self.call(self._learner.settle)

    async def replace(self, weights: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor]) -> None:
        """Goes on with what a `snapshot` gave at another time, as another version: a generator takes no older one.
        Raises CheckpointError when it is another policy's."""

        def replace() -> None:
            self._learner.restore(optimizer)
            self._learner.replace(weights)
            self._version = PolicyVersion(self._version + 1)

        await self.call(replace)

    async def call(self, function: Callable[[], T]) -> T:
        """Runs `function` between two steps, in the trainer's thread; for whoever must see the weights at rest."""
        return await self._thread.call(function)

    def _weights(self) -> Weights:
        probed = None if self._probe is None else self._learner.probed(self._probe)
        return Weights(version=self._version, tensors=self._learner.tensors(self._sampling_dtype), probe=probed)

    def _prepare(self, batch: Sequence[Experience], version: PolicyVersion) -> PreparedStep:
        started = time.perf_counter()
        plan = build_rows(
            batch,
            self._codec,
            self._advantage,
            self._rules.foreign,
            self._guidance,
            self._rules.learner,
            version,
            self._max_length,
        )
        step = self._learner.prepare(Share.of(plan, self.lr_scale)) if plan.rows else None
        return PreparedStep(plan=plan, step=step, seconds=time.perf_counter() - started)

    def _step(self, batch: Sequence[Experience], prepared: PreparedStep | None) -> StepReport:
        started = time.perf_counter()
        prepared = prepared or self._prepare(batch, self._version)
        metrics = prepared.plan.metrics | {"prepare_s": prepared.seconds}
        taught: Mapping[PeerId, Lesson] = {}
        culprits = frozenset[PeerId]()
        if prepared.step is not None:
            updated = prepared.step(self._version, self._gate.threshold())
            self._gate.observe(updated.surprises)
            self._version = PolicyVersion(self._version + updated.changed)
            metrics |= updated.metrics
            taught, culprits = updated.lessons, updated.culprits
        seconds = time.perf_counter() - started
        metrics |= {"step_s": seconds, "learner_tokens_per_s": prepared.plan.denominators.tokens / seconds}
        return StepReport(version=self._version, metrics=metrics, lessons=taught, culprits=culprits)
