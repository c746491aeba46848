"""One micro-batch's loss: the objective on our own rows, the foreign rule on peers', and what to report of both.

Sums, not means, are taken per micro-batch, so that `finish_metrics` gives the same numbers however rows were packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from node.algorithms import ForeignConfig, LearnerConfig, ObjectiveConfig, RecOneside
from node.rl.batch import MicroBatch
from node.rl.correction import (
    effective_sample_share,
    log_ratio,
    opsm_keep,
    segment_sum,
    sequence_ratio,
    token_chunk_log_ratios,
)
from node.rl.foreign import FOREIGN, PeerRatios
from node.rl.objective import LIMITS, OBJECTIVES, Denominators, TokenBatch, TokenLoss

#: Of s, where the foreign rule has no opinion and it is only reported.
BYTES_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossSums:
    """Sums and counts over one micro-batch; those of several add up."""

    loss: float
    own_tokens: int
    own_dropped_tokens: int
    """Without a gradient from their advantage: masked by the objective, or in a vetoed rollout."""
    own_rows: int
    vetoed_rows: int
    """By OPSM."""
    entropy: float
    """Of own actions' distributions."""
    weight: float
    weight_squared: float
    """Of rho."""
    foreign_tokens: int
    foreign_dropped_tokens: int
    foreign_rows: int
    foreign_ratio: float
    """Of s."""
    abs_log_rho: np.ndarray
    """float32 [own tokens], kept whole because a quantile does not add up."""
    log_weight: np.ndarray
    """float64 [own rows], log rho of the whole rollout; kept whole because its exponential may not fit a number."""

    @classmethod
    def total(cls, sums: Sequence[LossSums]) -> LossSums:
        """Of several, or of none."""
        numbers = {name: sum(getattr(each, name) for each in sums) for name in NUMBERS}
        return cls(
            **numbers,
            abs_log_rho=np.concatenate([np.zeros(0, dtype=np.float32), *(each.abs_log_rho for each in sums)]),
            log_weight=np.concatenate([np.zeros(0), *(each.log_weight for each in sums)]),
        )

    def to_array(self) -> np.ndarray:
        """float64, all of it: for another process."""
        return np.concatenate([[getattr(self, name) for name in NUMBERS], self.abs_log_rho, self.log_weight])

    @classmethod
    def of_array(cls, values: np.ndarray) -> LossSums:
        """What `to_array` made."""
        numbers = dict(zip(NUMBERS, values[: len(NUMBERS)].tolist(), strict=True))
        arrays = values[len(NUMBERS) :]
        tokens = int(numbers["own_tokens"])
        return cls(**numbers, abs_log_rho=arrays[:tokens].astype(np.float32), log_weight=arrays[tokens:])


#: Fields of LossSums that are one number.
NUMBERS = tuple(f.name for f in fields(LossSums) if f.name not in ("abs_log_rho", "log_weight"))


def batch_limit(
    micros: Sequence[MicroBatch],
    logps: Sequence[Tensor],
    objective: ObjectiveConfig,
    everybodys: Callable[[np.ndarray], list[np.ndarray]] = lambda values: [values],
) -> float | None:
    """What the objective has to know of the whole batch (`LIMITS`); None where it wants nothing.

    `logps`: log pi [N] of each micro-batch, before the update that the loss is for. `everybodys`: from float64 [n] of
    this device's micro-batches to that of every device's, where they share a batch.
    """
    rule = LIMITS.get(type(objective))
    if rule is None:
        return None
    own = [_select(micro, logp, logp, micro.own[micro.sample]) for micro, logp in zip(micros, logps, strict=True)]
    pairs = [torch.stack([log_ratio(part.logp, part.behaviour), part.advantage]).double().cpu() for part in own]
    mine = torch.cat([torch.zeros(2, 0, dtype=torch.float64), *pairs], dim=1).numpy()
    whole = np.concatenate([values.reshape(2, -1) for values in everybodys(mine.flatten())], axis=1)
    log_rho, advantage = torch.from_numpy(whole).to(logps[0].dtype if logps else torch.float32)
    return rule(log_rho, advantage, objective)


def micro_batch_loss(
    micro: MicroBatch,
    logp: Tensor,
    proximal: Tensor | None,
    objective: ObjectiveConfig,
    foreign: ForeignConfig,
    learner: LearnerConfig,
    denominators: Denominators,
    limit: float | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, LossSums]:
    """Scalar loss (gradient through `logp`, float32 [N]) and what to report.

    `proximal` [N] is log pi at the start of the step; None in the step's first update, where it is `logp` itself.
    `limit` is `batch_limit`'s. `entropy` [N] is reported only; without it, -log pi is taken for an estimate of it. The
    losses of a batch's micro-batches add up to the batch's.
    """
    anchor = logp.detach() if proximal is None else proximal.detach()
    own_tokens = micro.own[micro.sample]
    own, peers = (_select(micro, logp, anchor, mask) for mask in (own_tokens, ~own_tokens))
    keep = opsm_keep(own.logp, own.behaviour, micro.advantage, own.sample, micro.lengths, learner.opsm_delta)
    own_loss = OBJECTIVES[type(objective)](replace(own, limit=limit), objective, denominators)
    own_loss = TokenLoss(per_token=own_loss.per_token * keep[own.sample], kept=own_loss.kept & keep[own.sample])
    ratios = _foreign_ratios(micro, logp, foreign)
    foreign_loss = FOREIGN[type(foreign)].token_loss(peers, ratios, foreign, denominators)
    loss = own_loss.per_token.sum() + foreign_loss.per_token.sum()
    own_entropy = (-logp if entropy is None else entropy).detach()[own_tokens]
    return loss, _sums(micro, loss, own, own_loss, own_entropy, keep, foreign_loss, ratios.sequence)


