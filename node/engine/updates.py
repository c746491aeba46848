"""The optimiser updates that one batch is worth, on the tensors themselves: by one device, or by each rank of several.

Weights are float32 whatever the policy's dtype is (bfloat16 is autocast around the forward pass): at a learning rate of
1e-6 most updates of a bfloat16 weight would round to nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from node.algorithms import ForeignConfig, ForeignGateConfig, LearnerConfig, ObjectiveConfig
from node.engine.budget import TokenBudget, out_of_memory
from node.engine.head import Head, Scores
from node.engine.heap import give_back_large_blocks
from node.engine.layers import Recomputed, compile_layers, deterministic
from node.engine.logprobs import TokenScores
from node.engine.optimizer import make_optimizer, masters_of, set_learning_rate
from node.engine.packing import share_rows
from node.engine.passes import Passes
from node.engine.team import Alone, Team
from node.rl.batch import MicroBatch, pack
from node.rl.gate import ForeignGate
from node.rl.learning_rate import learning_rate, reincarnates
from node.rl.lessons import Lesson, lessons
from node.rl.loss import LossSums, batch_limit, finish_metrics, micro_batch_loss
from node.rl.objective import LIMITS, Denominators
from node.rl.samples import RowPlan, TokenRow
from swarm.errors import PolicyError
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
    lr_scale: float = 1.0
    """What the learning rate is multiplied by (node/divergence.py)."""

    @classmethod
    def of(cls, plan: RowPlan, lr_scale: float = 1.0) -> Share:
        """All of it."""
        staleness = [row.staleness for row in plan.rows if row.own]
        return cls(
            rows=plan.rows,
            denominators=plan.denominators,
            staleness=sum(staleness) / max(1, len(staleness)),
            scale=plan.metrics["advantage_scale"],
            lr_scale=lr_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    changed: bool
    """False where the loss or its gradient was not finite."""
    metrics: dict[str, float]
    """Of the whole batch."""
    lessons: Mapping[PeerId, Lesson]
    """What this device's rows taught; empty where nothing changed."""
    culprits: frozenset[PeerId] = frozenset()
    """Where nothing changed: the peers whose rows alone are why, as far as that was found out."""
    surprises: tuple[float, ...] = ()
    """What the gate of later steps has to know of this one."""


