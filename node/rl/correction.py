"""What is done about data that another policy sampled: ratios, caps, masks and vetoes. Pure.

N = action tokens, S = rollouts. Two gaps are corrected at once by anchoring at the sampler's own log-probabilities mu:
sampler and trainer compute differently, and the weights have moved on since.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

#: exp(20) is 5e8: nothing beyond is an importance weight, and float32 stays finite.
MAX_LOG_RATIO = 20.0


def log_ratio(logp: Tensor, anchor: Tensor) -> Tensor:
    """log(pi / anchor) per token, clamped to +-20; the gradient of `logp` passes inside the clamp."""
    return (logp - anchor).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def capped_weight(log_ratio: Tensor, cap: float) -> Tensor:
    """sg(min(ratio, cap)): an importance weight that carries no gradient (truncated importance sampling)."""
    return log_ratio.detach().exp().clamp(max=cap)


def tv_keep(logp: Tensor, behaviour: Tensor, advantage: Tensor, delta: float) -> Tensor:
    """DPPO's binary total-variation mask (arXiv 2602.04879), bool [N].

    A token is dropped where its probability has already moved by more than `delta` the way its advantage pushes. In
    probabilities, not ratios: a ratio clip stops rare exploratory tokens and lets likely ones move far.
    """
    moved = logp.detach().exp() - behaviour.exp()
    return ~(((advantage > 0) & (moved > delta)) | ((advantage < 0) & (moved < -delta)))


def one_sided_keep(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """REC-OneSide's mask (arXiv 2509.24203), bool [N]: positives up to ratio 1+high, negatives down to 1-low. Also
    where PPO's clipped objective has a gradient."""
    ratio = log_ratio.detach().exp()
    return ~(((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low)))


def segment_mean(values: Tensor, sample: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the tokens of each rollout, [S]; 0 for a rollout of which no token is here."""
    return values.new_zeros(len(lengths)).index_add(0, sample, values) / lengths


def opsm_keep(
    logp: Tensor, behaviour: Tensor, advantage: Tensor, sample: Tensor, lengths: Tensor, delta: float
) -> Tensor:
    """Off-policy sequence masking (DeepSeek-V3.2, arXiv 2512.02556), bool [S].

    Vetoes rollouts with a negative advantage [S] that became less likely by more than `delta` nats a token: pushing
    them further down is where stale data does damage. Never one with A >= 0.
    """
    drift = segment_mean((behaviour - logp).detach(), sample, lengths)
    return ~((advantage < 0) & (drift > delta))


def sequence_ratio(log_ratio: float, num_bytes: int, bytes_per_token: float) -> float:
    """s = exp(kappa * log_ratio / bytes): the geometric mean ratio per `bytes_per_token` bytes of text.

    A tokenizer-neutral number, but no importance weight: use it to attenuate or to reject, never to weigh up. The
    end-of-sequence event counts in the ratio and not in the bytes; an empty text counts as one byte.
    """
    exponent = bytes_per_token * log_ratio / max(num_bytes, 1)
    return math.exp(min(max(exponent, -MAX_LOG_RATIO), MAX_LOG_RATIO))


def chunk_log_ratios(
    own_logp: np.ndarray, own_byte_lengths: np.ndarray, peer_logp: np.ndarray, peer_byte_lengths: np.ndarray
) -> np.ndarray:
    """log(pi / mu) per chunk, float64 [C], where the two tokenise the same text differently.

    A chunk ends wherever both tokenisations have a boundary:

        own     ab | c | de | <eos>
        peer    abc    | d | e | <eos>
        chunks  abc    | de    | <eos>

    Tokens without bytes belong to the bytes that they are completed by; those at the end (end-of-sequence) are a chunk
    of their own, which is left out unless both sides have one. Raises ValueError when the texts differ in length.
    """
    own_ends, peer_ends = np.cumsum(own_byte_lengths), np.cumsum(peer_byte_lengths)
    own_total, peer_total = _total(own_ends), _total(peer_ends)
    if own_total != peer_total:
        raise ValueError(f"own tokens cover {own_total} bytes, the peer's {peer_total}: not the same text")
    bounds = np.intersect1d(own_ends, peer_ends)
    bounds = bounds[bounds > 0]
    own, own_ended = _chunk_sums(own_logp, own_byte_lengths, own_ends, bounds)
    peer, peer_ended = _chunk_sums(peer_logp, peer_byte_lengths, peer_ends, bounds)
    ratios = own - peer
    return ratios if own_ended and peer_ended else ratios[:-1]


def effective_sample_share(weight_sum: float, square_sum: float, count: float) -> float:
    """(sum w)^2 / (n sum w^2) in (0, 1]: which share of n equally weighted samples n weighted ones are worth (Kish)."""
    return weight_sum**2 / (count * square_sum)


def _total(ends: np.ndarray) -> int:
    return int(ends[-1]) if len(ends) else 0


def _chunk_sums(
    logp: np.ndarray, byte_lengths: np.ndarray, ends: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Sum of `logp` in each chunk [C+1], and whether the last, which follows the text's last byte, has any token."""
    # A token with bytes lies in the chunk that ends at or after its own end; one without, in the chunk that follows.
    with_bytes = np.searchsorted(bounds, ends, side="left")
    without = np.searchsorted(bounds, ends, side="right")
    chunk = np.where(byte_lengths > 0, with_bytes, without)
    sums = np.bincount(chunk, weights=logp.astype(np.float64), minlength=len(bounds) + 1)
    return sums, bool((chunk == len(bounds)).any())
