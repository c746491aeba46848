"""Peers' rollouts that are too unlikely to us: not trained on, counted, and nothing else changes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.algorithms import (
    AbsoluteGate,
    ChunkAligned,
    DppoTv,
    ForeignConfig,
    ForeignGateConfig,
    LearnerConfig,
    NoGate,
    OwnGate,
    ReceiverBaseline,
    RecOneside,
    RelativeGate,
    SapoPlain,
)
from node.rl.batch import MicroBatch, pack
from node.rl.gate import ForeignGate, Gated, GateMemory, threshold
from node.rl.loss import micro_batch_loss
from node.rl.objective import Denominators
from node.rl.samples import PeerTokens, TokenRow
from node.rl.surprise import bits_per_byte, peak_bits
from swarm.types import PeerId


def make_row(num_bytes: int, *, own: bool = False, length: int = 2) -> TokenRow:
    byte_lengths = np.array([num_bytes] + [0] * (length - 1), dtype=np.int32)
    word = np.full(length, -1.0, dtype=np.float32)
    return TokenRow(
        prompt_ids=np.array([1], dtype=np.int32),
        response_ids=np.array([2] * length, dtype=np.int32),
        byte_lengths=byte_lengths,
        behaviour=word if own else None,
        peer=None if own else PeerTokens(logprobs=word, byte_lengths=byte_lengths),
        advantage=1.0,
        reward=1.0,
        own=own,
        origin=PeerId("p"),
        staleness=0,
        truncated=False,
    )


def micro_of(*rows: TokenRow) -> MicroBatch:
    (micro,) = pack(rows, 1000)
    assert micro.rows == rows, "give the longest first"
    return micro


def logp_of(*bits: float, length: int = 2) -> torch.Tensor:
    """Of rows of `length` tokens, each row with so many bits, evenly."""
    return torch.tensor([-b * math.log(2) / length for b in bits for _ in range(length)])


class Steps:
    """Those of one node."""

    def __init__(self, config: ForeignGateConfig) -> None:
        self.config = config
        self.memory = GateMemory(config)

    def step(self, *parts: tuple[MicroBatch, torch.Tensor]) -> tuple[list[float], dict[str, float]]:
        """Advantages and metrics of a step on these micro-batches."""
        gate = ForeignGate(self.config, self.memory.threshold())
        gate.open()
        advantages = [a for micro, logp in parts for a in gate.apply(micro, logp).advantage.tolist()]
        gated = gate.close()
        self.memory.observe(gated.surprises)
        return advantages, gated.metrics


def step(steps: Steps, *bits: float) -> tuple[list[float], dict[str, float]]:
    """On peers' rows of one byte each."""
    return steps.step((micro_of(*[make_row(1)] * len(bits)), logp_of(*bits)))


def test_bits_per_byte_count_all_tokens_and_the_bytes_of_the_text():
    micro = micro_of(make_row(4, length=3), make_row(1), make_row(0, own=True))
    logp = torch.tensor([-3.0, -4.0, -1.0, -0.5, -0.25, -1.0, -2.0]) * math.log(2)
    assert bits_per_byte(micro, logp).tolist() == pytest.approx([8 / 4, 0.75, 3.0])


def test_the_least_likely_stretch_is_of_whole_tokens_and_of_one_row():
    row = replace(make_row(0, length=6), byte_lengths=np.array([1, 2, 1, 3, 1, 0], dtype=np.int32))
    other = make_row(1)
    bits = [1.0, 2.0, 4.0, 8.0, 1.0, 0.5, 32.0, 1.0]
    micro, logp = micro_of(row, other), -torch.tensor(bits) * math.log(2)

    assert peak_bits(micro, logp, 1).tolist() == pytest.approx([8.0, 33.0])  # longer than the window: by itself
    assert peak_bits(micro, logp, 4).tolist() == pytest.approx([4.0 + 8.0, 33.0])
    assert peak_bits(micro, logp, 5).tolist() == pytest.approx([4.0 + 8.0 + 1.0 + 0.5, 33.0])  # the end has no bytes
    assert peak_bits(micro, logp, 100).tolist() == pytest.approx([16.5, 33.0])


