import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from node.algorithms import (
    ChunkAligned,
    Cispo,
    DecoupledPpo,
    DppoTv,
    ForeignConfig,
    Gspo,
    IcePop,
    LearnerConfig,
    M2po,
    ObjectiveConfig,
    PpoClip,
    ReceiverBaseline,
    RecOneside,
    Reinforce,
    Remix,
    SapoPlain,
    SeqTis,
    Vespo,
)
from node.rl.batch import MicroBatch, pack
from node.rl.loss import LossSums, batch_limit, finish_metrics, micro_batch_loss
from node.rl.objective import Denominators
from node.rl.samples import PeerTokens, TokenRow
from swarm.types import PeerId

OBJECTIVES = [
    DppoTv(),
    PpoClip(),
    DecoupledPpo(),
    Cispo(),
    Gspo(),
    Reinforce(),
    IcePop(),
    M2po(budget=0.25),
    Vespo(),
    SeqTis(),
    Remix(),
]
FOREIGN = [
    ReceiverBaseline(negatives=0.5),
    ChunkAligned(negatives=0.5, chunk_low=0.7, chunk_high=1.4),
    RecOneside(floor=0.1, negative_floor=0.2),
    SapoPlain(),
]
VOCABULARY = 11


def make_row(seed: int, *, own: bool, length: int, advantage: float) -> TokenRow:
    rng = np.random.default_rng(seed)
    byte_lengths = np.append(np.full(length - 1, 2), 0).astype(np.int32)
    peer_lengths = np.append(np.full(2 * (length - 1), 1), 0).astype(np.int32)
    return TokenRow(
        prompt_ids=rng.integers(VOCABULARY, size=1 + seed % 3).astype(np.int32),
        response_ids=rng.integers(VOCABULARY, size=length).astype(np.int32),
        byte_lengths=byte_lengths,
        behaviour=-rng.uniform(2.0, 2.8, size=length).astype(np.float32) if own else None,
        peer=None
        if own
        else PeerTokens(
            logprobs=-rng.uniform(1.0, 1.4, size=2 * length - 1).astype(np.float32), byte_lengths=peer_lengths
        ),
        advantage=advantage,
        reward=float(advantage > 0),
        own=own,
        origin=PeerId("p"),
        staleness=0,
        truncated=False,
    )


ROWS = [make_row(n, own=n % 3 != 0, length=2 + n % 4, advantage=(-1) ** n * (1 + n / 10)) for n in range(8)]
TOKENS = sum(len(row.response_ids) for row in ROWS)
DENOMINATORS = Denominators(tokens=TOKENS + 7, samples=len(ROWS) + 1)


def token_logp(micro: MicroBatch, table: torch.Tensor) -> torch.Tensor:
    """A bigram policy: the next token's log-probabilities depend on the token before."""
    logits = table[micro.input_ids.flatten()[micro.action_index]]
    return logits.log_softmax(-1).gather(-1, micro.targets[:, None])[:, 0]


