"""Losses for one's own rollouts. One function per objective, one registry.

N = action tokens, S = rollouts of a micro-batch. Notation: pi the policy being optimised, mu the sampler's reported
probabilities (`behaviour`), rho = pi/mu; prox the policy at the start of the step (`proximal`), q = pi/prox; sg(.)
stops the gradient. Every loss is divided by the *global* batch's counts, so that micro-batches add up to the whole.

On-policy (mu = prox = pi) each has the gradient of REINFORCE, -A grad log pi.

An objective that has to see the whole batch before any token's loss says so in `LIMITS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from node.algorithms import Cispo, DecoupledPpo, DppoTv, Gspo, IcePop, M2po, PpoClip, Reinforce, Remix, SeqTis, Vespo
from node.rl.correction import (
    capped_weight,
    log_ratio,
    one_sided_keep,
    outward,
    second_moment_limit,
    segment_mean,
    segment_sum,
    tv_keep,
)
from node.table import Table

#: log W of a whole rollout is kept in here before its weight is made of it (VESPO).
LOG_WEIGHT_RANGE = (math.log(1e-8), 20.0)


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
    """float32 [N], the rollout's and what guidance adds: of the same sign for every token of a rollout, or 0."""
    sample: Tensor
    """int64 [N], which rollout a token is of, 0..S-1."""
    lengths: Tensor
    """int64 [S], action tokens per rollout."""
    limit: float | None = None
    """What the objective's entry in `LIMITS` says of the whole batch; None where these tokens are the whole batch."""


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
    """-sg(min(prox/mu, cap)) min(q A, clip(q) A), token mean: AReaL (arXiv 2505.24298). Token-level truncated
    importance sampling (TIS) is this with cap 2."""
    weight = capped_weight(log_ratio(batch.proximal, batch.behaviour), config.cap)
    log_q = log_ratio(batch.logp, batch.proximal)
    loss, kept = clipped_surrogate(log_q, batch.advantage, config.low, config.high)
    return TokenLoss(per_token=weight * loss / denominators.tokens, kept=kept)


def cispo(batch: TokenBatch, config: Cispo, denominators: Denominators) -> TokenLoss:
    """-sg(min(rho, cap)) A log pi, token mean: MiniMax-M1's CISPO (arXiv 2506.13585), which keeps every token."""
    return _weighted_reinforce(batch, capped_weight(log_ratio(batch.logp, batch.behaviour), config.cap), denominators)


def gspo(batch: TokenBatch, config: Gspo, denominators: Denominators) -> TokenLoss:
    """-min(s A, clip(s) A) with s = exp(mean_t log q), mean over rollouts: GSPO (arXiv 2507.18071).

    A rollout's loss is spread evenly over its tokens.
    """
    log_s = segment_mean(log_ratio(batch.logp, batch.proximal), batch.sample, batch.lengths)
    advantage = segment_mean(batch.advantage, batch.sample, batch.lengths)
    loss, kept = clipped_surrogate(log_s, advantage, config.low, config.high)
    per_token = (loss / batch.lengths)[batch.sample] / denominators.samples
    return TokenLoss(per_token=per_token, kept=kept[batch.sample])


def reinforce(batch: TokenBatch, config: Reinforce, denominators: Denominators) -> TokenLoss:
    """-A log pi, token mean: stale data trained on as if it were fresh."""
    return _weighted_reinforce(batch, torch.ones_like(batch.advantage), denominators)


def icepop(batch: TokenBatch, config: IcePop, denominators: Denominators) -> TokenLoss:
    """-sg(w) min(q A, clip(q) A) where least <= w <= most, else 0, with w = prox/mu, token mean: IcePop (arXiv
    2510.18855). A weight that is out of bounds is a token on which sampler and trainer disagree: no cap mends it."""
    weight = log_ratio(batch.proximal, batch.behaviour).exp()
    trusted = (weight >= config.least) & (weight <= config.most)
    log_q = log_ratio(batch.logp, batch.proximal)
    loss, kept = clipped_surrogate(log_q, batch.advantage, config.low, config.high)
    return TokenLoss(per_token=trusted * weight * loss / denominators.tokens, kept=kept & trusted)


