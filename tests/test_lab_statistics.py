from __future__ import annotations

import math

import numpy as np
import pytest

from node.lab import statistics
from node.lab.statistics import (
    bootstrap_interval,
    difference,
    estimate,
    mean,
    paired_differences,
    sample_sd,
    sign_flip_p,
)


def test_mean_and_deviation_of_a_sample() -> None:
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert sample_sd([1.0, 2.0, 6.0]) == math.sqrt(7.0)
    assert math.isnan(mean([]))
    assert math.isnan(sample_sd([1.0]))


def test_fewer_than_three_values_have_no_interval_and_no_p() -> None:
    for values in ([], [1.0], [1.0, 2.0]):
        assert bootstrap_interval(values) is None
        assert sign_flip_p(values) is None
        assert estimate(values).interval is None
    assert bootstrap_interval([1.0, 2.0, 3.0]) is not None
    assert sign_flip_p([1.0, 2.0, 3.0]) is not None


def test_an_undefined_value_leaves_nothing_defined() -> None:
    of = estimate([1.0, 2.0, 3.0, math.nan])
    assert math.isnan(of.mean)
    assert of.interval is None
    assert sign_flip_p([1.0, 2.0, 3.0, math.nan]) is None


def test_the_interval_of_three_values_is_known() -> None:
    """All three draws the smallest has probability 1/27 > 2.5 %: the ends are the extremes."""
    assert bootstrap_interval([0.0, 9.0, 1.0]) == (0.0, 9.0)
    assert bootstrap_interval([5.0, 5.0, 5.0]) == (5.0, 5.0)


def test_the_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(10.0, 2.0, size=400)
    interval = bootstrap_interval(values.tolist())
    assert interval is not None
    half = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap_interval(values.tolist()) == interval


def test_the_p_value_counts_sign_patterns() -> None:
    assert sign_flip_p([1.0, 1.0, 1.0]) == 2 / 8
    assert sign_flip_p([-1.0, -2.0, -3.0, -4.0, -5.0]) == 2 / 32
    # |sum| >= 4 with 1, 2, 3: +++ and -++ (4), and their negatives
    assert sign_flip_p([-1.0, 2.0, 3.0]) == 4 / 8
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0


def test_ties_are_ties_whatever_rounding_does() -> None:
    """With tenths, some patterns whose sum is 0.9 come out a little below it; scale may not matter."""
    assert sign_flip_p([-0.9, -0.6, -0.3, 0.9]) == sign_flip_p([-9.0, -6.0, -3.0, 9.0]) == 12 / 16


def test_beyond_twenty_differences_the_p_value_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(0.5, 1.0, size=12).tolist()
    exact = sign_flip_p(values)
    assert exact is not None
    monkeypatch.setattr(statistics, "MAX_EXACT", 11)
    sampled = sign_flip_p(values)
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=0.03)
    assert sign_flip_p([1.0] * 30) == 1 / (2**11 + 1)  # the observed pattern alone


def test_a_difference_is_between_runs_of_the_same_seed() -> None:
    arm, against = {3: 5.0, 1: 2.0, 2: 4.0, 9: 100.0}, {1: 1.0, 2: 3.0, 3: 2.0, 7: -100.0}
    assert paired_differences(arm, against) == [1.0, 1.0, 3.0]
    of = difference(arm, against)
    assert (of.n, of.mean, of.interval, of.p) == (3, 5 / 3, (1.0, 3.0), 0.25)
    nothing = difference(arm, {})
    assert (nothing.n, nothing.interval, nothing.p) == (0, None, None)
    assert math.isnan(nothing.mean)
