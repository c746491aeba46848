import numpy as np
import pytest
import torch

from node.algorithms import ChunkAligned, ForeignConfig, ReceiverBaseline, RecOneside, SapoPlain
from node.experience import Experience
from node.rl.foreign import FOREIGN, PeerRatios
from node.rl.objective import Denominators, TokenBatch
from swarm.types import GroupId, PeerId, PolicyVersion, RolloutGroup, SamplingParams, Task, TaskRef

RULES = [ReceiverBaseline(), ChunkAligned(), RecOneside(), SapoPlain()]


def make_experience(rewards: list[float], scored: list[bool] | None = None) -> Experience:
    ref = TaskRef(source="a", version="1", config="{}", seed=0, index=0)
    return Experience(
        id=GroupId("00"),
        group=RolloutGroup(
            swarm="s",
            origin=PeerId("p"),
            task=ref,
            rollouts=(),
            model="m",
            tokenizer="t",
            sampling=SamplingParams(),
            created_at=0,
        ),
        task=Task(ref=ref, prompt="q", answer="", difficulty="{}"),
        rewards=np.array(rewards, dtype=np.float32),
        scored=np.array(scored or [True] * len(rewards)),
        own=False,
        value=0.5,
        version=PolicyVersion(0),
        arrived_at=0.0,
    )


def demand(config: ForeignConfig, rewards: list[float], value: float, scored: list[bool] | None = None) -> float:
    return FOREIGN[type(config)].demand(make_experience(rewards, scored), value, config)


def advantages(config: ForeignConfig, rewards: list[float], value: float, scale: float = 1.0) -> list[float]:
    array = np.array(rewards)
    return FOREIGN[type(config)].advantages(array, value, float(array.mean()), scale, config).tolist()


def loss_and_gradient(
    config: ForeignConfig,
    advantage: list[float],
    ratio: list[float],
    s: list[float] | None = None,
    chunk: list[float] | None = None,
) -> tuple[list[float], list[float], list[bool]]:
    """One token a rollout, of probability 0.5 now and 0.5 / ratio at the start of the step; 10 tokens in all. `chunk`:
    how much likelier the token's chunk is to us than to the peer."""
    n = len(advantage)
    logp = torch.full((n,), 0.5, dtype=torch.float64).log().requires_grad_()
    batch = TokenBatch(
        logp=logp,
        behaviour=torch.full((n,), float("nan")),
        proximal=logp.detach() - torch.tensor(ratio, dtype=torch.float64).log(),
        advantage=torch.tensor(advantage, dtype=torch.float64),
        sample=torch.arange(n),
        lengths=torch.ones(n, dtype=torch.int64),
    )
    peers = PeerRatios(
        sequence=torch.tensor(s or [1.0] * n, dtype=torch.float64),
        chunk=torch.tensor(chunk or [1.0] * n, dtype=torch.float64).log(),
    )
    ratios = None if s is None and chunk is None else peers
    loss = FOREIGN[type(config)].token_loss(batch, ratios, config, Denominators(tokens=10, samples=n))
    loss.per_token.sum().backward()
    assert logp.grad is not None
    return loss.per_token.tolist(), logp.grad.tolist(), loss.kept.tolist()


@pytest.mark.parametrize("config", [ReceiverBaseline(), RecOneside()])
def test_an_experts_group_on_what_we_fail_at_is_worth_one(config: ForeignConfig):
    assert advantages(config, [1, 1, 1, 1], value=0.0) == [1, 1, 1, 1]
    assert advantages(config, [1, 1, 1, 1], value=0.75) == [0.25] * 4


@pytest.mark.parametrize("config", [ReceiverBaseline(), RecOneside()])
def test_an_all_wrong_group_is_worth_nothing(config: ForeignConfig):
    assert advantages(config, [0, 0, 0], value=0.9) == [0, 0, 0]


def test_the_baseline_is_never_above_the_peers_mean():
    assert advantages(RecOneside(), [1, 0, 0, 0], value=0.9) == [0.75, -0.25, -0.25, -0.25]
    assert advantages(RecOneside(), [1, 0, 0, 0], value=0.1) == pytest.approx([0.9, -0.1, -0.1, -0.1])


def test_advantages_are_in_our_own_scale_and_clamped():
    assert advantages(RecOneside(), [1, 0], value=0.5, scale=0.25) == [2, -2]
    assert advantages(RecOneside(), [1, 0], value=0.5, scale=1e-3) == [5, -5]


def test_the_receiver_learns_from_successes_only_unless_told():
    assert advantages(ReceiverBaseline(), [1, 0], value=0.5) == [0.5, 0]
    assert advantages(ReceiverBaseline(negatives=0.5), [1, 0], value=0.5) == [0.5, -0.25]


def test_sapo_is_normalised_in_the_peers_group():
    std = np.std([1, 0, 0, 0], ddof=1)
    assert advantages(SapoPlain(), [1, 0, 0, 0], value=0.0) == pytest.approx([0.75 / std] + [-0.25 / std] * 3)
    assert advantages(SapoPlain(), [1, 1], value=0.0) == [0, 0]


@pytest.mark.parametrize(
    ("rewards", "value", "expected"),
    [
        ([1, 1], 0.25, 0.75**2),
        ([1, 0], 0.25, 0.75**2),
        ([0, 0], 0.25, 0.0),
        ([1, 1], 1.0, 0.0),
        ([0.25, 0.25], 0.5, 0.0),
    ],
)
def test_the_receiver_wants_what_it_fails_at(rewards: list[float], value: float, expected: float):
    assert demand(ReceiverBaseline(), rewards, value) == pytest.approx(expected)