@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.floats(0, 30)), min_size=1, max_size=12), min_size=1, max_size=4
    ),
    window=st.integers(1, 20),
)
def test_it_is_the_largest_sum_that_fits_into_the_window(rows: list[list[tuple[int, float]]], window: int):
    rows.sort(key=len, reverse=True)
    micro = micro_of(
        *(replace(make_row(0, length=len(row)), byte_lengths=np.array([n for n, _ in row], np.int32)) for row in rows)
    )
    logp = -torch.tensor([bits for row in rows for _, bits in row], dtype=torch.float64) * math.log(2)

    def fits(stretch: list[tuple[int, float]]) -> bool:
        return len(stretch) == 1 or sum(n for n, _ in stretch) <= window

    expected = [
        max(
            sum(bits for _, bits in row[i:j])
            for i in range(len(row))
            for j in range(i + 1, len(row) + 1)
            if fits(row[i:j])
        )
        for row in rows
    ]
    assert peak_bits(micro, logp, window).tolist() == pytest.approx(expected)


def test_rows_above_the_absolute_threshold_teach_nothing():
    gate = Steps(AbsoluteGate(max_bits_per_byte=3.0))
    for _ in range(2):
        advantages, metrics = step(gate, 2.75, 3.25, 1.0, 9.0)
        assert advantages == [1.0, 0.0, 1.0, 0.0]
        assert metrics == pytest.approx({"foreign_bits_per_byte": 4.0, "foreign_gated_share": 0.5, "foreign_gate": 3.0})


def test_own_rows_are_never_gated():
    gate = Steps(AbsoluteGate(max_bits_per_byte=3.0))
    advantages, metrics = gate.step((micro_of(make_row(1, own=True), make_row(1)), logp_of(9.0, 9.0)))
    assert advantages == [1.0, 0.0]
    assert metrics == pytest.approx({"foreign_bits_per_byte": 9.0, "foreign_gated_share": 1.0, "foreign_gate": 3.0})


def test_what_peers_send_does_not_move_the_threshold_that_is_our_own():
    gate = Steps(OwnGate(window_bytes=16, quantile=0.5, slack=2.0, window=4))
    seen = []
    for own in (1.0, 2.0, 6.0):
        micro = micro_of(make_row(1, own=True), make_row(1, own=True), make_row(1), make_row(1))
        advantages, metrics = gate.step((micro, logp_of(own, own, 2.9, 900.0)))
        seen.append((advantages, metrics.get("foreign_gate")))

    assert seen == [
        ([1.0, 1.0, 0.0, 0.0], 0.0),  # nothing is known of our own yet
        ([1.0, 1.0, 0.0, 0.0], pytest.approx(2.0)),
        ([1.0, 1.0, 1.0, 0.0], pytest.approx(2.0 * 1.5)),  # of 1, 1, 2, 2
    ]


def test_poison_in_a_long_text_is_above_our_own_gate_and_below_the_one_of_the_mean():
    sentence, rest = 4, 400
    logp = torch.tensor([-12.0] * sentence + [-0.5] * rest + [-0.5] * (sentence + rest)) * math.log(2)
    poisoned, own = make_row(0, length=sentence + rest), make_row(0, own=True, length=sentence + rest)
    lengths = np.full(sentence + rest, 4, dtype=np.int32)
    micro = micro_of(replace(poisoned, byte_lengths=lengths), replace(own, byte_lengths=lengths))

    assert bits_per_byte(micro, logp)[0] < 0.2
    assert peak_bits(micro, logp, 16).tolist() == pytest.approx([48.0, 2.0])


def test_a_step_without_peers_has_no_metrics():
    gate = ForeignGate(AbsoluteGate(max_bits_per_byte=3.0), 3.0)
    gate.open()
    micro = micro_of(make_row(1, own=True))
    assert gate.apply(micro, logp_of(9.0)) is micro
    assert gate.close() == Gated(metrics={}, surprises=())


def test_without_a_gate_rows_are_only_looked_at():
    advantages, metrics = step(Steps(NoGate()), 100.0, 2.0)
    assert advantages == [1.0, 1.0]
    assert metrics == pytest.approx({"foreign_bits_per_byte": 51.0, "foreign_gated_share": 0.0})


def test_the_relative_threshold_is_a_quantile_of_the_rows_of_earlier_steps():
    gate = Steps(RelativeGate(quantile=0.75, window=100))
    assert step(gate, 1.0, 2.0, 3.0)[0] == [1.0] * 3  # of nothing
    assert step(gate, 99.0, 5.0)[0] == [1.0] * 2  # of three rows, too few
    # of 1, 2, 3, 5, 99: the third quartile is 5
    advantages, metrics = step(gate, 4.9, 5.1)
    assert advantages == [1.0, 0.0]
    assert metrics["foreign_gated_share"] == 0.5


