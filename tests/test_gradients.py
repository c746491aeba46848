"""Gradients of the loss by the logits: the code's against central differences of the formulas (tests/formulas.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from node.algorithms import (
    AdvantageConfig,
    DppoTv,
    ForeignConfig,
    LearnerConfig,
    ObjectiveConfig,
    ReceiverBaseline,
    Reinforce,
)
from node.rl.advantage import ADVANTAGES, Outcomes
from node.rl.batch import MicroBatch, pack
from node.rl.foreign import FOREIGN
from node.rl.loss import batch_limit, micro_batch_loss
from node.rl.objective import OBJECTIVES, Denominators
from node.rl.samples import PeerTokens, TokenRow
from swarm.types import PeerId
from tests.formulas import (
    ESTIMATORS,
    OWN,
    PEERS,
    SAMPLES,
    TOKENS,
    Formula,
    Sampled,
    decoupled_ppo,
    gspo,
    icepop,
    m2po,
    ppo_clip,
    reinforce,
    remix,
    with_opsm,
)

VOCABULARY = 7
SEEDS = range(6)
"""Enough that every mask is met on both sides (`test_every_mask_is_met_on_both_sides`)."""


def log_probabilities(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(-1))


def make_rollouts(seed: int, peer_noise: float | None = None) -> tuple[list[Sampled], list[np.ndarray]]:
    """Three rollouts of 4, 3 and 2 tokens, and the logits [L, V] of each. Sampler and proximal policy are other
    policies nearby; advantages have both signs. With `peer_noise` they are a peer's, who tokenises in another way."""
    rng = np.random.default_rng(seed)
    alignments = [
        ((2, 1, 2, 0), (3, 1, 1, 0), (0, 0, 1, 2), (0, 1, 1, 2)),
        ((1, 3, 0), (2, 2, 0), (0, 0, 1), (0, 0, 1)),
        ((2, 0), (1, 1, 0), (0, 1), (0, 0, 1)),
    ]
    rollouts, logits = [], []
    for length, sign, alignment in zip((4, 3, 2), (1, -1, (-1) ** seed), alignments, strict=True):
        own, peer, own_chunks, peer_chunks = alignment
        now = rng.normal(size=(length, VOCABULARY))
        proximal = now + 0.3 * rng.normal(size=now.shape)
        sampler = proximal + 0.8 * rng.normal(size=now.shape)
        ids = (sampler + rng.gumbel(size=now.shape)).argmax(-1)
        told = None
        if peer_noise is not None:
            chunks = [log_probabilities(now, ids)[np.array(own_chunks) == c].sum() for c in range(max(own_chunks) + 1)]
            told = np.array(chunks) + peer_noise * rng.normal(size=len(chunks))
            told = told.astype(np.float32).astype(np.float64)
        rollouts.append(
            Sampled(
                ids=ids,
                mu=log_probabilities(sampler, ids).astype(np.float32).astype(np.float64),
                prox=log_probabilities(proximal, ids),
                advantage=float(np.float32(sign * rng.uniform(0.3, 2.0))),
                own_bytes=own,
                peer_bytes=peer,
                own_chunks=own_chunks,
                peer_chunks=peer_chunks,
                peer_logp=told,
            )
        )
        logits.append(now)
    return rollouts, logits