def finish_metrics(sums: Sequence[LossSums]) -> dict[str, float]:
    """Metrics of a batch from those of its micro-batches. A key that has no tokens to speak of is missing."""
    total = LossSums.total(sums)
    metrics = {
        "loss": float(total.loss),
        "own_tokens": float(total.own_tokens),
        "foreign_tokens": float(total.foreign_tokens),
    }
    if total.own_tokens:
        abs_log_rho, log_weight = total.abs_log_rho.astype(np.float64), total.log_weight
        weight = np.exp(log_weight - log_weight.max())  # in units of the largest: the share does not see the unit
        metrics |= {
            "log_rho_mean": float(abs_log_rho.mean()),
            "log_rho_p99": float(np.quantile(abs_log_rho, 0.99)),
            "masked_share": total.own_dropped_tokens / total.own_tokens,
            "opsm_share": total.vetoed_rows / total.own_rows,
            "ess_share": effective_sample_share(total.weight, total.weight_squared, total.own_tokens),
            "sequence_ess_share": effective_sample_share(
                float(weight.sum()), float(np.square(weight).sum()), total.own_rows
            ),
            "entropy": total.entropy / total.own_tokens,
        }
    if total.foreign_tokens:
        metrics |= {
            "foreign_ratio": total.foreign_ratio / total.foreign_rows,
            "foreign_masked_share": total.foreign_dropped_tokens / total.foreign_tokens,
        }
    return metrics


def _select(micro: MicroBatch, logp: Tensor, anchor: Tensor, mask: Tensor) -> TokenBatch:
    sample = micro.sample[mask]
    return TokenBatch(
        logp=logp[mask],
        behaviour=micro.behaviour[mask],
        proximal=anchor[mask],
        advantage=micro.advantage[sample] + micro.guidance[mask],
        sample=sample,
        lengths=micro.lengths,
    )


def _foreign_ratios(micro: MicroBatch, logp: Tensor, foreign: ForeignConfig) -> PeerRatios:
    """s of each row, 1 for own rows; the chunks' ratios of peers' tokens. One transfer from the device, then numpy."""
    sequence, chunks = np.ones(len(micro.rows), dtype=np.float32), [np.zeros(0)]
    if not bool(micro.own.all()):
        bytes_per_token = foreign.bytes_per_token if isinstance(foreign, RecOneside) else BYTES_PER_TOKEN
        by_row = np.split(logp.detach().cpu().numpy(), np.cumsum(micro.lengths.cpu().numpy())[:-1])
        for number, (row, row_logp) in enumerate(zip(micro.rows, by_row, strict=True)):
            if row.peer is not None:
                by_chunk, by_token = token_chunk_log_ratios(
                    row_logp, row.byte_lengths, row.peer.logprobs, row.peer.byte_lengths
                )
                sequence[number] = sequence_ratio(float(by_chunk.sum()), int(row.byte_lengths.sum()), bytes_per_token)
                chunks.append(by_token)
    return PeerRatios(
        sequence=torch.from_numpy(sequence).to(logp.device),
        chunk=torch.from_numpy(np.concatenate(chunks).astype(np.float32)).to(logp.device),
    )


def _sums(
    micro: MicroBatch,
    loss: Tensor,
    own: TokenBatch,
    own_loss: TokenLoss,
    own_entropy: Tensor,
    keep: Tensor,
    foreign_loss: TokenLoss,
    ratios: Tensor,
) -> LossSums:
    log_rho = log_ratio(own.logp.detach(), own.behaviour)
    rho = log_rho.double().exp()
    foreign_rows = ~micro.own
    # One transfer from the device for all of them.
    numbers = torch.stack(
        [
            loss.detach().double(),
            (~own_loss.kept).sum(),
            micro.own.sum(),
            (~keep).sum(),
            own_entropy.double().sum(),
            rho.sum(),
            rho.square().sum(),
            (~foreign_loss.kept).sum(),
            foreign_rows.sum(),
            ratios.double()[foreign_rows].sum(),
        ]
    ).tolist()
    return LossSums(
        loss=numbers[0],
        own_tokens=len(own.logp),
        own_dropped_tokens=int(numbers[1]),
        own_rows=int(numbers[2]),
        vetoed_rows=int(numbers[3]),
        entropy=numbers[4],
        weight=numbers[5],
        weight_squared=numbers[6],
        foreign_tokens=len(foreign_loss.kept),
        foreign_dropped_tokens=int(numbers[7]),
        foreign_rows=int(numbers[8]),
        foreign_ratio=numbers[9],
        abs_log_rho=log_rho.abs().cpu().numpy(),
        log_weight=segment_sum(log_rho.double(), own.sample, len(micro.lengths))[micro.own].cpu().numpy(),
    )
