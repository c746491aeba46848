import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from node.algorithms import (
    Cispo,
    DecoupledPpo,
    DppoTv,
    Gspo,
    IcePop,
    M2po,
    ObjectiveConfig,
    PpoClip,
    Reinforce,
    Remix,
    SeqTis,
    Vespo,
)
from node.rl.correction import log_ratio
from node.rl.objective import LIMITS, OBJECTIVES, Denominators, TokenBatch, TokenLoss

TOKEN_MEAN = [
    DppoTv(),
    PpoClip(),
    DecoupledPpo(),
    Cispo(),
    Reinforce(),
    IcePop(),
    M2po(),
    Vespo(),
    SeqTis(),
    Remix(),
]
ALL = [*TOKEN_MEAN, Gspo()]

# Two rollouts of 3 and 2 tokens.
SAMPLE = torch.tensor([0, 0, 0, 1, 1])
LENGTHS = torch.tensor([3, 2])
ADVANTAGE = torch.tensor([1.5, -0.5], dtype=torch.float64)[SAMPLE]
MU = torch.tensor([0.50, 0.20, 0.90, 0.30, 0.60], dtype=torch.float64)
PROX = torch.tensor([0.55, 0.25, 0.80, 0.25, 0.50], dtype=torch.float64)
#: rho = 1.6, .5, 1, .7, 1.1; moved by more than .2 only in the first.
PI = torch.tensor([0.80, 0.10, 0.90, 0.21, 0.66], dtype=torch.float64)


def run(
    config: ObjectiveConfig,
    pi: Tensor = PI,
    mu: Tensor = MU,
    prox: Tensor = PROX,
    denominators: Denominators = Denominators(tokens=10, samples=4),  # noqa: B008 (frozen)
    limit: float | None = None,
) -> tuple[TokenLoss, Tensor]:
    """The loss and its gradient by log pi, in float64."""
    logp = pi.log().requires_grad_()
    batch = TokenBatch(
        logp=logp,
        behaviour=mu.log(),
        proximal=prox.log(),
        advantage=ADVANTAGE,
        sample=SAMPLE,
        lengths=LENGTHS,
        limit=limit,
    )
    loss = OBJECTIVES[type(config)](batch, config, denominators)
    loss.per_token.sum().backward()
    assert logp.grad is not None
    return loss, logp.grad


@pytest.mark.parametrize("config", TOKEN_MEAN)
def test_on_policy_the_gradient_is_reinforce(config: ObjectiveConfig):
    loss, gradient = run(config, mu=PI, prox=PI)
    torch.testing.assert_close(gradient, -ADVANTAGE / 10)
    assert loss.kept.all()


def test_on_policy_gspo_is_reinforce_with_a_mean_over_rollouts():
    _, gradient = run(Gspo(), mu=PI, prox=PI)
    torch.testing.assert_close(gradient, -ADVANTAGE / LENGTHS[SAMPLE] / 4)


def test_dppo_tv():
    config = DppoTv(delta=0.2, cap=1.05, squared_log_ratio=0.01)
    loss, gradient = run(config)
    rho = torch.tensor([1.6, 0.5, 1.0, 0.7, 1.1], dtype=torch.float64)
    kept = torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)
    weight = kept * rho.clamp(max=1.05)
    torch.testing.assert_close(loss.per_token, (-weight * ADVANTAGE * PI.log() + 0.01 * rho.log() ** 2) / 10)
    torch.testing.assert_close(gradient, (-weight * ADVANTAGE + 0.02 * rho.log()) / 10)
    assert loss.kept.tolist() == kept.bool().tolist()


def test_dppo_tv_caps_at_two_by_default():
    pi, mu = torch.full_like(PI, 0.15), torch.full_like(PI, 0.05)
    _, gradient = run(DppoTv(squared_log_ratio=0), pi=pi, mu=mu)
    torch.testing.assert_close(gradient, -2 * ADVANTAGE / 10)


