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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from node.algorithms import AbsoluteGate, ForeignGateConfig, OwnGate, RelativeGate
from node.rl.batch import MicroBatch
from node.rl.surprise import bits_per_byte, peak_bits

Gather = Callable[[np.ndarray], list[np.ndarray]]
"""From what one device has seen, float64 [n], to what every device has, where they share a step."""


class GateMemory:
    """What earlier steps have seen: where a threshold comes from. One per node, in its checkpoints."""

    def __init__(self, config: ForeignGateConfig, state: Mapping[str, Any] | None = None) -> None:
        """`state`, of an earlier one, counts where that measured what this one does."""
        self._config = config
        self._recent = deque[float](maxlen=config.window if isinstance(config, OwnGate | RelativeGate) else 0)
        self.restore(state or {})

    def threshold(self) -> float:
        return threshold(self._config, self._recent)

    def observe(self, surprises: Sequence[float]) -> None:
        """Of a step, as `Gated` has them."""
        self._recent.extend(surprises)

    def state(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"measure": _measure(self._config), "recent": list(self._recent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._recent.clear()
        if state.get("measure") == _measure(self._config):
            self._recent.extend(state["recent"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    metrics: dict[str, float]
    """Of the step; none of peers' without a row of theirs."""
    surprises: tuple[float, ...]
    """What `GateMemory.observe` is told; finite."""


class ForeignGate:
    """Of one step: `most` is its threshold, so that no micro-batch decides over another one. It gates each micro-batch
    once, before its first update, and ends with `close`."""

    def __init__(self, config: ForeignGateConfig, most: float) -> None:
        self._config = config
        self._most = most
        self._own = list[float]()
        self._peers = list[float]()
        self._bits_per_byte = list[float]()

    def open(self) -> None:
        """Begins the step, or begins it again."""
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

    def close(self, everybodys: Gather = lambda values: [values]) -> Gated:
        own, peers, rates = (_shared(seen, everybodys) for seen in (self._own, self._peers, self._bits_per_byte))
        news = own if isinstance(self._config, OwnGate) else peers
        surprises = tuple(news[np.isfinite(news)].tolist())  # what is not would set no threshold at all
        metrics = dict[str, float]()
        if len(peers):
            metrics["foreign_bits_per_byte"] = float(rates.mean())
            metrics["foreign_gated_share"] = float(np.mean(~(peers <= self._most)))
            if math.isfinite(self._most):
                metrics["foreign_gate"] = self._most
        return Gated(metrics=metrics, surprises=surprises)

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


def _measure(config: ForeignGateConfig) -> str:
    """What is remembered, and of whom: numbers of another kind set no threshold."""
    if isinstance(config, OwnGate):
        return f"own rollouts' least likely {config.window_bytes} bytes"
    return "peers' bits per byte" if isinstance(config, RelativeGate) else "nothing"


def _shared(values: Sequence[float], everybodys: Gather) -> np.ndarray:
    return np.concatenate(everybodys(np.array(values, dtype=np.float64)))