def test_demand_without_exponent_is_even():
    assert demand(ReceiverBaseline(demand=0), [1, 1], 0.9) == 1.0


def test_rec_wants_whatever_has_an_advantage():
    assert demand(RecOneside(), [1, 1], 0.5) == 1.0
    assert demand(RecOneside(), [0, 1], 0.5) == 1.0
    assert demand(RecOneside(), [0, 0], 0.5) == 0.0


def test_sapo_wants_groups_whose_rewards_differ():
    assert demand(SapoPlain(), [0, 1], 0.5) == 1.0
    assert demand(SapoPlain(), [1, 1], 0.0) == 0.0


@pytest.mark.parametrize("config", RULES)
def test_unscored_rollouts_are_no_evidence(config: ForeignConfig):
    assert demand(config, [0, 1], 0.5, scored=[True, False]) == 0.0
    assert demand(config, [0, 1], 0.5, scored=[False, False]) == 0.0


def test_equal_partial_rewards_are_equal_to_their_mean():
    assert demand(ReceiverBaseline(), [0.7] * 7, value=0.9) == 0.0


def test_the_receivers_loss_is_one_sided_around_our_own_snapshot():
    loss, gradient, kept = loss_and_gradient(
        ReceiverBaseline(negatives=1.0), [2, 2, 2, -1, -1], ratio=[1.27, 1.29, 0.1, 0.81, 0.79]
    )
    assert kept == [True, False, True, True, False]
    assert gradient == pytest.approx([-0.2, 0, -0.2, 0.1, 0])
    assert loss == pytest.approx([g * np.log(0.5) for g in gradient])


def test_the_receiver_does_not_ask_the_peers_likelihood():
    assert loss_and_gradient(ReceiverBaseline(), [1], [1], s=[0.0]) == loss_and_gradient(ReceiverBaseline(), [1], [1])


def test_chunks_that_are_too_unlikely_or_too_likely_relative_to_the_peer_are_masked():
    _, gradient, kept = loss_and_gradient(
        ChunkAligned(), [1] * 6, ratio=[1] * 6, chunk=[0.49, 0.51, 1.0, 4.9, 5.1, 1e30]
    )
    assert kept == [False, True, True, True, False, False]
    assert gradient == pytest.approx([0, -0.1, -0.1, -0.1, 0, 0])


def test_the_bounds_of_a_chunk_are_the_configured_ones():
    config = ChunkAligned(chunk_low=0.9, chunk_high=1.0)
    assert loss_and_gradient(config, [1] * 3, [1] * 3, chunk=[0.89, 0.91, 1.1])[2] == [False, True, False]
    assert loss_and_gradient(ChunkAligned(chunk_low=0.0), [1], [1], chunk=[1e-30])[2] == [True]


def test_a_peers_word_only_masks_and_the_rest_is_the_receivers():
    advantage, ratio = [2.0, 2.0, 2.0, -1.0, -1.0], [1.27, 1.29, 0.1, 0.81, 0.79]
    expected = loss_and_gradient(ReceiverBaseline(negatives=1.0), advantage, ratio)
    config = ChunkAligned(negatives=1.0)
    assert loss_and_gradient(config, advantage, ratio) == expected
    assert loss_and_gradient(config, advantage, ratio, chunk=[0.6, 1, 4, 2, 1]) == expected
    assert loss_and_gradient(config, advantage, ratio, s=[0.01] * 5) == expected


def test_a_chunk_aligned_receiver_wants_and_values_what_the_receiver_does():
    for rewards, value in (([1.0, 1.0], 0.25), ([1.0, 0.0], 0.25), ([0.0, 0.0], 0.25), ([1.0, 0.0], 0.9)):
        mine, plain = ChunkAligned(demand=3, negatives=0.5), ReceiverBaseline(demand=3, negatives=0.5)
        assert demand(mine, rewards, value) == demand(plain, rewards, value)
        assert advantages(mine, rewards, value, 0.5) == advantages(plain, rewards, value, 0.5)


def test_rec_attenuates_by_likelihood_and_never_weighs_up():
    _, gradient, kept = loss_and_gradient(
        RecOneside(), [1, 1, 1, 1, -1, -1], ratio=[1] * 6, s=[7.0, 1.0, 0.9, 0.49, 0.95, 0.85]
    )
    assert gradient == pytest.approx([-0.1, -0.1, -0.081, 0, 0.09025, 0])
    assert kept == [True, True, True, False, True, False]


def test_rec_without_a_likelihood_has_no_gate():
    assert loss_and_gradient(RecOneside(), [1, -1], [1, 1])[1] == pytest.approx([-0.1, 0.1])


def test_sapo_is_plain_ppo_around_our_own_snapshot():
    _, gradient, kept = loss_and_gradient(SapoPlain(), [1, 1, -1, -1], ratio=[1, 1.3, 0.9, 0.7])
    assert gradient == pytest.approx([-0.1, 0, 0.09, 0])
    assert kept == [True, False, True, False]


@pytest.mark.parametrize("config", RULES)
def test_on_the_first_update_the_gradient_is_reinforce(config: ForeignConfig):
    assert loss_and_gradient(config, [1.5, -0.5], [1, 1], s=[1, 1])[1] == pytest.approx([-0.15, 0.05])
