"""What is learned from peers' groups: which are wanted, what they are worth to us, and their loss. One rule per
configuration, one registry.

A peer's rollouts come from another policy, often another model and tokenizer, and its log-probabilities are its own
word. So no importance weight is built on them: ratios are against our own policy at the start of the step, and the
peer's log-probabilities can only turn a rollout down, never up.

G = rollouts of a group, N = action tokens, S = rollouts of a micro-batch; `objective` has the notation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from node.algorithms import ChunkAligned, ReceiverBaseline, RecOneside, SapoPlain
from node.experience import Experience
from node.rl.advantage import group_normalised
from node.rl.correction import log_ratio, one_sided_keep
from node.rl.objective import Denominators, TokenBatch, TokenLoss, clipped_surrogate
from node.table import Table

MAX_ADVANTAGE = 5.0

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeerRatios:
    """How likely rollouts are to us relative to what their authors say."""

    sequence: Tensor
    """float32 [S], s (`correction.sequence_ratio`)."""
    chunk: Tensor
    """float32 [N], log(pi / mu) of the chunk that a token is in (`correction.token_chunk_log_ratios`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRule(Generic[C]):
    demand: Callable[[Experience, float, C], float]
    """(group, our value of its task, config) -> weight >= 0 with which the pool draws it; 0 is never drawn."""
    advantages: Callable[[np.ndarray, float, float, float, C], np.ndarray]
    """(rewards [G], our value v, peer's mean reward Vp, scale, config) -> float64 [G]. `scale` is what our own rewards
    were divided by (`Advantages.scale`)."""
    token_loss: Callable[[TokenBatch, PeerRatios | None, C, Denominators], TokenLoss]
    """(batch, ratios, config, denominators) -> loss. `batch.behaviour` is not looked at. Without ratios, because nobody
    computed them, no rule masks or attenuates by them."""
    distinct: bool = False
    """Whether the same text twice in a group counts once."""


# receiver_baseline ----------------------------------------------------------------------------------------------------


def receiver_demand(experience: Experience, value: float, config: ReceiverBaseline | ChunkAligned) -> float:
    """(1 - v)^demand where the peer did verifiably better than our baseline, else 0: we draw what we fail at and a peer
    does not."""
    succeeded = experience.best > min(value, experience.mean)
    return (1.0 - value) ** config.demand if succeeded else 0.0


def baseline_advantages(rewards: np.ndarray, value: float, peer_mean: float, scale: float) -> np.ndarray:
    """(r - min(v, Vp)) / scale, clamped to +-5.

    A baseline at or below the behaviour's value guarantees improvement off-policy, one above it can collapse (AsymRE,
    arXiv 2506.20520). An expert's all-correct group is worth 1 - v, where a group-relative advantage would be 0; an
    all-wrong group is worth nothing.
    """
    advantages = (rewards.astype(np.float64) - min(value, peer_mean)) / scale
    return np.clip(advantages, -MAX_ADVANTAGE, MAX_ADVANTAGE)


def receiver_advantages(
    rewards: np.ndarray, value: float, peer_mean: float, scale: float, config: ReceiverBaseline | ChunkAligned
) -> np.ndarray:
    """As above, with failures weighed by `config.negatives`: they are what makes off-policy data dangerous (TOPR)."""
    advantages = baseline_advantages(rewards, value, peer_mean, scale)
    return np.where(advantages < 0, config.negatives * advantages, advantages)


def receiver_loss(
    batch: TokenBatch, ratios: PeerRatios | None, config: ReceiverBaseline, denominators: Denominators
) -> TokenLoss:
    """-m A log pi, token mean, with m REC-OneSide-NoIS's mask around our own snapshot (arXiv 2509.24203)."""
    return _one_sided_loss(batch, torch.ones_like(batch.advantage), config.low, config.high, denominators)


# chunk_aligned --------------------------------------------------------------------------------------------------------


def chunk_loss(
    batch: TokenBatch, ratios: PeerRatios | None, config: ChunkAligned, denominators: Denominators
) -> TokenLoss:
    """-g m A log pi, token mean; m as above, g = 1[chunk_low <= rho_c <= chunk_high] of the chunk c that a token is in.

    IcePop's double-sided mask, with the ratio of the bytes between two boundaries that both tokenisations have in the
    place of a token's (after ALM's alignment, arXiv 2503.20083). What the peer says of itself can only mask.
    """
    if ratios is None:
        gate = torch.ones_like(batch.advantage)
    else:
        low = math.log(config.chunk_low) if config.chunk_low else -math.inf
        gate = ((ratios.chunk >= low) & (ratios.chunk <= math.log(config.chunk_high))).to(batch.advantage)
    return _one_sided_loss(batch, gate, config.low, config.high, denominators)


# rec_oneside ----------------------------------------------------------------------------------------------------------


def rec_demand(experience: Experience, value: float, config: RecOneside) -> float:
    """1 where any rollout has an advantage, else 0."""
    baseline = min(value, experience.mean)
    return float(experience.best != baseline or experience.worst != baseline)


def rec_advantages(rewards: np.ndarray, value: float, peer_mean: float, scale: float, config: RecOneside) -> np.ndarray:
    return baseline_advantages(rewards, value, peer_mean, scale)


def rec_loss(batch: TokenBatch, ratios: PeerRatios | None, config: RecOneside, denominators: Denominators) -> TokenLoss:
    """-c m A log pi, token mean; c = min(s, 1)^2 (after HACPO, arXiv 2603.02604), 0 below the floors. No s: c = 1."""
    if ratios is None:
        gate = torch.ones_like(batch.advantage)
    else:
        s = ratios.sequence.detach().to(batch.logp)[batch.sample]
        floor = torch.where(batch.advantage < 0, max(config.floor, config.negative_floor), config.floor)
        gate = torch.where(s >= floor, s.clamp(max=1.0).square(), 0.0)
    return _one_sided_loss(batch, gate, config.low, config.high, denominators)


# sapo_plain -----------------------------------------------------------------------------------------------------------


def sapo_demand(experience: Experience, value: float, config: SapoPlain) -> float:
    """1, or 0 for a group whose rewards are all equal (SAPO section 3.2)."""
    rewards = experience.rewards[experience.scored]
    return float(len(rewards) > 1 and np.ptp(rewards) > 0)


def sapo_advantages(rewards: np.ndarray, value: float, peer_mean: float, scale: float, config: SapoPlain) -> np.ndarray:
    """GRPO's, within the peer's group."""
    return group_normalised(rewards)


def sapo_loss(batch: TokenBatch, ratios: PeerRatios | None, config: SapoPlain, denominators: Denominators) -> TokenLoss:
    """-min(q A, clip(q) A), token mean: the peer's rollouts trained on as if they were our own (arXiv 2509.08721)."""
    log_q = log_ratio(batch.logp, batch.proximal)
    loss, kept = clipped_surrogate(log_q, batch.advantage, config.low, config.high)
    return TokenLoss(per_token=loss / denominators.tokens, kept=kept)


def _one_sided_loss(batch: TokenBatch, gate: Tensor, low: float, high: float, denominators: Denominators) -> TokenLoss:
    kept = one_sided_keep(log_ratio(batch.logp, batch.proximal), batch.advantage, low, high) & (gate > 0)
    return TokenLoss(per_token=-(kept * gate * batch.advantage * batch.logp) / denominators.tokens, kept=kept)


#: By the configuration that selects it.
FOREIGN: Mapping[type[Table], ForeignRule[Any]] = {
    ReceiverBaseline: ForeignRule(
        demand=receiver_demand, advantages=receiver_advantages, token_loss=receiver_loss, distinct=True
    ),
    ChunkAligned: ForeignRule(
        demand=receiver_demand, advantages=receiver_advantages, token_loss=chunk_loss, distinct=True
    ),
    RecOneside: ForeignRule(demand=rec_demand, advantages=rec_advantages, token_loss=rec_loss),
    SapoPlain: ForeignRule(demand=sapo_demand, advantages=sapo_advantages, token_loss=sapo_loss),
}
