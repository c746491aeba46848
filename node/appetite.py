"""How many of others' groups a second a node has a use for."""

from __future__ import annotations

from collections.abc import Sequence

from node.experience import Experience

PLENTY = 3.0
"""Groups taken in for each one trained on, so that the draw has something to choose from and peers may come and go."""
LEAST = 1 / 8
"""Of what a step may draw: what a node that finds nothing to its taste goes on tasting."""
MEMORY = 0.9
"""Of the moving averages, per step."""
FIRST = 16.0
"""Groups per second, before the first step."""


class Appetite:
    """Follows what the steps draw: `PLENTY` times that, by the seconds that a step takes."""

    def __init__(self, foreign_groups: int) -> None:
        """`foreign_groups`: that a step may draw."""
        self._may_draw = foreign_groups
        self._drawn = float(foreign_groups)
        self._seconds: float | None = None

    def stepped(self, batch: Sequence[Experience], seconds: float) -> None:
        """A step drew `batch`, and the one before it had ended `seconds` ago."""
        drawn = sum(not experience.own for experience in batch)
        self._drawn += (1 - MEMORY) * (drawn - self._drawn)
        self._seconds = seconds if self._seconds is None else MEMORY * self._seconds + (1 - MEMORY) * seconds

    @property
    def groups_per_s(self) -> float:
        if self._may_draw == 0:
            return 0.0
        if self._seconds is None:
            return FIRST
        return PLENTY * max(self._drawn, LEAST * self._may_draw) / max(self._seconds, 1e-3)