def m2po(batch: TokenBatch, config: M2po, denominators: Denominators) -> TokenLoss:
    """-m rho A, token mean: M2PO (arXiv 2510.01161, the paper's mask; its code clips at a solved threshold instead).

    m drops the outward tokens with the largest (log rho)^2 until the mean over those that stay is within the budget.
    """
    log_rho = log_ratio(batch.logp, batch.behaviour)
    limit = m2po_limit(log_rho, batch.advantage, config) if batch.limit is None else batch.limit
    kept = ~(outward(log_rho, batch.advantage) & (log_rho.detach().double().square() >= limit))
    return TokenLoss(per_token=-(kept * log_rho.exp() * batch.advantage) / denominators.tokens, kept=kept)


def m2po_limit(log_rho: Tensor, advantage: Tensor, config: M2po) -> float:
    return second_moment_limit(log_rho, advantage, config.budget)


def vespo(batch: TokenBatch, config: Vespo, denominators: Denominators) -> TokenLoss:
    """-sg(phi(W)) A log pi, token mean: VESPO (arXiv 2602.10693).

    W = exp(sum_t log rho) of the rollout and phi(W) = W^k exp(lambda (1 - W)): 1 on-policy, largest at k / lambda (0.67
    for positives, 1.5 for negatives), and 0 far away on either side.
    """
    log_w = _log_weight(batch).clamp(*LOG_WEIGHT_RANGE)
    positive, negative = (k * log_w + decay * (1 - log_w.exp()) for k, decay in (config.positive, config.negative))
    phi = torch.where(batch.advantage >= 0, positive, negative).exp()
    return _weighted_reinforce(batch, phi, denominators)


def seq_tis(batch: TokenBatch, config: SeqTis, denominators: Denominators) -> TokenLoss:
    """-sg(min(W, cap)) A log pi, token mean, with W = exp(sum_t log rho) of the rollout: VCPO (arXiv 2602.17616)."""
    return _weighted_reinforce(batch, capped_weight(_log_weight(batch), config.cap), denominators)


def remix(batch: TokenBatch, config: Remix, denominators: Denominators) -> TokenLoss:
    """-min(rho A, clip(rho, c - clip, c + clip) A) with c = prox/mu, token mean: ReMix (arXiv 2507.06892).

    The clip is around the proximal policy's ratio and not around 1: the trust region is where we are, not where the
    sampler was.
    """
    ratio = log_ratio(batch.logp, batch.behaviour).exp()
    centre = log_ratio(batch.proximal, batch.behaviour).exp()
    low, high = centre - config.clip, centre + config.clip
    gain = torch.minimum(ratio * batch.advantage, ratio.clamp(low, high) * batch.advantage)
    left = ((batch.advantage > 0) & (ratio > high)) | ((batch.advantage < 0) & (ratio < low))
    return TokenLoss(per_token=-gain / denominators.tokens, kept=~left)


def _log_weight(batch: TokenBatch) -> Tensor:
    """[N]: sum_t log rho of each token's rollout, detached."""
    log_rho = log_ratio(batch.logp, batch.behaviour).detach()
    return segment_sum(log_rho, batch.sample, len(batch.lengths))[batch.sample]


def _weighted_reinforce(batch: TokenBatch, weight: Tensor, denominators: Denominators) -> TokenLoss:
    """-w A log pi, token mean, on every token; `weight` [N] has no gradient."""
    loss = -weight * batch.advantage * batch.logp
    return TokenLoss(per_token=loss / denominators.tokens, kept=torch.ones_like(batch.sample, dtype=torch.bool))


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
    Reinforce: reinforce,
    IcePop: icepop,
    M2po: m2po,
    Vespo: vespo,
    SeqTis: seq_tis,
    Remix: remix,
}

Limit = Callable[[Tensor, Tensor, Any], float]

#: (log rho [N], advantage [N], config) of all own tokens of the batch -> what each micro-batch's loss is then told.
LIMITS: Mapping[type[Table], Limit] = {M2po: m2po_limit}