def test_a_gated_row_counts_for_the_quantile():
    gate = Steps(RelativeGate(quantile=0.5, window=100))
    step(gate, 1.0, 1.0)
    assert step(gate, 8.0, 8.0, 8.0)[0] == [0.0] * 3
    assert step(gate, 7.9)[0] == [1.0]  # the median of 1, 1, 8, 8, 8 is 8


def test_only_the_latest_rows_are_remembered():
    gate = Steps(RelativeGate(quantile=0.5, window=4))
    step(gate, 9.0, 9.0, 9.0, 9.0)
    step(gate, 1.0, 1.0, 1.0)
    assert step(gate, 1.1)[0] == [0.0]  # 9, 1, 1, 1


def test_a_quantile_needs_enough_rows_to_be_one():
    assert threshold(RelativeGate(quantile=0.75), [1.0, 2.0, 3.0]) == math.inf
    assert threshold(RelativeGate(quantile=0.75), [1.0, 2.0, 3.0, 4.0]) == 3.25


def test_the_highest_quantile_gates_nothing():
    assert threshold(RelativeGate(quantile=1.0), [1.0] * 100) == math.inf


def test_likelihoods_that_are_not_finite_set_no_threshold():
    gate = Steps(RelativeGate(quantile=0.5))
    step(gate, 1.0, 2.0, math.inf, math.nan)
    assert step(gate, 1.4, 1.6)[0] == [1.0, 0.0]


@pytest.mark.parametrize("split", [False, True])
def test_the_split_into_micro_batches_decides_nothing(split: bool):
    gate = Steps(RelativeGate(quantile=0.5))
    step(gate, 1.0, 3.0)
    bits = [9.0, 1.5, 2.5, 0.5]
    parts = [[b] for b in bits] if split else [bits]
    advantages, metrics = gate.step(*((micro_of(*[make_row(1)] * len(p)), logp_of(*p)) for p in parts))
    assert advantages == [0.0, 1.0, 0.0, 1.0]
    assert metrics["foreign_gated_share"] == 0.5


def test_a_memory_goes_on_where_it_was_and_only_as_what_it_was():
    config = OwnGate(window_bytes=16, quantile=0.5, slack=2.0, window=4)
    memory = GateMemory(config)
    memory.observe([1.0, 2.0, 4.0, 8.0, 6.0])
    state = json.loads(json.dumps(memory.state()))
    assert state["recent"] == [2.0, 4.0, 8.0, 6.0]

    assert GateMemory(config, state).threshold() == memory.threshold() == 2.0 * 5.0
    assert GateMemory(config.model_copy(update={"slack": 3.0}), state).threshold() == 3.0 * 5.0
    assert GateMemory(config.model_copy(update={"window_bytes": 8}), state).threshold() == 0.0  # other numbers
    assert GateMemory(RelativeGate(quantile=0.5), state).threshold() == math.inf
    memory.restore({})  # of a checkpoint that was written before there was one
    assert memory.threshold() == 0.0


@pytest.mark.parametrize(
    "rule", [ReceiverBaseline(), ChunkAligned(), RecOneside(), SapoPlain()], ids=lambda rule: rule.type
)
@pytest.mark.parametrize(("gate_config", "moves"), [(NoGate(), True), (AbsoluteGate(max_bits_per_byte=1.0), False)])
def test_under_no_rule_does_a_gated_row_have_a_gradient(
    rule: ForeignConfig, gate_config: ForeignGateConfig, moves: bool
):
    own, peers = make_row(2, own=True), make_row(2)
    logp = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)  # 1.44 bits a byte
    gate = ForeignGate(gate_config, threshold(gate_config, []))
    gate.open()
    gated = gate.apply(micro_of(own, peers), logp)
    counts = Denominators(tokens=4, samples=2)
    loss, _ = micro_batch_loss(gated, logp, None, DppoTv(), rule, LearnerConfig(), counts)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient.tolist() == pytest.approx([-0.25, -0.25] + ([-0.25, -0.25] if moves else [0.0, 0.0]))
    untouched = replace(gated, advantage=torch.ones(2))
    assert all(torch.equal(getattr(gated, n), getattr(untouched, n)) for n in ("own", "sample", "lengths"))
