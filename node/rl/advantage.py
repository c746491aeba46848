"""From rewards to advantages, of one's own rollouts. One function per estimator, one registry.

S = rollouts of the batch. Everything here is numpy in float64: differences of nearly equal numbers are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from node.algorithms import DrGrpoAdvantage, GrpoAdvantage, RlooAdvantage, SpoAdvantage
from node.table import Table

EPSILON = 1e-8
#: A batch in which hardly any reward differs from its expectation says nothing about the scale of rewards. Whitening it
#: would blow noise up to full-sized advantages (SPO's batches of 1024 prompts never come near this, ours may).
MIN_SCALE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """What became of S rollouts. `groups` numbers the groups; rollouts of one task share a number."""

    rewards: np.ndarray
    """[S] in [0, 1]."""
    values: np.ndarray
    """[S] expected rewards, frozen before the rollouts were sampled."""
    groups: np.ndarray
    """int [S]."""
    lengths: np.ndarray
    """int [S], action tokens of each."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Advantages:
    values: np.ndarray
    """float64 [S]."""
    scale: float
    """What rewards were divided by: peers' rewards are brought to the same unit with it."""


def token_moments(advantages: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation with every rollout counted once per action token (SPO++, arXiv 2608.24870).

    With a token-mean loss this is the measure under which sum_i L_i A_i = 0; per-rollout whitening leaves a drift
    towards long or short rollouts.
    """
    tokens = float(lengths.sum())
    if tokens == 0:
        return 0.0, 0.0
    mean = float(lengths @ advantages) / tokens
    if tokens == 1:
        return mean, 0.0
    return mean, float(np.sqrt(lengths @ np.square(advantages - mean) / (tokens - 1)))


def group_normalised(rewards: np.ndarray) -> np.ndarray:
    """(r - mean) / (std + 1e-8) of one group [G], sample standard deviation; zeros where all rewards are equal (a group
    of one included)."""
    if len(rewards) < 2 or np.ptp(rewards) == 0:
        return np.zeros(len(rewards))
    rewards = rewards.astype(np.float64)
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + EPSILON)


def spo(outcomes: Outcomes, config: SpoAdvantage) -> Advantages:
    """SPO++: r - v, whitened over the batch's action tokens, clamped."""
    raw = outcomes.rewards.astype(np.float64) - outcomes.values
    mean, std = token_moments(raw, outcomes.lengths)
    scale = max(std, MIN_SCALE) + EPSILON if len(raw) else 1.0
    return Advantages(values=np.clip((raw - mean) / scale, -config.clamp, config.clamp), scale=scale)


def grpo(outcomes: Outcomes, config: GrpoAdvantage) -> Advantages:
    """DeepSeekMath: (r - mean) / std of the group. `scale` is the token-mean std of the groups that have one."""
    values, stds = np.zeros(len(outcomes.rewards)), np.zeros(len(outcomes.rewards))
    for members in _groups(outcomes):
        rewards = outcomes.rewards[members]
        values[members] = group_normalised(rewards)
        if values[members].any():
            stds[members] = rewards.std(ddof=1)
    spread = stds > 0
    scale = float(np.average(stds[spread], weights=outcomes.lengths[spread])) if spread.any() else 1.0
    return Advantages(values=values, scale=scale)


def dr_grpo(outcomes: Outcomes, config: DrGrpoAdvantage) -> Advantages:
    """Dr. GRPO (arXiv 2503.20783): r - mean of the group, in units of reward."""
    return Advantages(values=_centred(outcomes), scale=1.0)


def rloo(outcomes: Outcomes, config: RlooAdvantage) -> Advantages:
    """RLOO (arXiv 2402.14740): r - mean of the others = G/(G-1) (r - mean). A group of one has no others: 0."""
    values = _centred(outcomes)
    for members in _groups(outcomes):
        size = int(members.sum())
        values[members] *= size / max(1, size - 1)
    return Advantages(values=values, scale=1.0)


def _groups(outcomes: Outcomes) -> list[np.ndarray]:
    """One mask [S] per group."""
    return [outcomes.groups == group for group in np.unique(outcomes.groups)]


def _centred(outcomes: Outcomes) -> np.ndarray:
    """r - mean of the group; exactly 0 for a group of one."""
    values = outcomes.rewards.astype(np.float64)
    for members in _groups(outcomes):
        values[members] -= values[members].mean()
    return values


Estimator = Callable[[Outcomes, Any], Advantages]

#: By the configuration that selects it.
ADVANTAGES: Mapping[type[Table], Estimator] = {
    SpoAdvantage: spo,
    GrpoAdvantage: grpo,
    DrGrpoAdvantage: dr_grpo,
    RlooAdvantage: rloo,
}
