import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.algorithms import AdvantageConfig, DrGrpoAdvantage, GrpoAdvantage, RlooAdvantage, SpoAdvantage
from node.rl.advantage import ADVANTAGES, MIN_SCALE, Advantages, Outcomes, token_moments


def estimate(
    config: AdvantageConfig,
    rewards: list[float],
    *,
    values: list[float] | None = None,
    groups: list[int] | None = None,
    lengths: list[int] | None = None,
) -> Advantages:
    n = len(rewards)
    outcomes = Outcomes(
        rewards=np.array(rewards, dtype=np.float32),
        values=np.array(values or [0.5] * n),
        groups=np.array(groups or [0] * n, dtype=np.int64),
        lengths=np.array(lengths or [1] * n, dtype=np.int64),
    )
    return ADVANTAGES[type(config)](outcomes, config)


def test_token_moments_count_every_token():
    mean, std = token_moments(np.array([1.0, -1.0]), np.array([3, 1]))
    assert mean == 0.5
    assert std == pytest.approx(np.std([1.0, 1.0, 1.0, -1.0], ddof=1))


@pytest.mark.parametrize(("advantages", "lengths", "moments"), [([], [], (0, 0)), ([0.3], [1], (0.3, 0))])
def test_token_moments_of_hardly_anything(advantages: list[float], lengths: list[int], moments: tuple[float, float]):
    assert token_moments(np.array(advantages), np.array(lengths)) == moments


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99), st.integers(1, 200)), min_size=1))
def test_spo_advantages_sum_to_zero_over_tokens(rows: list[tuple[float, float, int]]):
    rewards, values, lengths = (list(column) for column in zip(*rows, strict=True))
    result = estimate(SpoAdvantage(clamp=1e9), rewards, values=values, lengths=lengths)
    assert np.dot(lengths, result.values) == pytest.approx(0, abs=1e-6)


def test_spo_is_reward_minus_value_whitened():
    raw, lengths = np.array([0.8, -0.5, 0.1]), np.array([2, 5, 1])
    result = estimate(SpoAdvantage(), [1, 0, 1], values=[0.2, 0.5, 0.9], lengths=[2, 5, 1])
    mean = (raw * lengths).sum() / 8
    std = np.sqrt((lengths * (raw - mean) ** 2).sum() / 7)
    assert result.scale == pytest.approx(std)
    np.testing.assert_allclose(result.values, (raw - mean) / std, rtol=1e-6)


def test_spo_clamps():
    result = estimate(SpoAdvantage(clamp=1.0), [1.0] + [0.0] * 20)
    assert result.values[0] == 1.0
    assert result.values.min() > -1.0


def test_spo_does_not_blow_noise_up():
    result = estimate(SpoAdvantage(), [0, 0], values=[0.01, 0.02])
    assert result.scale == pytest.approx(MIN_SCALE)
    np.testing.assert_allclose(result.values, [0.05, -0.05], rtol=1e-6)


def test_grpo_is_normalised_in_its_group():
    result = estimate(GrpoAdvantage(), [1, 0, 0, 1, 1], groups=[0, 0, 0, 1, 1], lengths=[1, 1, 2, 9, 9])
    std = np.std([1, 0, 0], ddof=1)
    np.testing.assert_allclose(result.values * std, [2 / 3, -1 / 3, -1 / 3, 0, 0], rtol=1e-6)
    assert result.scale == pytest.approx(std)


def test_dr_grpo_is_centred_in_its_group():
    result = estimate(DrGrpoAdvantage(), [1, 0, 0, 0, 1], groups=[3, 3, 3, 3, 7])
    np.testing.assert_allclose(result.values, [0.75, -0.25, -0.25, -0.25, 0])
    assert result.scale == 1.0


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=16))
def test_rloo_is_the_reward_less_the_mean_of_the_others(rewards: list[float]):
    result = estimate(RlooAdvantage(), rewards)
    others = [(sum(rewards) - r) / (len(rewards) - 1) for r in rewards]
    np.testing.assert_allclose(result.values, np.array(rewards) - others, atol=1e-9)
    size = len(rewards)
    np.testing.assert_allclose(result.values, size / (size - 1) * (np.array(rewards) - np.mean(rewards)), atol=1e-9)


@pytest.mark.parametrize("config", [GrpoAdvantage(), DrGrpoAdvantage(), RlooAdvantage()])
def test_a_group_of_one_has_no_advantage(config: AdvantageConfig):
    assert estimate(config, [1, 0], groups=[0, 1]).values.tolist() == [0, 0]


@pytest.mark.parametrize("config", [SpoAdvantage(), GrpoAdvantage(), DrGrpoAdvantage(), RlooAdvantage()])
def test_an_empty_batch_has_scale_one(config: AdvantageConfig):
    result = estimate(config, [])
    assert len(result.values) == 0
    assert result.scale == 1.0
