"""Which of peers' rollouts are too unlikely to us to be trained on, whatever their authors say of them.

Every other correction compares us with the peer's own word. This one asks our own policy only, so that no lie helps: a
text of many bits per byte is noise to us, or from a policy too far away to be learned from in one step.

What is gated keeps its place in the batch with an advantage of 0: no rule has a gradient there, no loss knows of gates,
and it counts in the denominators as what is masked does. S = rows of a micro-batch, N = action tokens in it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from node.algorithms import AbsoluteGate, ForeignGateConfig, RelativeGate
from node.rl.batch import MicroBatch
from node.rl.correction import segment_sum


class ForeignGate:
    """One per learner. A step begins with `open`, gates each micro-batch once, before its first update, and ends with
    `close`."""

    def __init__(self, config: ForeignGateConfig) -> None:
        self._recent = deque[float](maxlen=config.window if isinstance(config, RelativeGate) else 0)
        self._config = config
        self._most = math.inf
        self._seen = list[float]()

    def open(self) -> None:
        """Sets the threshold of the step, from what came before it: no micro-batch decides over another one."""
        self._most, self._seen = threshold(self._config, self._recent), []

    def apply(self, micro: MicroBatch, logp: Tensor) -> MicroBatch:
        """`micro` without what peers' rows above the threshold would teach. `logp`, [N], is log pi before the step."""
        if bool(micro.own.all()):
            return micro
        bits = bits_per_byte(micro, logp)
        self._seen += bits[~micro.own].tolist()
        return replace(micro, advantage=micro.advantage.where(micro.own | (bits <= self._most), 0.0))

    def close(self, everybodys: Callable[[np.ndarray], list[np.ndarray]] = lambda values: [values]) -> dict[str, float]:
        """Metrics of the step; none without a peer's row. `everybodys`: from what one device has seen, float64 [n], to
        what every device has, where they share a step."""
        self._seen = np.concatenate(everybodys(np.array(self._seen, dtype=np.float64))).tolist()
        self._recent.extend(filter(math.isfinite, self._seen))  # what is not would set no threshold at all
        if not self._seen:
            return {}
        return {
            "foreign_bits_per_byte": float(np.mean(self._seen)),
            "foreign_gated_share": float(np.mean(np.array(self._seen) > self._most)),
        }


def threshold(config: ForeignGateConfig, recent: Sequence[float]) -> float:
    """Bits per byte above which a row is not trained on, given those of the `recent` rows.

    A quantile of fewer than 1 / (1 - quantile) rows is about the largest of them, which the next one is above more
    often than it should be: until there are so many, nothing is gated.
    """
    if isinstance(config, AbsoluteGate):
        return config.max_bits_per_byte
    if isinstance(config, RelativeGate) and len(recent) * (1.0 - config.quantile) >= 1.0:
        return float(np.quantile(recent, config.quantile))
    return math.inf


def bits_per_byte(micro: MicroBatch, logp: Tensor) -> Tensor:
    """-sum log pi / (bytes ln 2) of each row, float64 [S]. An empty text counts as one byte; the end-of-sequence event
    counts in the sum and not in the bytes."""
    nats = -segment_sum(logp.detach().double(), micro.sample, len(micro.rows))
    num_bytes = nats.new_tensor([max(int(row.byte_lengths.sum()), 1) for row in micro.rows])
    return nats / (num_bytes * math.log(2.0))
