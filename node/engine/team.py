"""Who makes a step together: the ranks of a learner on several devices, or one alone."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Team(Protocol):
    def all(self, values: np.ndarray) -> list[np.ndarray]:
        """`values` (float64 [k], k of each rank's own) of every rank, in the order of ranks. All of them must ask."""
        ...


class Alone:
    def all(self, values: np.ndarray) -> list[np.ndarray]:
        return [values]
