"""What is said of many measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    p99: float
    most: float
    count: int


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value. The 99th percentile is the smallest value that 99 % are at most."""
    ordered = sorted(values)
    place = max(-(-99 * len(ordered) // 100) - 1, 0)
    return Spread(statistics.median(ordered), ordered[place], ordered[-1], len(ordered))
