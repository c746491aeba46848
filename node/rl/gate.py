"""Which of peers' rollouts are too unlikely to us to be trained on, whatever their authors say of them.

Every other correction compares us with the peer's own word. This one asks our own policy only, so that no lie helps: a
text that we would hardly ever write is noise to us, or poison, or from a policy too far away to be learned from in one
step. A right answer does not make it better: what is learned is the text, not the answer.

What is gated keeps its place in the batch with an advantage of 0: no rule has a gradient there, no loss knows of gates,
and it counts in the denominators as what is masked does. S = rows of a micro-batch, N = action tokens in it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from node.algorithms import AbsoluteGate, ForeignGateConfig, OwnGate, RelativeGate
from node.rl.batch import MicroBatch
from node.rl.surprise import bits_per_byte, peak_bits

Gather = Callable[[np.ndarray], list[np.ndarray]]
"""From what one device has seen, float64 [n], to what every device has, where they share a step."""


class ForeignGate:
    """One per learner. A step begins with `open`, gates each micro-batch once, before its first update, and ends with
    `close`."""

    def __init__(self, config: ForeignGateConfig) -> None:
        self._recent = deque[float](maxlen=config.window if isinstance(config, OwnGate | RelativeGate) else 0)
        self._config = config
        self._most = math.inf
        self._own = list[float]()
        self._peers = list[float]()
        self._bits_per_byte = list[float]()

    def open(self) -> None:
        """Sets the threshold of the step, from what came before it: no micro-batch decides over another one."""
        self._most = threshold(self._config, self._recent)
        self._own, self._peers, self._bits_per_byte = [], [], []

    def apply(self, micro: MicroBatch, logp: Tensor) -> MicroBatch:
        """`micro` without what peers' rows above the threshold would teach. `logp`, [N], is log pi before the step."""
        measured, own = self._measure(micro, logp), micro.own.cpu().numpy()
        self._own += measured[own].tolist()
        self._peers += measured[~own].tolist()
        if own.all():
            return micro
        self._bits_per_byte += bits_per_byte(micro, logp)[~micro.own].tolist()
        kept = torch.from_numpy(own | (measured <= self._most)).to(micro.advantage.device)
        return replace(micro, advantage=micro.advantage.where(kept, 0.0))

    def close(self, everybodys: Gather = lambda values: [values]) -> dict[str, float]:
        """Metrics of the step; none of peers' without a row of theirs."""
        own, peers, rates = (_shared(seen, everybodys) for seen in (self._own, self._peers, self._bits_per_byte))
        news = own if isinstance(self._config, OwnGate) else peers
        self._recent.extend(news[np.isfinite(news)].tolist())  # what is not would set no threshold at all
        if not len(peers):
            return {}
        metrics = {
            "foreign_bits_per_byte": float(rates.mean()),
            "foreign_gated_share": float(np.mean(~(peers <= self._most))),
        }
        return metrics | ({"foreign_gate": self._most} if math.isfinite(self._most) else {})

    def _measure(self, micro: MicroBatch, logp: Tensor) -> np.ndarray:
        """What the threshold is a threshold of, float64 [S]."""
        if isinstance(self._config, OwnGate):
            return peak_bits(micro, logp, self._config.window_bytes)
        return bits_per_byte(micro, logp).cpu().numpy()


def threshold(config: ForeignGateConfig, recent: Sequence[float]) -> float:
    """Above which a peer's row is not trained on, given the numbers of the `recent` rows (our own, or peers': as the
    gate has it).

    A quantile of fewer than 1 / (1 - quantile) rows is about the largest of them, which the next one is above more
    often than it should be. Until there are so many, the gate that compares peers with each other lets everything pass;
    the one that compares them with ourselves lets nothing pass, which costs the first step of a node's life what it
    could have learned from others, and a poisoner the one step that is not guarded.
    """
    if isinstance(config, AbsoluteGate):
        return config.max_bits_per_byte
    if isinstance(config, RelativeGate) and len(recent) * (1.0 - config.quantile) >= 1.0:
        return float(np.quantile(recent, config.quantile))
    if isinstance(config, OwnGate):
        enough = len(recent) * (1.0 - config.quantile) >= 1.0
        return config.slack * float(np.quantile(recent, config.quantile)) if enough else 0.0
    return math.inf


def _shared(values: Sequence[float], everybodys: Gather) -> np.ndarray:
    return np.concatenate(everybodys(np.array(values, dtype=np.float64)))
