"""pass@k, majority@k and their intervals: known values, enumeration of all cases, and how often an interval holds."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.estimators import clustered_wilson, majority_at_k, pass_at_k, stratified_mean, wilson

# pass@k ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [(1, 0, 1, 0.0), (1, 1, 1, 1.0), (4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 1, 4, 1.0), (4, 0, 4, 0.0)],
)
def test_pass_at_k(n: int, c: int, k: int, value: float) -> None:
    assert pass_at_k(n, c, k) == value


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    draws = list(itertools.combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == Fraction(sum(map(any, draws)), len(draws)).__float__()


def test_pass_at_k_of_many_samples_is_exact() -> None:
    assert pass_at_k(100_000, 1, 3) == 3 / 100_000
    assert pass_at_k(3000, 1, 1500) == 0.5
    assert pass_at_k(3000, 2999, 1500) == 1.0
    assert pass_at_k(10**9, 1, 2) == 2e-9  # as 1 minus a float it would have half of its digits


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_of_nonsense(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass_at_k"):
        pass_at_k(n, c, k)


# majority@k -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "right", "k", "value"),
    [
        ("a", "+", 1, 1.0),
        ("aab", "++-", 3, 1.0),
        ("abb", "+--", 3, 0.0),
        ("abb", "+--", 1, 1.0),  # only the first k vote
        ("abb", "+--", 2, 0.5),  # a tie
        ("abc", "+--", 3, 1 / 3),
        ("aabbc", "--++-", 5, 0.5),
        ("aabbc", "--+-+", 5, 0.25),  # b was scored in two ways
        ("..a", "--+", 3, 1.0),  # nothing is no vote
        ("...", "---", 3, 0.0),
        ("..", "++", 2, 0.0),  # even where nothing is right
    ],
)
def test_majority_at_k(answers: str, right: str, k: int, value: float) -> None:
    """One letter an answer, "." for none; "+" is right."""
    said = [answer.strip(".") for answer in answers]
    assert majority_at_k(said, [mark == "+" for mark in right], k) == pytest.approx(value, abs=1e-15)


@given(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=9), st.sampled_from("abc"), st.data())
def test_majority_at_k_is_the_mean_over_fair_choices(answers: list[str], truth: str, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    votes = [answer for answer in answers[:k] if answer]
    most = max((votes.count(answer) for answer in votes), default=0)
    leaders = {answer for answer in votes if votes.count(answer) == most}
    expected = (truth in leaders) / len(leaders) if leaders else 0.0
    assert majority_at_k(answers, [answer == truth for answer in answers], k) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answers", "right", "k"), [([], [], 1), (["a"], [], 1), (["a"], [True], 0), (["a"], [True], 2)]
)
def test_majority_at_k_of_nonsense(answers: list[str], right: list[bool], k: int) -> None:
    with pytest.raises(ValueError, match="majority_at_k"):
        majority_at_k(answers, right, k)


# Intervals ------------------------------------------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    # z = 1 makes it arithmetic: centre (p + 1/2n) / (1 + 1/n), half sqrt(p(1-p)/n + 1/4n^2) / (1 + 1/n)
    low, high = wilson(2, 4, z=1.0)
    assert low == pytest.approx(0.5 - math.sqrt(1 / 16 + 1 / 64) / 1.25)
    assert high == pytest.approx(0.5 + math.sqrt(1 / 16 + 1 / 64) / 1.25)


def test_wilson_as_published() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


def test_wilson_of_nonsense() -> None:
    for successes, n in [(1, 0), (-1, 4), (5, 4)]:
        with pytest.raises(ValueError, match="wilson"):
            wilson(successes, n)


def test_one_sample_per_question_is_plain_wilson() -> None:
    assert clustered_wilson([[1.0] * 3 + [0.0] * 7], samples=1) == pytest.approx(wilson(3, 10))


def test_samples_that_agree_within_their_question_are_worth_one() -> None:
    assert clustered_wilson([[1.0] * 30 + [0.0] * 70], samples=8) == pytest.approx(wilson(30, 100))


def test_the_effective_number_of_samples_is_that_of_the_variance_between_questions() -> None:
    rates = [0.0, 0.25, 0.5, 0.75, 1.0] * 4
    # s^2 = 2.5 / 19, so that n_eff = 0.25 / (2.5 / 19 / 20) = 38 of 80 samples
    assert clustered_wilson([rates], samples=4) == pytest.approx(wilson(19, 38))


def test_samples_are_worth_at_most_their_number() -> None:
    assert clustered_wilson([[0.5] * 10], samples=4) == pytest.approx(wilson(20, 40))
    low, high = clustered_wilson([[0.25, 0.5, 0.75, 0.5] * 10], samples=4)
    assert wilson(80, 160)[0] == pytest.approx(low)  # p(1-p)/s^2 is more than 4: capped
    assert high - low < np.diff(wilson(20, 40))


def test_nothing_varies_at_the_edges() -> None:
    assert clustered_wilson([[0.0] * 20], samples=8) == wilson(0, 20)
    assert clustered_wilson([[1.0] * 20], samples=8) == wilson(20, 20)
    assert clustered_wilson([[1.0] * 20, [1.0] * 10], samples=8) == wilson(30, 30)


def test_families_count_the_same_and_their_difference_is_no_uncertainty() -> None:
    easy, hard = [1.0] * 15 + [0.5] * 5, [0.0] * 8 + [0.5] * 2
    assert stratified_mean([easy, hard]) == pytest.approx((0.875 + 0.1) / 2)
    pooled, stratified = clustered_wilson([easy + hard], samples=2), clustered_wilson([easy, hard], samples=2)
    variance = (15 * 0.125**2 + 5 * 0.375**2) / 19 / 20 / 4 + (8 * 0.1**2 + 2 * 0.4**2) / 9 / 10 / 4
    p = 0.4875
    assert p * (1 - p) / variance > 60  # more than there are samples
    assert stratified == pytest.approx(wilson(p * 60, 60))
    assert np.diff(stratified) < np.diff(pooled)
    few = clustered_wilson([easy, hard], samples=100)
    assert few == pytest.approx(wilson(p * p * (1 - p) / variance, p * (1 - p) / variance))


def test_one_question_tells_as_much_as_one_question_can() -> None:
    assert clustered_wilson([[0.25]], samples=4) == pytest.approx(wilson(0.25, 1))
    assert clustered_wilson([[1.0], [0.0]], samples=4) == pytest.approx(wilson(1, 2))


def test_the_interval_holds_the_truth_where_plain_wilson_does_not() -> None:
    """Questions that are mostly known or unknown, 8 samples each: 95 % is what it should be."""
    rng = np.random.default_rng(0)
    held = plain = 0
    for _ in range(1000):
        rates = rng.binomial(8, rng.beta(0.3, 0.3, size=64)) / 8
        low, high = clustered_wilson([rates.tolist()], samples=8)
        held += low <= 0.5 <= high
        low, high = wilson(rates.sum() * 8, 64 * 8)
        plain += low <= 0.5 <= high
    assert 930 <= held <= 970
    assert plain < 700
