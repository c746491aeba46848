"""The optimiser updates that one batch is worth, on the tensors themselves: by one device, or by each rank of several.

Weights are float32 whatever the policy's dtype is (bfloat16 is autocast around the forward pass): at a learning rate of
1e-6 most updates of a bfloat16 weight would round to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from node.algorithms import ForeignConfig, ForeignGateConfig, LearnerConfig, ObjectiveConfig
from node.engine.logprobs import TokenLogprobs
from node.engine.packing import packing_for
from node.engine.team import Alone, Team
from node.rl.batch import MicroBatch, pack
from node.rl.gate import ForeignGate
from node.rl.learning_rate import learning_rate, reincarnates
from node.rl.lessons import Lesson, lessons
from node.rl.loss import LossSums, batch_limit, finish_metrics, micro_batch_loss
from node.rl.objective import LIMITS, Denominators
from node.rl.samples import RowPlan, TokenRow
from swarm.types import PeerId, PolicyVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a step follows, as the config has it."""

    objective: ObjectiveConfig
    foreign: ForeignConfig
    foreign_gate: ForeignGateConfig
    learner: LearnerConfig
    temperature: float
    """That is sampled at."""
    autocast: bool
    """Whether the forward pass computes in bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """The rows of a batch that are one device's to compute, and what it has to know of the whole batch."""

    rows: tuple[TokenRow, ...]
    denominators: Denominators
    staleness: float
    """Mean of own rows, in policy versions."""
    scale: float
    """What advantages were divided by."""

    @classmethod
    def of(cls, plan: RowPlan) -> Share:
        """All of it."""
        staleness = [row.staleness for row in plan.rows if row.own]
        return cls(
            rows=plan.rows,
            denominators=plan.denominators,
            staleness=sum(staleness) / max(1, len(staleness)),
            scale=plan.metrics["advantage_scale"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    changed: bool
    """False where the gradient was not finite."""
    metrics: dict[str, float]
    """Of the whole batch."""
    lessons: Mapping[PeerId, Lesson]
    """What this device's rows taught; empty where nothing changed."""


class Updates:
    """Trains `model`. Not safe for threads: one step, or one look at the weights, at a time."""

    def __init__(self, model: PreTrainedModel, rules: Rules, team: Team | None = None) -> None:
        self.model = model.eval()  # dropout would be a difference to the sampler that no update made
        self.rules = rules
        self._team = team or Alone()
        self._logprobs = TokenLogprobs(model)
        self._packing = packing_for(model) if rules.learner.packing else None
        self._gate = ForeignGate(rules.foreign_gate)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        """By name; tied ones once."""
        learner = rules.learner
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()), lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay
        )

    def packed(self, share: Share) -> list[MicroBatch]:
        """On the CPU; reads no weights, so that it may be done while a step is under way."""
        return pack(share.rows, self.rules.learner.tokens_per_micro_batch, self._packing)

    def update(self, share: Share, packed: Sequence[MicroBatch], version: PolicyVersion) -> Updated:
        """`packed`: what `packed` made of the share. `version`: of the policy, before the step."""
        rules, learner = self.rules, self.rules.learner
        micro_batches = [micro.to(self.model.device) for micro in packed]
        # log pi_prox of each micro-batch: the policy before the first update, known from that update's own forward pass
        proximal: list[torch.Tensor | None] = [None] * len(micro_batches)
        metrics: dict[str, float] = {}
        changed = False
        if reincarnates(learner, version):
            self.optimizer.state.clear()
        self._gate.open()
        for _ in range(learner.updates_per_batch):
            sums = []
            limit = self._limit(micro_batches)
            for i, micro in enumerate(micro_batches):
                logp = self._of(micro)
                if proximal[i] is None:
                    micro = micro_batches[i] = self._gate.apply(micro, logp)
                loss, parts = micro_batch_loss(
                    micro, logp, proximal[i], rules.objective, rules.foreign, learner, share.denominators, limit
                )
                loss.backward()
                sums.append(parts)
                if proximal[i] is None:
                    proximal[i] = logp.detach()
            norm = self._clipped_norm()
            metrics = finish_metrics(self._everybodys(sums))
            lr = learning_rate(learner, version, share.staleness, metrics.get("sequence_ess_share", 1.0))
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            metrics |= {"grad_norm": norm, "lr": lr}
            if math.isfinite(norm):
                self.optimizer.step()
                changed = True
            self.optimizer.zero_grad(set_to_none=True)  # between two steps their memory is the engine's
        metrics |= self._gate.close(self._team.all) | {"skipped_update": float(not changed)}
        taught = lessons(micro_batches, share.scale) if changed else {}
        return Updated(changed=changed, metrics=metrics, lessons=taught)

    def probed(self, probe: np.ndarray) -> np.ndarray:
        """float32 [P - 1]: log-probability of `probe` (int32 [P]) after its first token, at temperature 1."""
        ids = torch.from_numpy(probe.astype(np.int64)).to(self.model.device)
        positions = torch.arange(len(ids), device=ids.device)
        with torch.no_grad(), self._precision():
            logprobs = self._logprobs(
                ids[None],
                torch.ones_like(ids[None]),
                positions[None],
                positions[:-1],
                ids[1:],
                temperature=1.0,
                chunk=self.rules.learner.logit_chunk,
            )
        return logprobs.cpu().numpy()

    def _limit(self, micro_batches: Sequence[MicroBatch]) -> float | None:
        """`batch_limit` of all micro-batches. A batch of one finds it out by itself, which spares a forward pass."""
        if type(self.rules.objective) not in LIMITS or (isinstance(self._team, Alone) and len(micro_batches) == 1):
            return None
        with torch.no_grad():
            logps = [self._of(micro) for micro in micro_batches]
        return batch_limit(micro_batches, logps, self.rules.objective, self._team.all)

    def _of(self, micro: MicroBatch) -> torch.Tensor:
        """float32 [N]."""
        with self._precision():
            return self._logprobs(
                micro.input_ids,
                micro.attention_mask,
                micro.position_ids,
                micro.action_index,
                micro.targets,
                self.rules.temperature,
                self.rules.learner.logit_chunk,
            )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.rules.autocast)

    def _clipped_norm(self) -> float:
        """Of the whole gradient, before it is clipped."""
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.rules.learner.grad_clip, norm)
        return float(norm)

    def _everybodys(self, sums: Sequence[LossSums]) -> list[LossSums]:
        return [LossSums.of_array(values) for values in self._team.all(LossSums.total(sums).to_array())]
