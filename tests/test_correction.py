import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.rl.correction import (
    capped_weight,
    chunk_log_ratios,
    effective_sample_share,
    log_ratio,
    one_sided_keep,
    opsm_keep,
    outward,
    second_moment_limit,
    segment_mean,
    segment_sum,
    sequence_ratio,
    token_chunk_log_ratios,
    tv_keep,
)


def test_log_ratio_is_clamped_and_passes_its_gradient_inside():
    logp = torch.tensor([-1.0, -50.0, -0.1], requires_grad=True)
    ratio = log_ratio(logp, torch.tensor([-1.5, -0.1, -50.0]))
    ratio.sum().backward()
    assert ratio.tolist() == [0.5, -20.0, 20.0]
    assert logp.grad is not None
    assert logp.grad.tolist() == [1.0, 0.0, 0.0]


def test_capped_weight_has_no_gradient():
    weight = capped_weight(torch.tensor([0.0, math.log(3.0), math.log(0.5)], requires_grad=True), cap=2.0)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, torch.tensor([1.0, 2.0, 0.5]))


@pytest.mark.parametrize(
    ("advantage", "moved", "keep"),
    [
        (1.0, 0.3, False),
        (1.0, 0.1, True),
        (1.0, -0.1, True),
        (1.0, -0.3, True),
        (-1.0, 0.3, True),
        (-1.0, 0.1, True),
        (-1.0, -0.1, True),
        (-1.0, -0.3, False),
        (0.0, 0.3, True),
        (0.0, -0.3, True),
    ],
)
def test_total_variation_mask(advantage: float, moved: float, keep: bool):
    behaviour = torch.tensor([0.5])
    kept = tv_keep((behaviour + moved).log(), behaviour.log(), torch.tensor([advantage]), delta=0.2)
    assert kept.tolist() == [keep]


def test_total_variation_lets_rare_tokens_move_where_a_ratio_clip_would_not():
    before, after, advantage = torch.tensor([1e-4]).log(), torch.tensor([3e-4]).log(), torch.tensor([1.0])
    assert tv_keep(after, before, advantage, delta=0.2).tolist() == [True]
    assert one_sided_keep(after - before, advantage, 0.2, 0.28).tolist() == [False]


@pytest.mark.parametrize(
    ("advantage", "ratio", "keep"),
    [(1.0, 1.27, True), (1.0, 1.29, False), (1.0, 0.1, True), (-1.0, 0.81, True), (-1.0, 0.79, False), (-1.0, 9, True)],
)
def test_one_sided_mask(advantage: float, ratio: float, keep: bool):
    assert one_sided_keep(torch.tensor([ratio]).log(), torch.tensor([advantage]), 0.2, 0.28).tolist() == [keep]


def test_segment_mean():
    values, sample = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2])
    assert segment_mean(values, sample, torch.tensor([2, 4, 1])).tolist() == [2.0, 0.0, 5.0]
    assert segment_sum(values, sample, 3).tolist() == [4.0, 0.0, 5.0]


def test_outward_is_where_the_advantage_pushed():
    log_rho, advantage = torch.tensor([0.1, -0.1, 0.1, -0.1, 0.0, 0.1]), torch.tensor([1.0, 1, -1, -1, 1, 0])
    assert outward(log_rho, advantage).tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("budget", "limit"),
    [(0.9, 1.0), (1.0, 4.0), (2.4, 4.0), (2.5, 9.0), (14 / 3 - 1e-6, 9.0), (14 / 3 + 1e-6, math.inf)],
)
def test_the_second_moment_limit_is_the_first_outward_square_that_has_to_go(budget: float, limit: float):
    log_rho, advantage = torch.tensor([3.0, 5.0, -2.0, 1.0, -7.0]), torch.tensor([1.0, -1.0, -1.0, 0.5, 2.0])
    assert second_moment_limit(log_rho, advantage, budget) == limit


def test_a_batch_that_has_not_moved_has_no_second_moment_limit():
    assert second_moment_limit(torch.zeros(3), torch.ones(3), 1e-9) == math.inf
    assert second_moment_limit(torch.zeros(0), torch.ones(0), 1e-9) == math.inf


def test_opsm_vetoes_negatives_that_drifted():
    behaviour, sample = torch.zeros(6), torch.tensor([0, 0, 1, 1, 2, 2])
    logp = torch.tensor([-0.9, -0.3, -0.5, -0.3, -9.0, -9.0])
    advantage = torch.tensor([-1.0, -1.0, 1.0])
    keep = opsm_keep(logp, behaviour, advantage, sample, torch.tensor([2, 2, 2]), delta=0.5)
    assert keep.tolist() == [False, True, True]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(-40, 0), st.floats(-40, 0)), min_size=1, max_size=8))
def test_opsm_never_vetoes_what_is_not_negative(rows: list[tuple[float, float, float]]):
    advantage, logp, behaviour = (torch.tensor(column) for column in zip(*rows, strict=True))
    n = len(rows)
    keep = opsm_keep(logp, behaviour, advantage, torch.arange(n), torch.ones(n, dtype=torch.int64), delta=0.5)
    assert keep.all()