def reference(formula: Formula, rollouts: Sequence[Sampled], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Gradient by the logits, [N, V], rollout after rollout."""
    frozen = [log_probabilities(now, r.ids) for r, now in zip(rollouts, logits, strict=True)]
    batch = list(zip(rollouts, frozen, strict=True))
    h, gradients = 1e-5, []
    for (r, sg), now in zip(batch, logits, strict=True):
        gradient = np.zeros_like(now)
        for place in np.ndindex(*now.shape):
            step = np.zeros_like(now)
            step[place] = h
            up, down = (formula(r, log_probabilities(now + d, r.ids), sg, batch) for d in (step, -step))
            gradient[place] = (up - down) / (2 * h)
        gradients.append(gradient)
    return np.concatenate(gradients)


def as_row(r: Sampled) -> TokenRow:
    length, peers = len(r.ids), None
    if r.peer_logp is not None:  # a chunk's number, on the first of its tokens
        told = [r.peer_logp[c] if c not in r.peer_chunks[:i] else 0.0 for i, c in enumerate(r.peer_chunks)]
        peers = PeerTokens(
            logprobs=np.array(told, dtype=np.float32), byte_lengths=np.array(r.peer_bytes, dtype=np.int32)
        )
    return TokenRow(
        prompt_ids=np.zeros(2, dtype=np.int32),
        response_ids=r.ids.astype(np.int32),
        byte_lengths=np.array(r.own_bytes[:length], dtype=np.int32),
        behaviour=r.mu.astype(np.float32) if peers is None else None,
        peer=peers,
        advantage=r.advantage,
        reward=0.0,
        own=peers is None,
        origin=PeerId("p"),
        staleness=0,
        truncated=False,
    )


def ours(
    rollouts: Sequence[Sampled],
    logits: Sequence[np.ndarray],
    objective: ObjectiveConfig,
    foreign: ForeignConfig,
    tokens_per_micro_batch: int,
) -> np.ndarray:
    """The same by the code: [N, V]."""
    rows = [as_row(r) for r in rollouts]
    values = [torch.tensor(now, requires_grad=True) for now in logits]
    micros = pack(rows, tokens_per_micro_batch)

    def members(micro: MicroBatch) -> list[int]:
        return [rows.index(row) for row in micro.rows]

    logps = [
        torch.cat([values[i].log_softmax(-1)[range(len(rollouts[i].ids)), rollouts[i].ids] for i in members(micro)])
        for micro in micros
    ]
    limit = batch_limit(micros, [logp.detach() for logp in logps], objective)
    for micro, logp in zip(micros, logps, strict=True):
        proximal = torch.tensor(np.concatenate([rollouts[i].prox for i in members(micro)]))
        counts = Denominators(tokens=TOKENS, samples=SAMPLES)
        loss, _ = micro_batch_loss(micro, logp, proximal, objective, foreign, LearnerConfig(), counts, limit)
        loss.backward()
    return np.concatenate([np.zeros(v.shape) if v.grad is None else v.grad.numpy() for v in values])


def compare(
    formula: Formula,
    rollouts: Sequence[Sampled],
    logits: Sequence[np.ndarray],
    objective: ObjectiveConfig,
    foreign: ForeignConfig,
) -> None:
    whole, split = (ours(rollouts, logits, objective, foreign, budget) for budget in (1000, 1))
    np.testing.assert_allclose(whole, reference(formula, rollouts, logits), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(split, whole, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("objective", OWN, ids=lambda t: t.__name__)
def test_the_gradient_of_an_objective_is_its_formulas(objective: type[ObjectiveConfig], seed: int):
    rollouts, logits = make_rollouts(seed)
    compare(with_opsm(OWN[objective]), rollouts, logits, objective(), ReceiverBaseline())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", PEERS, ids=lambda t: t.__name__)
def test_the_gradient_of_a_rule_for_peers_is_its_formulas(rule: type[ForeignConfig], seed: int):
    formula, noise = PEERS[rule]
    rollouts, logits = make_rollouts(seed, peer_noise=noise)
    compare(formula, rollouts, logits, DppoTv(), rule())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda t: t.__name__)
def test_the_gradient_under_an_estimator_is_reinforces_with_its_formula(estimator: type[AdvantageConfig], seed: int):
    rollouts, logits = make_rollouts(seed)
    rng = np.random.default_rng(seed)
    rewards, values = rng.uniform(size=3), rng.uniform(size=3)
    lengths = np.array([len(r.ids) for r in rollouts])
    outcomes = Outcomes(rewards=rewards, values=values, groups=np.zeros(3, dtype=np.int64), lengths=lengths)
    expected = ESTIMATORS[estimator](rewards, values, lengths)
    got = ADVANTAGES[estimator](outcomes, estimator()).values
    written = [replace(r, advantage=float(a)) for r, a in zip(rollouts, expected, strict=True)]
    code = [replace(r, advantage=float(a)) for r, a in zip(rollouts, got, strict=True)]
    whole, split = (ours(code, logits, Reinforce(), ReceiverBaseline(), budget) for budget in (1000, 1))
    np.testing.assert_allclose(whole, reference(with_opsm(reinforce), written, logits), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(split, whole, rtol=1e-6, atol=1e-12)


def test_nothing_is_left_out():
    assert OWN.keys() == OBJECTIVES.keys()
    assert PEERS.keys() == FOREIGN.keys()
    assert ESTIMATORS.keys() == ADVANTAGES.keys()


MASKING = (ppo_clip, decoupled_ppo, gspo, icepop, m2po, remix, with_opsm(reinforce))


def tokens_without_gradient(formula: Formula, peer_noise: float | None) -> tuple[int, int]:
    """(without, with) a gradient, over all seeds."""
    silent = [~reference(formula, *make_rollouts(seed, peer_noise)).any(axis=1) for seed in SEEDS]
    return int(np.concatenate(silent).sum()), int((~np.concatenate(silent)).sum())


@pytest.mark.parametrize(
    ("formula", "peer_noise"),
    [(formula, None) for formula in MASKING] + [(formula, noise) for formula, noise in PEERS.values()],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_mask_is_met_on_both_sides(formula: Formula, peer_noise: float | None):
    dropped, kept = tokens_without_gradient(formula, peer_noise)
    assert dropped >= 3
    assert kept >= 3