class Updates:
    """Trains `model`. Not safe for threads: one step, or one look at the weights, at a time."""

    def __init__(
        self, model: PreTrainedModel, rules: Rules, team: Team | None = None, scores: TokenScores | None = None
    ) -> None:
        """`scores`: the module around `model` that is called, where it has been sharded."""
        self.model = model.eval()  # dropout would be a difference to the sampler that no update made
        self.rules = rules
        self._team = team or Alone()
        self._scores = scores or TokenScores(model)
        self._shares_rows = rules.learner.packing and share_rows(self._scores)
        self._budget = TokenBudget(rules.learner.tokens_per_micro_batch)
        self._gate = ForeignGate(rules.foreign_gate, math.inf)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        """By name; tied ones once."""
        self._halfway = False  # in an update that has begun to change the weights
        learner = rules.learner
        self._recomputed = Recomputed(model) if learner.recompute_activations else None
        if learner.recompute_activations and model.device.type == "cpu":
            give_back_large_blocks()  # who asks for it has more time than memory
        if learner.compile:
            compile_layers(model)
        _check_alone(learner, self._team)
        # Ranks have float32 parts of what is trained anyway (node/engine/ranks/sharded.py).
        self._masters = masters_of(model, self.trained, learner) if isinstance(self._team, Alone) else None
        self.optimizer = make_optimizer(self.masters.values(), learner)

    @property
    def masters(self) -> dict[str, torch.nn.Parameter]:
        """The weights that the optimiser works on: those that are trained, or float32 copies of them."""
        return self.trained if self._masters is None else self._masters.parameters

    def packed(self, share: Share) -> list[MicroBatch]:
        """On the CPU; reads no weights, so that it may be done while a step is under way."""
        return pack(share.rows, self._budget.tokens, share=self._shares_rows)

    def update(
        self, share: Share, packed: Sequence[MicroBatch], version: PolicyVersion, gate: float = math.inf
    ) -> Updated:
        """`packed`: what `packed` made of the share. `version`: of the policy, before the step. `gate`: what the gate's
        threshold is in it."""
        learner = self.rules.learner
        self._gate = ForeignGate(self.rules.foreign_gate, gate)
        if reincarnates(learner, version):
            self.optimizer.state.clear()
        batch = Passes(packed, self.model.device)
        metrics, changed = dict[str, float](), False
        for _ in range(learner.updates_per_batch):
            with deterministic(learner.deterministic):
                sums = self.gradient(share, batch)
            norm = self._clipped_norm()
            metrics = finish_metrics(self._everybodys(sums))
            ess_share = metrics.get("sequence_ess_share", 1.0)
            lr = learning_rate(learner, version, share.staleness, ess_share) * share.lr_scale
            set_learning_rate(self.optimizer, lr)
            metrics |= {"grad_norm": norm, "lr": lr}
            if math.isfinite(norm) and math.isfinite(metrics["loss"]):
                self._halfway = True
                self._optimize()
                changed = True
            self._forget()
        self._halfway = False
        gated = self._gate.close(self._team.all)
        metrics |= gated.metrics | {"skipped_update": float(not changed)}
        metrics["tokens_per_micro_batch"] = float(self._budget.tokens)
        taught = lessons(batch.micro_batches, share.scale) if changed else {}
        culprits = frozenset() if changed else self._culprits(share)
        return Updated(changed=changed, metrics=metrics, lessons=taught, culprits=culprits, surprises=gated.surprises)

    def replace(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes weights over, by parameter name."""
        with torch.no_grad():
            for name, parameter in self.masters.items():
                parameter.copy_(tensors[name])
        if self._masters is not None:
            self._masters.give_weights()
        self._halfway = False

    def _culprits(self, share: Share) -> frozenset[PeerId]:
        """Of a step that came to nothing. Costs about another one. Where several devices share a step, nobody is
        accused: they would have to compute each peer's rows together."""
        theirs = defaultdict[PeerId, list[TokenRow]](list)
        for row in share.rows:
            if not row.own:
                theirs[row.origin].append(row)
        own = [row for row in share.rows if row.own]
        if not isinstance(self._team, Alone) or not theirs or not self._is_finite(share, own):
            return frozenset()  # the fault is ours, and we would find it in everybody
        return frozenset(origin for origin, rows in theirs.items() if not self._is_finite(share, rows))

    def _is_finite(self, share: Share, rows: Sequence[TokenRow]) -> bool:
        """Whether the loss of these rows of the share, and its gradient, is."""
        if not rows:
            return True
        part = replace(share, rows=tuple(rows))
        sums = self.gradient(part, Passes(self.packed(part), self.model.device))
        norm = self._clipped_norm()
        self._forget()
        return math.isfinite(norm) and all(math.isfinite(each.loss) for each in sums)

    def _optimize(self) -> None:
        if self._masters is None:
            self.optimizer.step()
            return
        self._masters.take_gradients()
        self.optimizer.step()
        self._masters.give_weights()

    def settle(self) -> bool:
        """Drops a failed update's gradients. False if it had begun to change the weights."""
        self._forget()
        return not self._halfway

    def probed(self, probe: np.ndarray) -> np.ndarray:
        """float32 [P - 1]: log-probability of `probe` (int32 [P]) after its first token, at temperature 1."""
        ids = torch.from_numpy(probe.astype(np.int64)).to(self.model.device)
        positions = torch.arange(len(ids), device=ids.device)
        with torch.no_grad(), self._precision():
            scores = self._scores(
                ids[None], torch.ones_like(ids[None]), positions[None], positions[:-1], ids[1:], self._head(1.0)
            )
        return scores.logp.cpu().numpy()

    def gradient(self, share: Share, batch: Passes) -> list[LossSums]:
        """Adds the batch's gradient to the parameters. Where memory is short: again, in smaller micro-batches."""
        while True:
            try:
                return self._passed(share, batch)
            except RuntimeError as error:
                # Several devices compute in step: one that begins again would leave the others waiting. They are
                # started anew instead, with half of the tokens (node/engine/ranks/several.py).
                if not out_of_memory(error) or not isinstance(self._team, Alone):
                    raise
                if not self._budget.halve(max(map(len, share.rows))):
                    raise
            self._forget()
            batch.cut_anew(self.packed(share))

    def _passed(self, share: Share, batch: Passes) -> list[LossSums]:
        rules, sums = self.rules, list[LossSums]()
        if batch.first:
            self._gate.open()
        passes = max(int(number[0]) for number in self._team.all(np.array([len(batch.micro_batches)])))
        limit = self._limit(batch.micro_batches, passes)
        for i, micro in enumerate(batch.micro_batches):
            scores = self._of(micro)
            proximal = batch.proximal(micro)
            if batch.first:
                micro = batch.micro_batches[i] = self._gate.apply(micro, scores.logp)
            loss, parts = micro_batch_loss(
                micro,
                scores.logp,
                proximal,
                rules.objective,
                rules.foreign,
                rules.learner,
                share.denominators,
                limit,
                scores.entropy,
            )
            loss.backward()
            sums.append(parts)
            if batch.first and rules.learner.updates_per_batch > 1:
                batch.remember(micro, scores.logp.detach())
        for _ in range(passes - len(batch.micro_batches)):
            self._idle()
        batch.first = False
        return sums

    def _forget(self) -> None:
        """Between two steps their memory is the engine's."""
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self.trained.values():
            parameter.grad = None

    def _limit(self, micro_batches: Sequence[MicroBatch], passes: int) -> float | None:
        """`batch_limit` of all micro-batches. A batch of one finds it out by itself, which spares a forward pass."""
        if type(self.rules.objective) not in LIMITS or (isinstance(self._team, Alone) and passes == 1):
            return None
        with torch.no_grad():
            logps = [self._of(micro).logp for micro in micro_batches]
            for _ in range(passes - len(micro_batches)):
                self._idle()
        return batch_limit(micro_batches, logps, self.rules.objective, self._team.all)

    def _of(self, micro: MicroBatch) -> Scores:
        kept = nullcontext() if self._recomputed is None else self._recomputed.forward()
        with self._precision(), kept:
            return self._scores(
                micro.input_ids,
                micro.attention_mask,
                micro.position_ids,
                micro.action_index,
                micro.targets,
                self._head(self.rules.temperature),
                micro.segments,
            )

    def _idle(self) -> None:
        """A pass of nothing, where other ranks have a micro-batch more: what they do together needs all of them."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.model.device)
        with self._precision():
            scores = self._scores(ids, torch.ones_like(ids), ids, ids[0, :1], ids[0, :1], self._head(1.0))
        if scores.logp.requires_grad:
            (0.0 * scores.logp.sum()).backward()

    def _head(self, temperature: float) -> Head:
        learner = self.rules.learner
        return Head(temperature=temperature, chunk=learner.logit_chunk, fp32=learner.fp32_head)

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


def _check_alone(learner: LearnerConfig, team: Team) -> None:
    """Raises PolicyError for what has not been made for several devices."""
    alone = {"optimizer": "adamw", "offload_optimizer": False}
    for key, only in alone.items():
        if not isinstance(team, Alone) and (value := getattr(learner, key)) != only:
            raise PolicyError(f"learner.{key} = {value!r}: a learner on several devices has {only!r} only")
