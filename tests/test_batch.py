import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.rl.batch import pack
from node.rl.samples import PeerTokens, TokenRow
from swarm.types import PeerId


def make_row(prompt: list[int], response: list[int], *, own: bool = True, advantage: float = 1.0) -> TokenRow:
    n = len(response)
    logprobs, byte_lengths = -np.arange(1, n + 1, dtype=np.float32), np.ones(n, dtype=np.int32)
    return TokenRow(
        prompt_ids=np.array(prompt, dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
        byte_lengths=byte_lengths,
        behaviour=logprobs if own else None,
        peer=None if own else PeerTokens(logprobs=logprobs, byte_lengths=byte_lengths),
        advantage=advantage,
        reward=1.0,
        own=own,
        origin=PeerId("p"),
        staleness=0,
        truncated=False,
    )


def test_tensors_of_two_rows():
    short, long = make_row([7, 8], [5, 6, 9]), make_row([1, 2, 3], [4, 5, 6, 7], own=False, advantage=-0.5)
    (micro,) = pack([short, long], 100)
    assert micro.rows == (long, short)
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7], [7, 8, 5, 6, 9, 0, 0]]
    assert micro.attention_mask.tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert micro.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2
    assert micro.action_index.tolist() == [2, 3, 4, 5, 8, 9, 10]
    assert micro.targets.tolist() == [4, 5, 6, 7, 5, 6, 9]
    assert micro.sample.tolist() == [0] * 4 + [1] * 3
    assert micro.behaviour.tolist() == [0] * 4 + [-1, -2, -3]
    assert micro.own.tolist() == [False, True]
    assert micro.advantage.tolist() == [-0.5, 1.0]
    assert micro.lengths.tolist() == [4, 3]
    assert {t.dtype for t in (micro.input_ids, micro.action_index, micro.targets, micro.sample)} == {torch.int64}
    assert micro.behaviour.dtype == micro.advantage.dtype == torch.float32


lengths = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=20)


@settings(deadline=None)
@given(lengths, st.integers(1, 120))
def test_every_row_once_within_the_budget(shapes: list[tuple[int, int]], budget: int):
    rows = [make_row([1] * p, [2] * length) for p, length in shapes]
    micros = pack(rows, budget)
    assert sorted(id(row) for micro in micros for row in micro.rows) == sorted(map(id, rows))
    for micro in micros:
        assert micro.input_ids.numel() <= budget or len(micro.rows) == 1
        assert micro.input_ids.shape[1] == max(map(len, micro.rows))
    widths = [micro.input_ids.shape[1] for micro in micros]
    assert widths == sorted(widths, reverse=True)


@settings(deadline=None)
@given(lengths.filter(bool))
def test_each_action_is_predicted_by_the_position_before_it(shapes: list[tuple[int, int]]):
    rng = np.random.default_rng(0)
    rows = [make_row(rng.integers(9, size=p).tolist(), rng.integers(9, size=n).tolist()) for p, n in shapes]
    for micro in pack(rows, 60):
        width = micro.input_ids.shape[1]
        torch.testing.assert_close(micro.input_ids.flatten()[micro.action_index + 1], micro.targets)
        torch.testing.assert_close(micro.action_index // width, micro.sample)
        assert micro.attention_mask.flatten()[micro.action_index + 1].all()


def test_equal_lengths_keep_their_order():
    rows = [make_row([1], [n, n]) for n in range(5)]
    assert [int(row.response_ids[0]) for micro in pack(rows, 6) for row in micro.rows] == [0, 1, 2, 3, 4]


def test_no_rows_no_batches():
    assert pack([], 10) == []


def test_moving_keeps_everything():
    (micro,) = pack([make_row([7, 8], [5, 6])], 100)
    moved = micro.to("meta")
    assert moved.input_ids.is_meta
    assert moved.own.is_meta
    assert moved.rows is micro.rows


def test_a_row_needs_a_prompt():
    with pytest.raises(ValueError, match="without prompt"):
        pack([make_row([], [1])], 10)