def test_sequence_ratio_is_a_geometric_mean_per_nominal_token():
    assert sequence_ratio(-1.0, 8, 4.0) == pytest.approx(math.exp(-0.5))
    assert sequence_ratio(0.0, 8, 4.0) == 1.0
    assert sequence_ratio(-0.5, 0, 4.0) == pytest.approx(math.exp(-2.0))
    assert sequence_ratio(-1e9, 1, 4.0) == pytest.approx(math.exp(-20))


def chunks(own: list[tuple[float, int]], peer: list[tuple[float, int]]) -> list[float]:
    columns = [np.array(column) for tokens in (own, peer) for column in zip(*tokens, strict=True)]
    return chunk_log_ratios(*columns).tolist()


def test_chunks_end_where_both_tokenisations_do():
    own = [(-1.0, 2), (-2.0, 1), (-3.0, 2), (-0.5, 0)]
    peer = [(-4.0, 3), (-1.0, 1), (-1.0, 1), (-0.25, 0)]
    assert chunks(own, peer) == pytest.approx([-3 + 4, -3 + 2, -0.5 + 0.25])


def test_the_same_tokenisation_gives_token_ratios():
    own, peer = [(-1.0, 1), (-2.0, 3), (-0.5, 0)], [(-1.5, 1), (-1.0, 3), (-0.5, 0)]
    assert chunks(own, peer) == pytest.approx([0.5, -1.0, 0.0])


def test_a_token_without_bytes_belongs_to_the_bytes_that_it_begins():
    split_character = [(-1.0, 1), (-0.5, 0), (-0.25, 2), (-0.1, 0)]
    whole_character = [(-1.0, 1), (-2.0, 2), (-0.1, 0)]
    assert chunks(split_character, whole_character) == pytest.approx([0.0, -0.75 + 2.0, 0.0])


def test_an_end_that_only_one_side_has_is_left_out():
    assert chunks([(-1.0, 2), (-0.5, 0)], [(-3.0, 2)]) == pytest.approx([2.0])
    assert chunks([(-1.0, 2)], [(-3.0, 2), (-0.5, 0)]) == pytest.approx([2.0])


def test_an_empty_text_is_its_end():
    assert chunks([(-1.0, 0)], [(-3.0, 0)]) == pytest.approx([2.0])


def test_a_token_has_the_ratio_of_its_chunk():
    own = [(-1.0, 2), (-2.0, 1), (-0.25, 0), (-3.0, 2), (-0.5, 0)]
    peer = [(-4.0, 3), (-1.0, 1), (-1.0, 1), (-0.25, 0)]
    columns = [np.array(column) for tokens in (own, peer) for column in zip(*tokens, strict=True)]
    by_chunk, by_token = token_chunk_log_ratios(*columns)
    assert by_chunk.tolist() == chunks(own, peer) == [1.0, -1.25, -0.25]
    assert by_token.tolist() == [1.0, 1.0, -1.25, -1.25, -0.25]


def test_a_token_of_an_end_that_the_peer_does_not_have_has_no_ratio():
    columns = np.array([-1.0, -0.5]), np.array([2, 0]), np.array([-3.0]), np.array([2])
    assert [ratios.tolist() for ratios in token_chunk_log_ratios(*columns)] == [[2.0], [2.0, 0.0]]
    assert token_chunk_log_ratios(*columns[2:], *columns[:2])[1].tolist() == [-2.0]


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="own tokens cover 2 bytes, the peer's 3"):
        chunks([(-1.0, 2)], [(-1.0, 3)])


@settings(deadline=None)
@given(st.data())
def test_chunks_lose_nothing_and_retokenising_changes_no_sequence_ratio(data: st.DataObject):
    num_bytes = data.draw(st.integers(1, 30))

    def tokenise() -> np.ndarray:
        cuts = data.draw(st.sets(st.integers(1, num_bytes)))
        return np.diff([0, *sorted(cuts | {num_bytes})], append=num_bytes)[: len(cuts | {num_bytes})]

    own, peer, again = (np.append(tokenise(), 0) for _ in range(3))
    own_logp = -np.linspace(0.1, 1.0, len(own))
    totals = []
    for lengths in (peer, again):
        # Two tokenisations of the same text to which the peer gives the same total log-probability.
        logp = np.full(len(lengths), -7.0 / len(lengths))
        totals.append(chunk_log_ratios(own_logp, own, logp, lengths).sum())
    assert totals[0] == pytest.approx(own_logp.sum() + 7.0)
    assert sequence_ratio(totals[0], num_bytes, 4) == pytest.approx(sequence_ratio(totals[1], num_bytes, 4))


def test_effective_sample_share():
    assert effective_sample_share(4.0, 4.0, 4) == 1.0
    assert effective_sample_share(1.0, 1.0, 4) == 0.25
