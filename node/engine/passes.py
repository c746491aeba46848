"""A batch in its micro-batches, over the passes of its updates, and what the first pass found out for the others.

log pi_prox, the policy before the first update, is known from that update's own forward pass: none is made for it,
whatever the objective. It is kept by rollout, so that a batch that did not fit can be cut anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from node.rl.batch import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """Of one rollout."""

    proximal: torch.Tensor
    """float32 [T]."""
    advantage: torch.Tensor
    """float32, scalar: after the gate."""


class Passes:
    """Micro-batches are on `device`; those in `micro_batches` are as they are trained on, once they have been."""

    def __init__(self, packed: Sequence[MicroBatch], device: torch.device) -> None:
        self._device = device
        self._found: dict[int, _Found] = {}  # by row
        self.first = True
        """No pass over the whole batch is done yet."""
        self.micro_batches = [micro.to(device) for micro in packed]

    def proximal(self, micro: MicroBatch) -> torch.Tensor | None:
        """float32 [N]; None in the first pass, whose own log-probabilities they are."""
        return None if self.first else torch.cat([self._found[id(row)].proximal for row in micro.rows])

    def remember(self, micro: MicroBatch, logp: torch.Tensor) -> None:
        """What the first pass found for `micro`: `logp`, float32 [N], and the advantages that the gate has left."""
        parts = zip(micro.rows, logp.split(micro.lengths.tolist()), micro.advantage, strict=True)
        for row, part, advantage in parts:
            self._found[id(row)] = _Found(proximal=part, advantage=advantage)

    def cut_anew(self, packed: Sequence[MicroBatch]) -> None:
        """Before the present pass is made again, over other micro-batches of the same rollouts."""
        self.micro_batches = [micro.to(self._device) for micro in packed]
        if not self.first:
            self.micro_batches = [replace(m, advantage=self._advantages(m)) for m in self.micro_batches]

    def _advantages(self, micro: MicroBatch) -> torch.Tensor:
        return torch.stack([self._found[id(row)].advantage for row in micro.rows])