def test_ppo_clip_is_anchored_at_the_sampler():
    loss, gradient = run(PpoClip(low=0.2, high=0.28))
    # Positives stop above 1.28, negatives below 0.8; the other side always has its gradient, rho A.
    expected = torch.tensor([1.28 * 1.5, 0.5 * 1.5, 1.5, 0.8 * -0.5, 1.1 * -0.5], dtype=torch.float64)
    torch.testing.assert_close(loss.per_token, -expected / 10)
    torch.testing.assert_close(gradient, -torch.tensor([0, 0.75, 1.5, 0, -0.55], dtype=torch.float64) / 10)
    assert loss.kept.tolist() == [False, True, True, False, True]


def test_decoupled_ppo_weighs_the_clip_around_the_proximal_policy():
    _, gradient = run(DecoupledPpo(low=0.2, high=0.28, cap=1.2))
    w, q = (PROX / MU).clamp(max=1.2), PI / PROX
    inside = torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)  # q = 1.45, .4, 1.125, .84, 1.32
    torch.testing.assert_close(gradient, -inside * w * q * ADVANTAGE / 10)


def test_decoupled_ppo_without_a_gap_is_ppo():
    decoupled, gradient = run(DecoupledPpo(), mu=MU, prox=MU)
    ppo, ppo_gradient = run(PpoClip())
    torch.testing.assert_close(decoupled.per_token, ppo.per_token)
    torch.testing.assert_close(gradient, ppo_gradient)


def test_ppo_clip_never_weighs_by_the_proximal_policy():
    torch.testing.assert_close(run(PpoClip(), prox=PROX)[0].per_token, run(PpoClip(), prox=MU)[0].per_token)


def test_cispo_keeps_every_token_at_a_capped_weight():
    loss, gradient = run(Cispo(cap=1.5))
    weight = torch.tensor([1.5, 0.5, 1.0, 0.7, 1.1], dtype=torch.float64)
    torch.testing.assert_close(gradient, -weight * ADVANTAGE / 10)
    assert loss.kept.all()


def test_gspo_clips_whole_rollouts():
    pi = torch.tensor([0.56, 0.25, 0.80, 0.26, 0.50], dtype=torch.float64)
    loss, gradient = run(Gspo(low=0.03, high=0.001), pi=pi)
    s = [(0.56 / 0.55) ** (1 / 3), (0.26 / 0.25) ** (1 / 2)]
    assert s[0] > 1.001
    torch.testing.assert_close(
        loss.per_token,
        torch.tensor([-1.001 * 1.5 / 3] * 3 + [s[1] * 0.5 / 2] * 2, dtype=torch.float64) / 4,
    )
    torch.testing.assert_close(gradient, torch.tensor([0.0] * 3 + [s[1] * 0.5 / 2] * 2, dtype=torch.float64) / 4)
    assert loss.kept.tolist() == [False] * 3 + [True] * 2


def test_reinforce_looks_at_nothing_but_the_advantage():
    loss, gradient = run(Reinforce())
    torch.testing.assert_close(loss.per_token, -ADVANTAGE * PI.log() / 10)
    torch.testing.assert_close(gradient, -ADVANTAGE / 10)
    assert loss.kept.all()


def test_icepop_drops_the_tokens_whose_weight_is_out_of_bounds():
    loss, gradient = run(IcePop(least=0.85, most=1.2))
    w = PROX / MU  # 1.1, 1.25, .89, .83, .83: the second is above, the last two are below
    expected = torch.tensor([1.28 * 1.1 * 1.5, 0, 1.125 * w[2] * 1.5, 0, 0], dtype=torch.float64)  # q = 1.45 is clipped
    torch.testing.assert_close(loss.per_token, -expected / 10)
    torch.testing.assert_close(gradient, -torch.tensor([0, 0, expected[2], 0, 0], dtype=torch.float64) / 10)
    assert loss.kept.tolist() == [False, False, True, False, False]


def test_icepop_within_bounds_is_decoupled_ppo():
    torch.testing.assert_close(run(IcePop())[0].per_token, run(DecoupledPpo(cap=5.0))[0].per_token)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (0.04, [False, True, True, False, True]),
        # Outward are log(1.6)^2 = .221 and log(.7)^2 = .127: together a mean of .174.
        (0.15, [False, True, True, True, True]),
        (0.18, [True, True, True, True, True]),
    ],
)
def test_m2po_drops_outward_tokens_the_furthest_first(budget: float, kept: list[bool]):
    loss, gradient = run(M2po(budget=budget))
    weight = torch.tensor(kept) * PI / MU
    torch.testing.assert_close(loss.per_token, -weight * ADVANTAGE / 10)
    torch.testing.assert_close(gradient, -weight * ADVANTAGE / 10)
    assert loss.kept.tolist() == kept


