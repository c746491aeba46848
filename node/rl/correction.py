"""What is done about data that another policy sampled: ratios, caps, masks and vetoes. Pure.

N = action tokens, S = rollouts. Two gaps are corrected at once by anchoring at the sampler's own log-probabilities mu:
sampler and trainer compute differently, and the weights have moved on since.
"""

from __future__ import annotations

import math

import numpy as np
import torch
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


def outward(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """bool [N]: tokens that have already moved the way their advantage pushes."""
    return log_ratio.detach() * advantage > 0


def second_moment_limit(log_ratio: Tensor, advantage: Tensor, budget: float) -> float:
    """M2PO's threshold (arXiv 2510.01161): the smallest (log ratio)^2 of an outward token that has to go so that the
    mean of those below it is at most `budget`; inf where all may stay.

    Both are [N], of a *whole* batch. Tokens as far as the first that goes, go with it.
    """
    squares = log_ratio.detach()[outward(log_ratio, advantage)].double().square().sort().values
    means = squares.cumsum(0) / torch.arange(1, len(squares) + 1, device=squares.device)
    too_far = squares[means > budget]  # the mean of ascending numbers ascends
    return float(too_far[0]) if len(too_far) else math.inf


def segment_sum(values: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """Sum over the tokens of each rollout, [S]; 0 for a rollout of which no token is here."""
    return values.new_zeros(num_samples).index_add(0, sample, values)


def segment_mean(values: Tensor, sample: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the tokens of each rollout, [S]; 0 for a rollout of which no token is here."""
    return segment_sum(values, sample, len(lengths)) / lengths


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
    return _aligned(own_logp, own_byte_lengths, peer_logp, peer_byte_lengths)[0]


def token_chunk_log_ratios(
    own_logp: np.ndarray, own_byte_lengths: np.ndarray, peer_logp: np.ndarray, peer_byte_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`chunk_log_ratios` [C], and the same copied to our own tokens [T], both float64. A token whose chunk was left out
    has 0: nothing is known of it."""
    ratios, chunk = _aligned(own_logp, own_byte_lengths, peer_logp, peer_byte_lengths)
    return ratios, np.append(ratios, 0.0)[chunk]


def spread_chunk_log_ratios(
    own_logp: np.ndarray, own_byte_lengths: np.ndarray, peer_logp: np.ndarray, peer_byte_lengths: np.ndarray
) -> np.ndarray:
    """`chunk_log_ratios`, each in equal parts on our own tokens of its chunk, float64 [T]; 0 on those of a chunk that
    was left out. Adds up to what they do."""
    ratios, chunk = _aligned(own_logp, own_byte_lengths, peer_logp, peer_byte_lengths)
    tokens = np.bincount(chunk, minlength=len(ratios))[: len(ratios)]  # at least 1: a chunk ends where a token does
    return np.append(ratios / tokens, 0.0)[chunk]


def effective_sample_share(weight_sum: float, square_sum: float, count: float) -> float:
    """(sum w)^2 / (n sum w^2) in (0, 1]: which share of n equally weighted samples n weighted ones are worth (Kish)."""
    return weight_sum**2 / (count * square_sum)


def _total(ends: np.ndarray) -> int:
    return int(ends[-1]) if len(ends) else 0


def _aligned(
    own_logp: np.ndarray, own_byte_lengths: np.ndarray, peer_logp: np.ndarray, peer_byte_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-ratios of the chunks [C], and the chunk of each own token [T]; C where that chunk was left out."""
    own_ends, peer_ends = np.cumsum(own_byte_lengths), np.cumsum(peer_byte_lengths)
    own_total, peer_total = _total(own_ends), _total(peer_ends)
    if own_total != peer_total:
        raise ValueError(f"own tokens cover {own_total} bytes, the peer's {peer_total}: not the same text")
    bounds = np.intersect1d(own_ends, peer_ends)
    bounds = bounds[bounds > 0]
    own, peer = _chunks(own_byte_lengths, own_ends, bounds), _chunks(peer_byte_lengths, peer_ends, bounds)
    ratios = _chunk_sums(own_logp, own, len(bounds)) - _chunk_sums(peer_logp, peer, len(bounds))
    both_ended = (own == len(bounds)).any() and (peer == len(bounds)).any()
    return (ratios if both_ended else ratios[:-1]), own


def _chunks(byte_lengths: np.ndarray, ends: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The chunk of each token [T]; the number of bounds for those that follow the text's last byte."""
    # A token with bytes lies in the chunk that ends at or after its own end; one without, in the chunk that follows.
    with_bytes = np.searchsorted(bounds, ends, side="left")
    without = np.searchsorted(bounds, ends, side="right")
    return np.where(byte_lengths > 0, with_bytes, without)


def _chunk_sums(logp: np.ndarray, chunk: np.ndarray, last: int) -> np.ndarray:
    return np.bincount(chunk, weights=logp.astype(np.float64), minlength=last + 1)
