import math

import pytest

from node.algorithms import LearnerConfig
from node.rl.learning_rate import ess_factor, learning_rate, reincarnates, staleness_factor, warmup_factor
from swarm.types import PolicyVersion


@pytest.mark.parametrize(("staleness", "factor"), [(0, 1.0), (1, 1.0), (3, 0.5), (7, 0.25), (-1, 1.0)])
def test_staleness_times_rate_is_kept_above_one_version(staleness: float, factor: float):
    assert staleness_factor(staleness) == factor


@pytest.mark.parametrize(("share", "factor"), [(1.0, 1.0), (0.25, 0.5), (1.0 + 1e-9, 1.0)])
def test_the_rate_is_the_root_of_the_effective_share(share: float, factor: float):
    assert ess_factor(share) == factor


def test_without_a_rule_only_the_warm_up_counts():
    learner = LearnerConfig(lr=1e-3, warmup_steps=4)
    rates = [learning_rate(learner, PolicyVersion(v), staleness=9.0, ess_share=0.01) for v in range(6)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_a_rule_and_the_warm_up_multiply():
    for learner, factor in (
        (LearnerConfig(lr=1e-3, warmup_steps=4, lr_rule="staleness"), 2 / 5),
        (LearnerConfig(lr=1e-3, warmup_steps=4, lr_rule="ess"), 0.3),
    ):
        assert learning_rate(learner, PolicyVersion(1), 4.0, 0.09) == pytest.approx(5e-4 * factor)


def test_no_warm_up_is_none_from_the_first_step():
    assert warmup_factor(LearnerConfig(warmup_steps=0), PolicyVersion(0)) == 1.0


def test_the_warm_up_begins_again_where_the_optimiser_forgets():
    learner = LearnerConfig(warmup_steps=2, reincarnate_every=3)
    assert [warmup_factor(learner, PolicyVersion(v)) for v in range(7)] == [0.5, 1, 1, 0.5, 1, 1, 0.5]
    assert [v for v in range(7) if reincarnates(learner, PolicyVersion(v))] == [3, 6]


def test_an_optimiser_never_forgets_unless_told():
    assert not any(reincarnates(LearnerConfig(), PolicyVersion(v)) for v in range(100))
    assert math.isclose(warmup_factor(LearnerConfig(warmup_steps=10), PolicyVersion(4)), 0.5)