def test_m2po_takes_the_whole_batchs_limit_where_it_has_one():
    assert run(M2po(budget=0.18), limit=0.2)[0].kept.tolist() == [False, True, True, True, True]
    assert run(M2po(budget=0.04), limit=math.inf)[0].kept.all()


def test_vespo_weighs_whole_rollouts_by_a_smooth_kernel():
    loss, gradient = run(Vespo())
    first, second = 1.6 * 0.5 * 1.0, 0.7 * 1.1
    phi = [first**2 * math.exp(3 * (1 - first))] * 3 + [second**3 * math.exp(2 * (1 - second))] * 2
    torch.testing.assert_close(gradient, -torch.tensor(phi, dtype=torch.float64) * ADVANTAGE / 10)
    torch.testing.assert_close(loss.per_token, gradient * PI.log())
    assert loss.kept.all()


def test_seq_tis_truncates_the_weight_of_a_whole_rollout():
    loss, gradient = run(SeqTis(cap=0.78))
    weight = torch.tensor([0.78] * 3 + [0.7 * 1.1] * 2, dtype=torch.float64)  # the first is .8
    torch.testing.assert_close(gradient, -weight * ADVANTAGE / 10)
    torch.testing.assert_close(loss.per_token, gradient * PI.log())
    assert loss.kept.all()


def test_remix_clips_around_what_the_proximal_policy_makes_of_the_sampler():
    loss, gradient = run(Remix(clip=0.12))
    # rho = 1.6, .5, 1, .7, 1.1 around 1.1, 1.25, .889, .833, .833.
    expected = torch.tensor([1.22 * 1.5, 0.5 * 1.5, 1.5, (0.25 / 0.3 - 0.12) * -0.5, 1.1 * -0.5], dtype=torch.float64)
    kept = torch.tensor([False, True, True, False, True])
    torch.testing.assert_close(loss.per_token, -expected / 10)
    torch.testing.assert_close(gradient, kept * -expected / 10)
    assert loss.kept.tolist() == kept.tolist()


def test_remix_of_fresh_rollouts_is_ppo():
    torch.testing.assert_close(run(Remix(clip=0.2), prox=MU)[1], run(PpoClip(low=0.2, high=0.2))[1])


@pytest.mark.parametrize("config", ALL)
def test_float32_gradients_agree_with_float64(config: ObjectiveConfig):
    logp = PI.log().float().requires_grad_()
    batch = TokenBatch(
        logp=logp,
        behaviour=MU.log().float(),
        proximal=PROX.log().float(),
        advantage=ADVANTAGE.float(),
        sample=SAMPLE,
        lengths=LENGTHS,
    )
    OBJECTIVES[type(config)](batch, config, Denominators(tokens=10, samples=4)).per_token.sum().backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, run(config)[1].float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("config", ALL)
def test_absurd_log_probabilities_stay_finite(config: ObjectiveConfig):
    absurd = torch.full_like(PI, math.exp(-300))
    for loss, gradient in (run(config, mu=absurd), run(config, pi=absurd), run(config, mu=absurd, prox=absurd)):
        assert loss.per_token.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("keep", [lambda sample: sample == 0, lambda sample: sample == 1])
def test_rollouts_do_not_depend_on_each_other(config: ObjectiveConfig, keep: Callable[[Tensor], Tensor]):
    """A part of the rows, with what is known of the whole, has the whole's losses."""
    mask = keep(SAMPLE)
    rule = LIMITS.get(type(config))
    part = TokenBatch(
        logp=PI.log()[mask],
        behaviour=MU.log()[mask],
        proximal=PROX.log()[mask],
        advantage=ADVANTAGE[mask],
        sample=SAMPLE[mask],
        lengths=LENGTHS,
        limit=rule(log_ratio(PI.log(), MU.log()), ADVANTAGE, config) if rule else None,
    )
    loss = OBJECTIVES[type(config)](part, config, Denominators(tokens=10, samples=4))
    torch.testing.assert_close(loss.per_token, run(config)[0].per_token[mask].detach())
