"""The formulas that the methods stand or fall with: which test pins each one, and those that no other file has.

Not here, because the node has no such method: EGAE (equals GAE on a complete trajectory; wants a value model), CoPG (at
the reference policy its gradient is RLOO's; a pairwise loss) and TOPR (positives weigh 1 whatever their ratio).
"""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.algorithms import M2po, Remix, SeqTis, Vespo
from node.rl.correction import log_ratio
from node.rl.objective import OBJECTIVES, Denominators, TokenBatch, m2po_limit

TESTS = Path(__file__).parent

#: Formula -> the tests that pin it.
PINNED = {
    "a Beta update is a step of an exponential average of rate 1 / (rho N + 1)": (
        "test_tracker.py::test_an_observation_is_a_step_of_an_exponential_average",
    ),
    "N settles at 8 for rho = .875 and at 25 for rho = .96": (
        "test_tracker.py::test_one_outcome_per_update_settles_at_the_window",
    ),
    "the event-time tracker does not depend on the order of receipt": (
        "test_tracker.py::test_values_do_not_depend_on_the_order_of_receipt",
    ),
    "sum_i L_i A_i = 0 under the token measure": ("test_advantage.py::test_spo_advantages_sum_to_zero_over_tokens",),
    "RLOO = G / (G - 1) (r - mean)": ("test_advantage.py::test_rloo_is_the_reward_less_the_mean_of_the_others",),
    "on-policy every gradient is REINFORCE's": (
        "test_objective.py::test_on_policy_the_gradient_is_reinforce",
        "test_objective.py::test_on_policy_gspo_is_reinforce_with_a_mean_over_rollouts",
        "test_foreign.py::test_on_the_first_update_the_gradient_is_reinforce",
        "test_loss.py::test_on_policy_own_and_foreign_successes_are_reinforce",
    ),
    "DPPO's mask, by the sign of A and by d": ("test_correction.py::test_total_variation_mask",),
    "OPSM never drops A >= 0": ("test_correction.py::test_opsm_never_vetoes_what_is_not_negative",),
    "VESPO: phi(1) = 1, largest at k / lambda": (
        "test_formulas.py::test_vespos_kernel_is_one_on_policy",
        "test_formulas.py::test_vespos_kernel_is_largest_at_k_over_lambda",
    ),
    "M2: mean (log rho)^2 of the outward tokens that stay <= .04; inward tokens stay": (
        "test_formulas.py::test_m2po_keeps_the_second_moment_within_the_budget_and_every_inward_token",
    ),
    "decoupled PPO with w = 1 is PPO; a ratio against the sampler has no second weight": (
        "test_objective.py::test_decoupled_ppo_without_a_gap_is_ppo",
        "test_objective.py::test_ppo_clip_never_weighs_by_the_proximal_policy",
    ),
    "s does not change when the same text is tokenised again": (
        "test_correction.py::test_chunks_lose_nothing_and_retokenising_changes_no_sequence_ratio",
    ),
    "with v = 0 a peer's all-correct group is worth 1, an all-wrong one 0": (
        "test_foreign.py::test_an_experts_group_on_what_we_fail_at_is_worth_one",
        "test_foreign.py::test_an_all_wrong_group_is_worth_nothing",
    ),
    "sequence TIS: W = min(exp(sum log rho), 8)": ("test_formulas.py::test_sequence_weights_are_truncated_at_eight",),
    "ReMix: the clip is prox/mu +- .2": ("test_formulas.py::test_remixs_clip_is_as_wide_as_ppos_around_its_centre",),
    "lr min(1, 2 / (1 + S)), lr sqrt(ESS / B)": (
        "test_learning_rate.py::test_staleness_times_rate_is_kept_above_one_version",
        "test_learning_rate.py::test_the_rate_is_the_root_of_the_effective_share",
        "test_loss.py::test_the_effective_sample_size_of_whole_rollouts",
    ),
}


@pytest.mark.parametrize("test", [test for tests in PINNED.values() for test in tests])
def test_what_pins_a_formula_is_there(test: str):
    file, _, name = test.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def one_token_rollouts(log_rho: list[float], advantage: list[float], prox: float = 0.0) -> TokenBatch:
    """log mu = -1, log pi = -1 + log rho, log prox = -1 + prox; one token a rollout."""
    n = len(log_rho)
    return TokenBatch(
        logp=(torch.tensor(log_rho, dtype=torch.float64) - 1).requires_grad_(),
        behaviour=torch.full((n,), -1.0, dtype=torch.float64),
        proximal=torch.full((n,), prox - 1.0, dtype=torch.float64),
        advantage=torch.tensor(advantage, dtype=torch.float64),
        sample=torch.arange(n),
        lengths=torch.ones(n, dtype=torch.int64),
    )


