"""How unlikely texts are to our own policy: on the whole, and where they are least likely.

A text that is right and likely but for a few words ("Hail to the Thief", arXiv 2511.09780) is likely on the whole, the
more so the longer it is. Its least likely stretch is not, however long the rest.

S = rows of a micro-batch, N = action tokens in it, row after row.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from node.rl.batch import MicroBatch
from node.rl.correction import segment_sum


def bits_per_byte(micro: MicroBatch, logp: Tensor) -> Tensor:
    """-sum log pi / (bytes ln 2) of each row, float64 [S]. An empty text counts as one byte; the end-of-sequence event
    counts in the sum and not in the bytes."""
    nats = -segment_sum(logp.detach().double(), micro.sample, len(micro.rows))
    num_bytes = nats.new_tensor([max(int(row.byte_lengths.sum()), 1) for row in micro.rows])
    return nats / (num_bytes * math.log(2.0))


def peak_bits(micro: MicroBatch, logp: Tensor, window_bytes: int) -> np.ndarray:
    """-log2 pi of each row's least likely stretch of at most `window_bytes` bytes, float64 [S].

    In bytes, since tokenizers differ in how much a token is. A stretch is of whole tokens: one that is longer than the
    window is a stretch by itself, and the end-of-sequence event, which has no bytes, belongs to what it ends.
    """
    bits = logp.detach().double().cpu().numpy() / -math.log(2.0)
    lengths = np.array([len(row.byte_lengths) for row in micro.rows])
    first_token = np.repeat(np.cumsum(lengths) - lengths, lengths)  # of the row that a token is in
    byte_ends = np.cumsum(np.concatenate([row.byte_lengths for row in micro.rows]), dtype=np.int64)
    byte_starts = byte_ends - np.concatenate([row.byte_lengths for row in micro.rows])
    token = np.arange(len(bits))
    earliest = np.searchsorted(byte_starts, byte_ends - window_bytes, side="left")  # that such a stretch can begin with
    begins = np.clip(earliest, first_token, token)
    before = np.concatenate([[0.0], np.cumsum(bits)])  # of all tokens before each
    stretches = before[token + 1] - before[begins]
    return np.maximum.reduceat(stretches, np.cumsum(lengths) - lengths)