def make_table(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def run(
    micros: list[MicroBatch], objective: ObjectiveConfig, foreign: ForeignConfig, *, first_update: bool
) -> tuple[float, torch.Tensor, list[LossSums]]:
    table, snapshot = make_table().requires_grad_(), make_table() + 0.1 * make_table(1)
    total, sums = 0.0, []
    limit = batch_limit(micros, [token_logp(micro, table).detach() for micro in micros], objective)
    for micro in micros:
        proximal = None if first_update else token_logp(micro, snapshot)
        logp = token_logp(micro, table)
        loss, part = micro_batch_loss(micro, logp, proximal, objective, foreign, LearnerConfig(), DENOMINATORS, limit)
        loss.backward()
        total += loss.item()
        sums.append(part)
    assert table.grad is not None
    return total, table.grad, sums


@pytest.mark.parametrize("first_update", [True, False])
@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_add_up_to_the_batch(objective: ObjectiveConfig, foreign: ForeignConfig, first_update: bool):
    whole, parts = pack(ROWS, 1000), [micro for n in range(0, 8, 2) for micro in pack(ROWS[n : n + 2], 1000)]
    assert [len(whole), len(parts)] == [1, 4]
    loss, gradient, sums = run(whole, objective, foreign, first_update=first_update)
    parts_loss, parts_gradient, parts_sums = run(parts, objective, foreign, first_update=first_update)
    assert parts_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(parts_gradient, gradient, rtol=1e-4, atol=1e-7)
    assert finish_metrics(parts_sums) == pytest.approx(finish_metrics(sums), rel=1e-5)


def test_on_policy_own_and_foreign_successes_are_reinforce():
    rows = [replace(row, advantage=abs(row.advantage)) for row in ROWS]
    (micro,) = pack(rows, 1000)
    logp = token_logp(micro, make_table()).requires_grad_()
    micro = replace(micro, behaviour=logp.detach().where(micro.own[micro.sample], 0.0))
    loss, _ = micro_batch_loss(micro, logp, None, DppoTv(), ReceiverBaseline(), LearnerConfig(), DENOMINATORS)
    (gradient,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(gradient, -micro.advantage[micro.sample] / DENOMINATORS.tokens)


def one_row(row: TokenRow, logp: list[float], foreign: ForeignConfig) -> tuple[torch.Tensor, dict[str, float]]:
    (micro,) = pack([row], 1000)
    values = torch.tensor(logp, requires_grad=True)
    loss, sums = micro_batch_loss(
        micro, values, None, DppoTv(), foreign, LearnerConfig(opsm_delta=0.5), Denominators(tokens=1, samples=1)
    )
    return torch.autograd.grad(loss, values)[0], finish_metrics([sums])


def test_a_negative_that_drifted_is_vetoed_whole():
    row = replace(make_row(1, own=True, length=2, advantage=-1.0), behaviour=np.array([-1, -2], dtype=np.float32))
    gradient, metrics = one_row(row, [-1.2, -3.2], ReceiverBaseline())
    assert gradient.tolist() == [0.0, 0.0]
    assert (metrics["opsm_share"], metrics["masked_share"]) == (1.0, 1.0)
    gradient, metrics = one_row(replace(row, advantage=1.0), [-1.2, -3.2], ReceiverBaseline())
    assert (gradient < 0).all()
    assert (metrics["opsm_share"], metrics["masked_share"]) == (0.0, 0.0)


def test_a_peers_rollout_is_gated_by_its_byte_normalised_ratio():
    row = replace(
        make_row(1, own=False, length=2, advantage=1.0),
        byte_lengths=np.array([8, 0], dtype=np.int32),
        peer=PeerTokens(
            logprobs=np.array([-0.5, -0.25, -0.25], dtype=np.float32), byte_lengths=np.array([5, 3, 0], dtype=np.int32)
        ),
    )
    # log pi - log mu = -1.2 + 1 = -.2 over 8 bytes: s = exp(-.1) at 4 bytes a token.
    gradient, metrics = one_row(row, [-1.0, -0.2], RecOneside())
    assert metrics["foreign_ratio"] == pytest.approx(math.exp(-0.1))
    assert gradient.tolist() == pytest.approx([-math.exp(-0.2)] * 2)
    gradient, metrics = one_row(row, [-2.6, -0.2], RecOneside())
    assert gradient.tolist() == [0.0, 0.0]
    assert metrics["foreign_masked_share"] == 1.0


def test_every_token_of_a_peers_rollout_has_the_ratio_of_its_chunk():
    # We: aaaa | bb | cc | end; the peer: aa aa | bbcc | end. Chunks of 4, 4 and 0 bytes.
    row = replace(
        make_row(1, own=False, length=4, advantage=1.0),
        byte_lengths=np.array([4, 2, 2, 0], dtype=np.int32),
        peer=PeerTokens(
            logprobs=np.array([-0.5, -0.5, -1.0, -0.25], dtype=np.float32),
            byte_lengths=np.array([2, 2, 4, 0], dtype=np.int32),
        ),
    )
    # log pi - log mu: 0 in the first chunk, -1 + 1 = 0 in the second, of two tokens; less than log .5 in the last.
    gradient, metrics = one_row(row, [-1.0, -0.8, -0.2, -1.0], ChunkAligned())
    assert gradient.tolist() == [-1.0, -1.0, -1.0, 0.0]
    assert metrics["foreign_masked_share"] == 0.25
    gradient, _ = one_row(row, [-1.0, -1.6, -0.2, -0.25], ChunkAligned())
    assert gradient.tolist() == [-1.0, 0.0, 0.0, -1.0]
    assert one_row(row, [-1.0, -1.6, -0.2, -0.25], ReceiverBaseline())[0].tolist() == [-1.0] * 4


def test_metrics_of_known_log_ratios():
    row = replace(make_row(1, own=True, length=2, advantage=1.0), behaviour=np.array([-1, -2], dtype=np.float32))
    _, metrics = one_row(row, [-1.0 + math.log(3), -2.0], ReceiverBaseline())
    assert metrics["log_rho_mean"] == pytest.approx(math.log(3) / 2)
    assert metrics["log_rho_p99"] == pytest.approx(0.99 * math.log(3))
    assert metrics["ess_share"] == pytest.approx((3 + 1) ** 2 / (2 * (9 + 1)))
    assert metrics["entropy"] == pytest.approx((3.0 - math.log(3)) / 2)
    assert metrics["masked_share"] == 0.5
    assert (metrics["own_tokens"], metrics["foreign_tokens"]) == (2.0, 0.0)
    assert "foreign_ratio" not in metrics


def test_what_an_objective_has_to_know_of_the_batch_is_of_own_rows_only():
    """Own: log rho = .3, beyond the budget. The peer's tokens have hardly any of their probability to lose."""
    own = replace(make_row(1, own=True, length=1, advantage=1.0), behaviour=np.array([-1.3], dtype=np.float32))
    peers = make_row(2, own=False, length=9, advantage=-1.0)
    micros = pack([own, peers], 1)
    logps = [torch.full((len(micro.sample),), -1.0 if micro.rows[0].own else -0.01) for micro in micros]
    assert batch_limit(micros, logps, M2po(budget=0.04)) == pytest.approx(0.09)
    assert batch_limit(micros, logps, M2po(budget=0.1)) == math.inf
    assert batch_limit(micros, logps, DppoTv()) is None


@pytest.mark.parametrize(("drift", "share"), [(math.log(3), 0.8), (0.0, 1.0), (900.0, 0.5)])
@pytest.mark.parametrize("together", [True, False])
def test_the_effective_sample_size_of_whole_rollouts(drift: float, share: float, together: bool):
    """Two rollouts of weight exp(drift), one token after the other, and 1; a third is a peer's. The share is
    (w + 1)^2 / (2 (w^2 + 1))."""
    length = 60
    drifted, fresh = (
        replace(make_row(n, own=True, length=length, advantage=1.0), behaviour=np.full(length, -40.0, dtype=np.float32))
        for n in (1, 2)
    )
    peers = make_row(3, own=False, length=2, advantage=1.0)
    sums = []
    for micro in pack([drifted, fresh, peers], 1000 if together else 1):
        moved = torch.tensor([drift / length if row is drifted else 0.0 for row in micro.rows])
        logp = torch.full((len(micro.sample),), -40.0) + moved[micro.sample]
        arguments = (DppoTv(), ReceiverBaseline(), LearnerConfig(), DENOMINATORS)
        sums.append(micro_batch_loss(micro, logp, None, *arguments)[1])
    assert finish_metrics(sums)["sequence_ess_share"] == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("own", [True, False])
def test_one_side_alone_has_a_finite_loss_and_gradient(own: bool):
    for objective in OBJECTIVES:
        for foreign in FOREIGN:
            loss, gradient, sums = run(
                pack([row for row in ROWS if row.own is own], 1000), objective, foreign, first_update=False
            )
            assert math.isfinite(loss)
            assert gradient.isfinite().all()
            assert ("log_rho_mean" in finish_metrics(sums)) is own


def test_metrics_of_nothing():
    assert finish_metrics([]) == {"loss": 0.0, "own_tokens": 0.0, "foreign_tokens": 0.0}
