"""A moving average that knows how uncertain it is. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple


class Average(NamedTuple):
    """Exponentially weighted mean of a series, and what is needed for its standard error.

    A value that k others followed weighs decay^k (West 1979, with weights that fade). The weights are divided by their
    sum, so that the first values are not drawn towards 0; decay 1 is the plain mean.
    """

    weight: float = 0.0
    """Sum of the weights: the number of values, as far as they are remembered."""
    squares: float = 0.0
    """Sum of their squares."""
    mean: float = 0.0
    deviation: float = 0.0
    """Weighted sum of the squared deviations from the mean."""

    def observe(self, value: float, decay: float) -> Average:
        """With one (finite) value more."""
        weight = decay * self.weight + 1.0
        delta = value - self.mean
        mean = self.mean + delta / weight
        deviation = decay * self.deviation + delta * (value - mean)
        return Average(weight, decay * decay * self.squares + 1.0, mean, deviation)

    @property
    def standard_error(self) -> float:
        """Of the mean, as if the values were independent; infinite for fewer than two."""
        values = self.weight - self.squares / self.weight if self.weight else 0.0  # n - 1, if all weigh the same
        if values <= 1e-9:
            return math.inf
        return math.sqrt(self.deviation / values * self.squares) / self.weight
