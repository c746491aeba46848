"""The losses and advantages of the papers, written down a second time: float64 numpy, one rollout after the other, the
defaults' constants as literals, nothing of `node/rl`. What a formula has in sg(.) it takes from `sg`, which does not
move when `pi` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from node.algorithms import (
    ChunkAligned,
    Cispo,
    DecoupledPpo,
    DppoTv,
    DrGrpoAdvantage,
    GrpoAdvantage,
    Gspo,
    IcePop,
    M2po,
    PpoClip,
    ReceiverBaseline,
    RecOneside,
    Reinforce,
    Remix,
    RlooAdvantage,
    SapoPlain,
    SeqTis,
    SpoAdvantage,
    Vespo,
)
from node.table import Table

TOKENS, SAMPLES = 20, 5
"""Of the global batch, of which the rollouts here are a part."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """One rollout of L tokens."""

    ids: np.ndarray
    mu: np.ndarray
    """[L], log; float32 numbers, as a sampler reports them."""
    prox: np.ndarray
    """[L], log."""
    advantage: float
    own_bytes: tuple[int, ...] = ()
    peer_bytes: tuple[int, ...] = ()
    own_chunks: tuple[int, ...] = ()
    """Which chunk each token is in, by hand."""
    peer_chunks: tuple[int, ...] = ()
    peer_logp: np.ndarray | None = None
    """One number a chunk."""


Batch = Sequence[tuple[Sampled, np.ndarray]]
"""Rollouts and their log pi, frozen."""
Formula = Callable[[Sampled, np.ndarray, np.ndarray, Batch], float]
"""(rollout, log pi [L], the same frozen, batch) -> its share of the loss."""


# The formulas ---------------------------------------------------------------------------------------------------------


def ppo(ratio: np.ndarray, advantage: float, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    return -np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)


def dppo_tv(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    moved = np.exp(sg) - np.exp(r.mu)
    keep = moved <= 0.2 if r.advantage > 0 else moved >= -0.2
    weight = np.minimum(np.exp(sg - r.mu), 2.0)
    return float(np.sum(1e-3 * (pi - r.mu) ** 2 - keep * weight * r.advantage * pi)) / TOKENS


def ppo_clip(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    return float(np.sum(ppo(np.exp(pi - r.mu), r.advantage, 0.8, 1.28))) / TOKENS


def decoupled_ppo(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    weight = np.minimum(np.exp(r.prox - r.mu), 5.0)
    return float(np.sum(weight * ppo(np.exp(pi - r.prox), r.advantage, 0.8, 1.28))) / TOKENS


def cispo(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    return float(np.sum(-np.minimum(np.exp(sg - r.mu), 5.0) * r.advantage * pi)) / TOKENS


def gspo(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    s = exp(float(np.mean(pi - r.prox)))
    return -min(s * r.advantage, min(max(s, 1 - 3e-4), 1 + 4e-4) * r.advantage) / SAMPLES


def reinforce(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    return -r.advantage * float(np.sum(pi)) / TOKENS


def icepop(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    weight = np.exp(r.prox - r.mu)
    weight[(weight < 0.5) | (weight > 5.0)] = 0
    return float(np.sum(weight * ppo(np.exp(pi - r.prox), r.advantage, 0.8, 1.28))) / TOKENS


def m2po(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    outward = sorted(float(x) ** 2 for other, now in batch for x in now - other.mu if x * np.sign(other.advantage) > 0)
    while outward and sum(outward) / len(outward) > 0.04:
        outward.pop()
    furthest = max(outward, default=0.0)
    moved = sg - r.mu
    keep = (moved * np.sign(r.advantage) <= 0) | (moved**2 <= furthest)
    return -r.advantage * float(np.sum(keep * np.exp(pi - r.mu))) / TOKENS


def vespo(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    w = exp(min(max(float(np.sum(sg - r.mu)), log(1e-8)), 20.0))
    phi = w**2 * exp(3 * (1 - w)) if r.advantage >= 0 else w**3 * exp(2 * (1 - w))
    return -phi * r.advantage * float(np.sum(pi)) / TOKENS


def seq_tis(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    return -min(exp(float(np.sum(sg - r.mu))), 8.0) * r.advantage * float(np.sum(pi)) / TOKENS


def remix(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    centre = np.exp(r.prox - r.mu)
    return float(np.sum(ppo(np.exp(pi - r.mu), r.advantage, centre - 0.2, centre + 0.2))) / TOKENS


def with_opsm(formula: Formula) -> Formula:
    def vetoed(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
        drifted = r.advantage < 0 and float(np.mean(r.mu - sg)) > 0.5
        return 0.0 if drifted else formula(r, pi, sg, batch)

    return vetoed


OWN: dict[type[Table], Formula] = {
    DppoTv: dppo_tv,
    PpoClip: ppo_clip,
    DecoupledPpo: decoupled_ppo,
    Cispo: cispo,
    Gspo: gspo,
    Reinforce: reinforce,
    IcePop: icepop,
    M2po: m2po,
    Vespo: vespo,
    SeqTis: seq_tis,
    Remix: remix,
}


def one_sided(r: Sampled, pi: np.ndarray, sg: np.ndarray, gate: float | np.ndarray = 1.0) -> float:
    q = np.exp(sg - r.prox)
    keep = q <= 1.28 if r.advantage > 0 else q >= 0.8
    return -r.advantage * float(np.sum(gate * keep * pi)) / TOKENS


def receiver_baseline(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    return one_sided(r, pi, sg)


def rec_oneside(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    assert r.peer_logp is not None
    s = exp(4 * (float(np.sum(sg)) - float(np.sum(r.peer_logp))) / sum(r.own_bytes))
    floor = 0.8 if r.advantage > 0 else 0.9
    return one_sided(r, pi, sg, min(s, 1.0) ** 2 if s >= floor else 0.0)


def chunk_aligned(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    assert r.peer_logp is not None
    ratios = [exp(sum(sg[np.array(r.own_chunks) == c]) - peer) for c, peer in enumerate(r.peer_logp)]
    return one_sided(r, pi, sg, np.array([0.5 <= ratios[c] <= 5.0 for c in r.own_chunks]))


def sapo_plain(r: Sampled, pi: np.ndarray, sg: np.ndarray, batch: Batch) -> float:
    return float(np.sum(ppo(np.exp(pi - r.prox), r.advantage, 0.8, 1.28))) / TOKENS


PEERS: dict[type[Table], tuple[Formula, float]] = {
    ReceiverBaseline: (receiver_baseline, 0.1),
    RecOneside: (rec_oneside, 0.15),
    ChunkAligned: (chunk_aligned, 1.5),
    SapoPlain: (sapo_plain, 0.1),
}
"""And how far, in nats a chunk, a peer's word on its log-probabilities is from ours."""


def spo(r: np.ndarray, v: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    each_token = np.repeat(r - v, lengths)
    return np.clip((r - v - each_token.mean()) / (max(each_token.std(ddof=1), 0.1) + 1e-8), -5, 5)


def grpo(r: np.ndarray, v: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return (r - r.mean()) / (r.std(ddof=1) + 1e-8)


def dr_grpo(r: np.ndarray, v: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return r - r.mean()


def rloo(r: np.ndarray, v: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.array([x - np.delete(r, i).mean() for i, x in enumerate(r)])


ESTIMATORS: dict[type[Table], Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    SpoAdvantage: spo,
    GrpoAdvantage: grpo,
    DrGrpoAdvantage: dr_grpo,
    RlooAdvantage: rloo,
}
