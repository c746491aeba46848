"""The learner: one batch of experience, one or more optimiser updates, one new policy version. In a thread of its own.

Weights are float32 whatever the policy's dtype is (bfloat16 is autocast around the forward pass): at a learning rate of
1e-6 most updates of a bfloat16 weight would round to nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch

from node.algorithms import (
    AdvantageConfig,
    ForeignConfig,
    ForeignGateConfig,
    GuidanceConfig,
    LearnerConfig,
    ObjectiveConfig,
)
from node.engine.base import StepReport, Weights
from node.engine.logprobs import action_logprobs
from node.engine.packing import packing_for
from node.engine.policy import Policy
from node.experience import Experience
from node.rl.batch import MicroBatch, pack
from node.rl.gate import ForeignGate
from node.rl.learning_rate import learning_rate, reincarnates
from node.rl.lessons import Lesson, lessons
from node.rl.loss import batch_limit, finish_metrics, micro_batch_loss
from node.rl.objective import LIMITS
from node.rl.samples import RowPlan, build_rows
from swarm.types import PeerId, PolicyVersion

T = TypeVar("T")


class PolicyTrainer:
    """Trains `policy.model`, which belongs to it from now on. An asynchronous context manager.

    `sampling_dtype` is what the generator samples with. `probe`, int32 [P], is a text whose log-probabilities go along
    with the weights, so that a generator can tell whether it has the same ones.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        advantage: AdvantageConfig,
        objective: ObjectiveConfig,
        foreign: ForeignConfig,
        foreign_gate: ForeignGateConfig,
        guidance: GuidanceConfig,
        learner: LearnerConfig,
        temperature: float,
        autocast: bool = False,
        sampling_dtype: torch.dtype = torch.float32,
        probe: np.ndarray | None = None,
        version: PolicyVersion,
    ) -> None:
        self._model = policy.model.eval()  # dropout would be a difference to the sampler that no update made
        self._codec = policy.codec
        self._advantage = advantage
        self._objective = objective
        self._foreign = foreign
        self._gate = ForeignGate(foreign_gate)
        self._guidance = guidance
        self._learner = learner
        self._packing = packing_for(policy.model) if learner.packing else None
        self._temperature = temperature
        self._autocast = autocast
        self._sampling_dtype = sampling_dtype
        self._probe = None if probe is None else torch.from_numpy(probe.astype(np.int64)).to(policy.model.device)
        self._version = version
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trainer")
        self._trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        self.parameter_names = list(self._trained)
        self.optimizer = torch.optim.AdamW(
            list(self._trained.values()),
            lr=learner.lr,
            betas=learner.betas,
            weight_decay=learner.weight_decay,
        )

    @property
    def version(self) -> PolicyVersion:
        return self._version

    async def __aenter__(self) -> PolicyTrainer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)  # a step cannot be cut short; it is seconds at most

    async def step(self, batch: Sequence[Experience]) -> StepReport:
        return await self.call(lambda: self._step(batch))

    async def weights(self) -> Weights:
        """As they are to be sampled with."""
        return await self.call(self._weights)

    async def call(self, function: Callable[[], T]) -> T:
        """Runs `function` between two steps, in the trainer's thread; for whoever must see the weights at rest."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def tensors(self) -> dict[str, torch.Tensor]:
        """A float32 copy of what is trained, by parameter name (tied ones once). Only inside `call`."""
        return self._copied(torch.float32)

    def _copied(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().to(dtype, copy=True) for name, parameter in self._trained.items()}

    def _weights(self) -> Weights:
        probed = None if self._probe is None else self._probed(self._probe)
        return Weights(version=self._version, tensors=self._copied(self._sampling_dtype), probe=probed)

    def _probed(self, probe: torch.Tensor) -> np.ndarray:
        """float32 [P - 1]: log-probability of `probe` [P] after its first token, at temperature 1."""
        positions = torch.arange(len(probe), device=probe.device)
        with torch.no_grad(), self._precision():
            logprobs = action_logprobs(
                self._model,
                probe[None],
                torch.ones_like(probe[None]),
                positions[None],
                positions[:-1],
                probe[1:],
                temperature=1.0,
                chunk=self._learner.logit_chunk,
            )
        return logprobs.cpu().numpy()

    def _step(self, batch: Sequence[Experience]) -> StepReport:
        started = time.perf_counter()
        plan = build_rows(
            batch,
            self._codec,
            self._advantage,
            self._foreign,
            self._guidance,
            self._learner,
            self._version,
            max_length=getattr(self._model.config, "max_position_embeddings", None),
        )
        metrics, taught = dict(plan.metrics), dict[PeerId, Lesson]()
        if plan.rows:
            updated, taught = self._update(plan)
            metrics |= updated
        seconds = time.perf_counter() - started
        metrics |= {"step_s": seconds, "learner_tokens_per_s": plan.denominators.tokens / seconds}
        return StepReport(version=self._version, metrics=metrics, lessons=taught)

    def _update(self, plan: RowPlan) -> tuple[dict[str, float], dict[PeerId, Lesson]]:
        packed = pack(plan.rows, self._learner.tokens_per_micro_batch, self._packing)
        micro_batches = [micro.to(self._model.device) for micro in packed]
        # log pi_prox of each micro-batch: the policy before the first update, known from that update's own forward pass
        proximal: list[torch.Tensor | None] = [None] * len(micro_batches)
        own_staleness = [row.staleness for row in plan.rows if row.own]
        staleness = sum(own_staleness) / max(1, len(own_staleness))
        metrics: dict[str, float] = {}
        updated = False
        if reincarnates(self._learner, self._version):
            self.optimizer.state.clear()
        self._gate.open()
        for _ in range(self._learner.updates_per_batch):
            sums = []
            limit = self._limit(micro_batches)
            for i, micro in enumerate(micro_batches):
                logp = self._logprobs(micro)
                if proximal[i] is None:
                    micro = micro_batches[i] = self._gate.apply(micro, logp)
                loss, parts = micro_batch_loss(
                    micro, logp, proximal[i], self._objective, self._foreign, self._learner, plan.denominators, limit
                )
                loss.backward()
                sums.append(parts)
                if proximal[i] is None:
                    proximal[i] = logp.detach()
            norm = float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._learner.grad_clip))
            metrics = finish_metrics(sums)
            lr = learning_rate(self._learner, self._version, staleness, metrics.get("sequence_ess_share", 1.0))
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            metrics |= {"grad_norm": norm, "lr": lr}
            if math.isfinite(norm):
                self.optimizer.step()
                updated = True
            self.optimizer.zero_grad(set_to_none=True)  # between two steps their memory is the engine's
        self._version = PolicyVersion(self._version + updated)
        taught = lessons(micro_batches, plan.metrics["advantage_scale"]) if updated else {}
        return metrics | self._gate.close() | {"skipped_update": float(not updated)}, taught

    def _limit(self, micro_batches: Sequence[MicroBatch]) -> float | None:
        """`batch_limit` of all micro-batches. A batch of one finds it out by itself, which spares a forward pass."""
        if type(self._objective) not in LIMITS or len(micro_batches) == 1:
            return None
        with torch.no_grad():
            return batch_limit(micro_batches, [self._logprobs(micro) for micro in micro_batches], self._objective)

    def _logprobs(self, micro: MicroBatch) -> torch.Tensor:
        with self._precision():
            return action_logprobs(
                self._model,
                micro.input_ids,
                micro.attention_mask,
                micro.position_ids,
                micro.action_index,
                micro.targets,
                self._temperature,
                self._learner.logit_chunk,
            )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._model.device.type, torch.bfloat16, enabled=self._autocast)