def weight(config: Vespo | SeqTis | Remix, log_rho: float, advantage: float, prox: float = 0.0) -> float:
    """What one token's -A grad log pi is multiplied by."""
    batch = one_token_rollouts([log_rho], [advantage], prox)
    loss = OBJECTIVES[type(config)](batch, config, Denominators(tokens=1, samples=1))
    return torch.autograd.grad(loss.per_token.sum(), batch.logp)[0].item() / -advantage


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_vespos_kernel_is_one_on_policy(advantage: float):
    assert weight(Vespo(), 0.0, advantage) == 1.0


@settings(deadline=None)
@given(st.floats(-30, 30))
def test_vespos_kernel_is_largest_at_k_over_lambda(log_w: float):
    """At 2/3 for positives and at 3/2 for negatives: (2/3)^2 e and (3/2)^3 / e."""
    best = (2 / 3) ** 2 * math.e, 1.5**3 / math.e
    assert weight(Vespo(), math.log(2 / 3), 1.0) == pytest.approx(best[0])
    assert weight(Vespo(), math.log(3 / 2), -1.0) == pytest.approx(best[1])
    assert 0 <= weight(Vespo(), log_w, 1.0) <= best[0] * (1 + 1e-12)
    assert 0 <= weight(Vespo(), log_w, -1.0) <= best[1] * (1 + 1e-12)


def test_vespos_kernel_is_flat_beyond_its_range():
    assert weight(Vespo(), -19.0, 1.0) == pytest.approx(1e-16 * math.exp(3), rel=1e-6, abs=0)
    assert weight(Vespo(), -19.0, -1.0) == pytest.approx(1e-24 * math.exp(2), rel=1e-6, abs=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.sampled_from([-1.0, 0.0, 0.5, 2.0])), min_size=1, max_size=20))
def test_m2po_keeps_the_second_moment_within_the_budget_and_every_inward_token(tokens: list[tuple[float, float]]):
    log_rho, advantage = (list(column) for column in zip(*tokens, strict=True))
    batch = one_token_rollouts(log_rho, advantage)
    kept = OBJECTIVES[M2po](batch, M2po(), Denominators(tokens=1, samples=1)).kept.tolist()
    # As the code sees them: taking log mu off again rounds.
    exact = (batch.logp - batch.behaviour).tolist()
    outward = [x * a > 0 for x, a in zip(exact, advantage, strict=True)]
    assert all(keep for keep, out in zip(kept, outward, strict=True) if not out)
    stayed = [x * x for x, keep, out in zip(exact, kept, outward, strict=True) if keep and out]
    went = [x * x for x, keep in zip(exact, kept, strict=True) if not keep]
    assert sum(stayed) <= 0.04 * len(stayed) * (1 + 1e-9)
    assert max(stayed, default=0.0) < min(went, default=math.inf)
    if went:  # none goes in vain
        nearest = [x for x in went if x == min(went)]
        assert sum(stayed) + sum(nearest) > 0.04 * (len(stayed) + len(nearest)) * (1 - 1e-9)


def test_m2pos_limit_is_found_in_the_whole_batch():
    """(.3)^2 alone is over the budget of .04; among four tokens that hardly moved it is not."""
    config, denominators = M2po(), Denominators(tokens=1, samples=1)
    far, near = one_token_rollouts([0.3], [1.0]), one_token_rollouts([0.1] * 4, [1.0] * 4)
    log_rho = torch.cat([log_ratio(part.logp, part.behaviour) for part in (far, near)])
    assert m2po_limit(log_rho, torch.ones(5), config) == math.inf
    assert not OBJECTIVES[M2po](far, config, denominators).kept.any()


def test_sequence_weights_are_truncated_at_eight():
    assert weight(SeqTis(), math.log(7.5), 1.0) == pytest.approx(7.5)
    assert weight(SeqTis(), math.log(8.5), -1.0) == pytest.approx(8.0)


@pytest.mark.parametrize("centre", [0.5, 1.0, 4.0])
def test_remixs_clip_is_as_wide_as_ppos_around_its_centre(centre: float):
    prox = math.log(centre)
    for distance, sign in ((0.19, 1.0), (0.21, 1.0), (-0.19, -1.0), (-0.21, -1.0), (0.3, -1.0), (-0.3, 1.0)):
        ratio = centre + distance
        inside = abs(distance) < 0.2 or distance * sign < 0
        assert weight(Remix(), math.log(ratio), sign, prox) == pytest.approx(ratio if inside else 0.0)
