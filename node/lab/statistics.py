"""What a handful of runs says about an arm, and about the difference between two arms. Pure.

A run is one number per seed. With fewer than three there is no interval and no p-value. With few, both are rough: the
percentile bootstrap is too narrow below about ten seeds, and the smallest p-value that five seeds can give is 1/16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
MIN_VALUES = 3
"""For an interval or a p-value."""
MAX_EXACT = 20
"""Differences whose 2^(n-1) sign patterns are all looked at."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one arm. NaN where there is no number: no value, an undefined value, the deviation of a single one."""

    n: int
    mean: float
    sd: float
    """Of the sample (n - 1)."""
    interval: Interval | None
    """95 % of the mean."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two arms, over the seeds that both have."""

    n: int
    mean: float
    interval: Interval | None
    """95 % of the mean difference."""
    p: float | None
    """Of a difference as large as this, either way, if the arms were the same."""


def estimate(values: Sequence[float]) -> Estimate:
    return Estimate(len(values), mean(values), sample_sd(values), bootstrap_interval(values))


def difference(arm: Mapping[int, float], against: Mapping[int, float]) -> Difference:
    """`arm` - `against`; both are seed -> value."""
    paired = paired_differences(arm, against)
    return Difference(len(paired), mean(paired), bootstrap_interval(paired), sign_flip_p(paired))


def paired_differences(arm: Mapping[int, float], against: Mapping[int, float]) -> list[float]:
    """In the order of the seeds that both have."""
    return [arm[seed] - against[seed] for seed in sorted(arm.keys() & against.keys())]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def sample_sd(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """Percentile bootstrap of the mean (Efron 1979), the same for the same values; None where there is none."""
    if not _enough(values):
        return None
    sample = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.quantile(sample[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the mean under random signs (Fisher 1935, section 21); None where there is none.

    Exact up to MAX_EXACT differences; beyond, from 2^MAX_EXACT random patterns, the observed one counted among them.
    """
    if not _enough(differences):
        return None
    observed = np.asarray(differences, dtype=np.float64)
    sums = _all_sums(observed) if len(observed) <= MAX_EXACT else _some_sums(observed)
    as_large = abs(observed.sum()) - 1e-9 * np.abs(observed).sum()  # ties are ties, however they were added up
    return float(np.mean(np.abs(sums) >= as_large))


def _all_sums(values: np.ndarray) -> np.ndarray:
    """[n] -> [2^(n-1)]: of every pattern with the first sign as it is; the others are their negatives."""
    sums = values[:1]
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _some_sums(values: np.ndarray) -> np.ndarray:
    """[n] -> [2^MAX_EXACT + 1]."""
    rng = np.random.default_rng(0)
    sums = np.full(2**MAX_EXACT + 1, values.sum())
    sums[1:] = 0.0
    for value in values:
        sums[1:] += value * rng.choice((-1.0, 1.0), size=2**MAX_EXACT)
    return sums


def _enough(values: Sequence[float]) -> bool:
    return len(values) >= MIN_VALUES and all(math.isfinite(value) for value in values)
