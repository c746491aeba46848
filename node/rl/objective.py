"""Losses for one's own rollouts. One function per objective, one registry.

N = action tokens, S = rollouts of a micro-batch. Notation: pi the policy being optimised, mu the sampler's reported
probabilities (`behaviour`), rho = pi/mu; prox the policy at the start of the step (`proximal`), q = pi/prox; sg(.)
stops the gradient. Every loss is divided by the *global* batch's counts, so that micro-batches add up to the whole.

On-policy (mu = prox = pi) each has the gradient of REINFORCE, -A grad log pi.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from node.algorithms import Cispo, DecoupledPpo, DppoTv, Gspo, PpoClip
from node.rl.correction import capped_weight, log_ratio, one_sided_keep, segment_mean, tv_keep
from node.table import Table


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch:
    """Action tokens of whole rollouts: all of a rollout's are here, or none."""

    logp: Tensor
    """float32 [N], log pi; carries the gradient."""
    behaviour: Tensor
    """float32 [N], log mu."""
    proximal: Tensor
    """float32 [N], log prox, detached."""
    advantage: Tensor
    """float32 [N], the same for every token of a rollout."""
    sample: Tensor
    """int64 [N], which rollout a token is of, 0..S-1."""
    lengths: Tensor
    """int64 [S], action tokens per rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """Counts of the global batch: every drawn rollout, own and foreign, before anything is filtered or masked."""

    tokens: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLoss:
    per_token: Tensor
    """float32 [N], already divided: the sum over all micro-batches is the loss."""
    kept: Tensor
    """bool [N]: where the advantage still has a gradient."""


def dppo_tv(batch: TokenBatch, config: DppoTv, denominators: Denominators) -> TokenLoss:
    """-m sg(min(rho, cap)) A log pi + k (log rho)^2, token mean.

    m is DPPO's total-variation mask. The squared log-ratio (prime-rl's default loss) is on masked tokens too: it
    pulls back those that went too far.
    """
    log_rho = log_ratio(batch.logp, batch.behaviour)
    kept = tv_keep(batch.logp, batch.behaviour, batch.advantage, config.delta)
    gain = kept * capped_weight(log_rho, config.cap) * batch.advantage * batch.logp
    loss = config.squared_log_ratio * log_rho.square() - gain
    return TokenLoss(per_token=loss / denominators.tokens, kept=kept)


def ppo_clip(batch: TokenBatch, config: PpoClip, denominators: Denominators) -> TokenLoss:
    """-min(rho A, clip(rho) A), token mean: PPO anchored at the sampler itself (no proximal policy, so no second
    weight)."""
    log_rho = log_ratio(batch.logp, batch.behaviour)
    loss, kept = clipped_surrogate(log_rho, batch.advantage, config.low, config.high)
    return TokenLoss(per_token=loss / denominators.tokens, kept=kept)


def decoupled_ppo(batch: TokenBatch, config: DecoupledPpo, denominators: Denominators) -> TokenLoss:
    """-sg(min(prox/mu, cap)) min(q A, clip(q) A), token mean: AReaL (arXiv 2505.24298)."""
    weight = capped_weight(log_ratio(batch.proximal, batch.behaviour), config.cap)
    log_q = log_ratio(batch.logp, batch.proximal)
    loss, kept = clipped_surrogate(log_q, batch.advantage, config.low, config.high)
    return TokenLoss(per_token=weight * loss / denominators.tokens, kept=kept)


def cispo(batch: TokenBatch, config: Cispo, denominators: Denominators) -> TokenLoss:
    """-sg(min(rho, cap)) A log pi, token mean: MiniMax-M1's CISPO (arXiv 2506.13585), which keeps every token."""
    weight = capped_weight(log_ratio(batch.logp, batch.behaviour), config.cap)
    loss = -weight * batch.advantage * batch.logp
    return TokenLoss(per_token=loss / denominators.tokens, kept=torch.ones_like(batch.sample, dtype=torch.bool))


def gspo(batch: TokenBatch, config: Gspo, denominators: Denominators) -> TokenLoss:
    """-min(s A, clip(s) A) with s = exp(mean_t log q), mean over rollouts: GSPO (arXiv 2507.18071).

    A rollout's loss is spread evenly over its tokens.
    """
    log_s = segment_mean(log_ratio(batch.logp, batch.proximal), batch.sample, batch.lengths)
    advantage = segment_mean(batch.advantage, batch.sample, batch.lengths)
    loss, kept = clipped_surrogate(log_s, advantage, config.low, config.high)
    per_token = (loss / batch.lengths)[batch.sample] / denominators.samples
    return TokenLoss(per_token=per_token, kept=kept[batch.sample])


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's -min(u A, clip(u, 1-low, 1+high) A), and where it has a gradient."""
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return loss, one_sided_keep(log_ratio, advantage, low, high)


Objective = Callable[[TokenBatch, Any, Denominators], TokenLoss]

#: By the configuration that selects it.
OBJECTIVES: Mapping[type[Table], Objective] = {
    DppoTv: dppo_tv,
    PpoClip: ppo_clip,
    DecoupledPpo: decoupled_ppo,
    Cispo: cispo,
    Gspo: gspo,
}
