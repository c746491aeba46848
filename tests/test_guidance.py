"""A stronger peer's view of our own tokens: what it makes of their advantages, and that it stays a view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.algorithms import (
    DppoTv,
    GuidanceConfig,
    LearnerConfig,
    NoGuidance,
    ObjectiveConfig,
    PeerGuidance,
    ReceiverBaseline,
    Reinforce,
    SpoAdvantage,
)
from node.experience import Experience, PeerScores
from node.rl.batch import pack
from node.rl.correction import chunk_log_ratios, spread_chunk_log_ratios
from node.rl.guidance import guidance_metrics, token_guidance
from node.rl.loss import micro_batch_loss
from node.rl.objective import Denominators
from node.rl.samples import PeerTokens, RowPlan, TokenRow, build_rows
from swarm.types import FinishReason, GroupId, PeerId, PolicyVersion
from tests.builders import Characters, group, rollout, task

# We: ab | c | de | end; the peer: abc | d | e | end. Chunks: abc, de, end.
OWN = (np.array([-1.0, -2.0, -0.5, -0.25], np.float32), np.array([2, 1, 2, 0], np.int32))


def scores(logprobs: list[float], byte_lengths: list[int]) -> PeerScores:
    return PeerScores(logprobs=np.array(logprobs, np.float32), byte_lengths=np.array(byte_lengths, np.int32))


THEIRS = scores([-2.5, -0.25, -0.5, -0.75], [3, 1, 1, 0])


def guidance(peer: PeerScores, advantage: float, config: PeerGuidance | None = None) -> list[float]:
    result = token_guidance(*OWN, peer, advantage, config or PeerGuidance())
    assert result.dtype == np.float32
    return result.tolist()


# The formula ----------------------------------------------------------------------------------------------------------


def test_a_chunks_log_ratio_is_in_equal_parts_on_our_tokens_of_it():
    # abc: -2.5 + 3 = .5, a quarter each; de: -.75 + .5 = -.25; end: -.75 + .25 = -.5. Half of each.
    assert guidance(THEIRS, 2.0) == [0.125, 0.125, -0.125, -0.25]
    assert guidance(THEIRS, -2.0) == [0.125, 0.125, -0.125, -0.25]
    assert guidance(THEIRS, 2.0, PeerGuidance(weight=1.0)) == [0.25, 0.25, -0.25, -0.5]


def test_no_token_differs_by_more_than_the_bound_of_its_rollouts_advantage():
    assert guidance(THEIRS, 0.25) == [0.125, 0.125, -0.125, -0.125]
    assert guidance(THEIRS, -0.125) == [0.0625, 0.0625, -0.0625, -0.0625]
    assert guidance(THEIRS, 1.0, PeerGuidance(bound=0.125)) == [0.125, 0.125, -0.125, -0.125]


def test_where_the_reward_says_nothing_the_peer_does_not_either():
    assert guidance(THEIRS, 0.0) == [0.0] * 4
    assert guidance(THEIRS, 1.0, PeerGuidance(bound=0.0)) == [0.0] * 4


def test_an_outrageous_token_says_no_more_than_a_clear_one():
    peer = scores([-40.0, -0.125, -0.125, -9.0], [3, 1, 1, 0])
    assert guidance(peer, 9.0) == [-0.5, -0.5, 0.125, -0.5]
    assert guidance(peer, 9.0, PeerGuidance(clip=0.125)) == [-0.0625, -0.0625, 0.0625, -0.0625]


def test_an_end_that_only_one_side_has_is_left_out():
    assert guidance(scores([-2.5, -0.25, -0.5], [3, 1, 1]), 2.0) == [0.125, 0.125, -0.125, 0.0]


@pytest.mark.parametrize(
    "peer",
    [
        scores([-1.0, -1.0], [2, 2]),  # of another text
        scores([-1.0, -1.0], [5]),
        scores([-1.0, -1.0, -1.0], [6, -1, 0]),
        scores([float("nan"), -1.0], [3, 2]),
        scores([-float("inf"), -1.0], [3, 2]),
        scores([], []),
    ],
)
def test_scores_that_are_not_of_the_text_say_nothing(peer: PeerScores):
    assert guidance(peer, 1.0) == [0.0] * 4


def test_parts_add_up_to_the_chunks():
    ratios = chunk_log_ratios(*OWN, THEIRS.logprobs, THEIRS.byte_lengths)
    spread = spread_chunk_log_ratios(*OWN, THEIRS.logprobs, THEIRS.byte_lengths)
    assert ratios.tolist() == [-0.5, 0.25, 0.5]
    assert spread.tolist() == [-0.25, -0.25, 0.25, 0.5]


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4),
    st.floats(-5, 5, width=32),
    st.floats(0, 1),
    st.floats(0.01, 100),
    st.floats(0.01, 100),
)
def test_whatever_a_peer_says_no_advantage_gets_another_sign(
    claimed: list[float], advantage: float, bound: float, weight: float, clip: float
):
    config = PeerGuidance(bound=bound, weight=weight, clip=clip)
    added = token_guidance(*OWN, scores(claimed, [3, 1, 1, 0]), advantage, config)
    guided = np.float32(advantage) + added
    assert (np.abs(added) <= np.float32(bound * abs(advantage))).all()
    assert set(np.sign(guided)) <= {np.sign(np.float32(advantage)), 0.0}
    if bound < 0.99 and abs(advantage) > 1e-30:
        assert (guided != 0).all()


def test_metrics_are_of_own_rollouts_and_guided_tokens():
    some = np.array([0.5, -0.25], np.float32)
    assert guidance_metrics([some, None, np.zeros(1, np.float32), None]) == {"guided_share": 0.5, "guidance": 0.25}
    assert guidance_metrics([None]) == {"guided_share": 0.0}
    assert guidance_metrics([]) == {}


# Rows -----------------------------------------------------------------------------------------------------------------


def own_group(*texts: str, rewards: list[float], unscored: int = -1, value: float = 0.5) -> Experience:
    """Tokens are bytes, each sampled with log-probability -0.5."""
    rollouts = [rollout(text) for text in texts]
    return Experience(
        id=GroupId("g"),
        group=group(*rollouts),
        task=task(),
        rewards=np.array(rewards, np.float32),
        scored=np.array([i != unscored for i in range(len(texts))]),
        own=True,
        value=value,
        version=PolicyVersion(1),
        arrived_at=0.0,
    )


def build(experience: Experience, config: GuidanceConfig) -> RowPlan:
    return build_rows(
        [experience], Characters(), SpoAdvantage(), ReceiverBaseline(), config, LearnerConfig(), PolicyVersion(1)
    )


#: Of "ok": twice as likely, then a nat less; of its end: as likely as to us.
VIEW = scores([-0.5 + np.log(2), -1.5, -0.5], [1, 1, 0])


def test_a_row_is_guided_by_what_was_said_of_it_within_its_normalised_advantage():
    experience = replace(own_group("no", "ok", "eh", rewards=[0, 1, 0], unscored=0), guidance=(None, VIEW, None))
    plan = build(experience, PeerGuidance(weight=1.0, clip=10.0, bound=0.75))
    right, wrong = plan.rows
    # +-.5, whitened over 6 tokens: A = sqrt(5 / 6); the bound .75 A = .685 is between log 2 = .693 and nothing
    assert right.advantage == pytest.approx(np.sqrt(5 / 6))
    assert right.guidance is not None
    assert right.guidance.tolist() == pytest.approx([0.75 * np.sqrt(5 / 6), -0.75 * np.sqrt(5 / 6), 0.0])
    assert wrong.guidance is None
    assert plan.metrics["guided_share"] == 0.5
    assert plan.metrics["guidance"] == pytest.approx(np.sqrt(5 / 6) / 2)


def test_switched_off_nobody_is_listened_to():
    asked, plain = own_group("ok", "no", rewards=[1, 0]), own_group("ok", "no", rewards=[1, 0])
    off, on = build(replace(asked, guidance=(VIEW, VIEW)), NoGuidance()), build(plain, PeerGuidance())
    assert [row.guidance for row in (*off.rows, *on.rows)] == [None] * 4
    assert "guided_share" not in off.metrics
    assert on.metrics == off.metrics | {"guided_share": 0.0}


# Batch and loss -------------------------------------------------------------------------------------------------------


def make_row(advantage: float, added: list[float] | None, *, own: bool = True, length: int = 3) -> TokenRow:
    word, lengths = np.full(length, -1.5, np.float32), np.ones(length, np.int32)
    return TokenRow(
        prompt_ids=np.array([1], np.int32),
        response_ids=np.full(length, 2, np.int32),
        byte_lengths=lengths,
        behaviour=word if own else None,
        peer=None if own else PeerTokens(logprobs=word, byte_lengths=lengths),
        advantage=advantage,
        reward=1.0,
        own=own,
        origin=PeerId("p"),
        staleness=0,
        truncated=False,
        guidance=None if added is None else np.array(added, np.float32),
    )


ROWS = [
    make_row(1.0, [0.25, -0.5, 0.0, 0.125], length=4),
    make_row(-0.5, [-0.25, 0.125, 0.0]),
    make_row(2.0, None, own=False, length=2),
    make_row(0.75, None, length=1),
]
COUNTS = Denominators(tokens=10, samples=4)


def loss_of(rows: list[TokenRow], logp: torch.Tensor, objective: ObjectiveConfig) -> tuple[torch.Tensor, torch.Tensor]:
    (micro,) = pack(rows, 1000)
    logp = logp.clone().requires_grad_()
    loss, _ = micro_batch_loss(micro, logp, None, objective, ReceiverBaseline(), LearnerConfig(), COUNTS)
    return loss.detach(), torch.autograd.grad(loss, logp)[0]


LOGP = torch.tensor([-1.25, -1.5, -2.0, -1.0, -1.5, -1.75, -1.25, -0.5, -1.0, -1.5])


def test_a_batch_has_each_tokens_guidance_and_none_in_rows_without():
    (micro,) = pack(ROWS, 1000)
    assert micro.rows == tuple(ROWS)
    assert micro.guidance.tolist() == [0.25, -0.5, 0.0, 0.125, -0.25, 0.125, 0.0, 0.0, 0.0, 0.0]
    assert micro.guidance.dtype == torch.float32
    assert micro.to("meta").guidance.is_meta


@pytest.mark.parametrize("objective", [Reinforce(), DppoTv()])
def test_the_loss_is_the_formulas_with_guided_advantages(objective: ObjectiveConfig):
    logp, mu = LOGP.double().numpy(), -1.5
    advantage = np.array([1.25, 0.5, 1.0, 1.125, -0.75, -0.375, -0.5, 2.0, 2.0, 0.75])
    own = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 1], dtype=bool)
    log_rho = np.where(own, logp - mu, 0.0)
    pulled = 0.0
    weight = np.ones(10)
    if isinstance(objective, DppoTv):
        weight = np.minimum(np.exp(log_rho), 2.0)
        moved = np.where(own, np.exp(logp) - np.exp(mu), 0.0)
        weight[((advantage > 0) & (moved > 0.2)) | ((advantage < 0) & (moved < -0.2))] = 0.0
        pulled = 1e-3 * log_rho**2
    loss, gradient = loss_of(ROWS, LOGP, objective)
    assert loss.item() == pytest.approx(float((pulled - weight * advantage * logp).sum()) / 10, rel=1e-6)
    pull = 2e-3 * log_rho if isinstance(objective, DppoTv) else 0.0
    np.testing.assert_allclose(gradient.numpy(), (pull - weight * advantage) / 10, rtol=1e-6)


@pytest.mark.parametrize("objective", [Reinforce(), DppoTv()])
def test_without_guidance_not_a_bit_differs(objective: ObjectiveConfig):
    """From what the loss was without any: a guidance of zeros is what a row without has."""
    plain = [replace(row, guidance=None) for row in ROWS]
    zeros = [replace(row, guidance=np.zeros(len(row.response_ids), np.float32)) for row in ROWS]
    (a, ga), (b, gb) = loss_of(plain, LOGP, objective), loss_of(zeros, LOGP, objective)
    assert torch.equal(a, b)
    assert torch.equal(ga, gb)
    if isinstance(objective, Reinforce):
        each = torch.tensor([1.0] * 4 + [-0.5] * 3 + [2.0] * 2 + [0.75])
        assert torch.equal(ga, -each / COUNTS.tokens)


def test_a_response_without_an_end_is_guided_too():
    experience = own_group("ok", "no", rewards=[1, 0])
    cut = rollout("ok", FinishReason.LENGTH)
    experience = replace(
        experience,
        group=replace(experience.group, rollouts=(cut, experience.group.rollouts[1])),
        guidance=(scores([-1.0], [2]), None),
    )
    (row, _) = build(experience, PeerGuidance()).rows
    assert row.guidance is not None
    # as likely as our two tokens together
    assert row.guidance.tolist() == [0.0, 0.0]
    assert len(row.response_ids) == 2
