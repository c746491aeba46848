"""Comparative advantage: where we are strong and the swarm is weak, as far as its members' announcements say.

A cell (source, difficulty) or a source is worth sampling on the swarm's behalf by

    own * (1 - mean of the members' values)

where we are a member and every peer that speaks of it is one. All count the same, whatever they say it rests on: of n
members a liar moves the mean by at most 1/n. What a peer says of a source is the mean of its cells there by mass, and
that is also what it says of the source's cells that it does not name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from node.rl.tracker import ValueTracker
from swarm.errors import WireError
from swarm.types import CellValue, PolicyVersion
from swarm.wire.values import MAX_CELL_VALUES, bounded_value


class Demand:
    """What n members of a swarm announced of themselves, at one moment."""

    def __init__(self, members: Iterable[Sequence[CellValue]]) -> None:
        """The values that each of them announced; we are none of them. Values of mass 0 say nothing."""
        self._members = [_Worth.of(values) for values in members]

    def for_source(self, source: str, own: float) -> float:
        """How much it is wanted that we, whose value there is `own`, sample this source; in [0, 1]."""
        return own * (1.0 - _mean(own, (member.sources.get(source) for member in self._members)))

    def for_cell(self, source: str, difficulty: str, own: float) -> float:
        """The same for its tasks of one difficulty."""
        said = (member.cells.get((source, difficulty), member.sources.get(source)) for member in self._members)
        return own * (1.0 - _mean(own, said))


def announced_values(tracker: ValueTracker, now: PolicyVersion) -> tuple[CellValue, ...]:
    """What we say of ourselves: the cells with most evidence, where their texts can travel. What there is no room for
    is cut off at the end (`swarm.wire.codec`), so that every source's first cell comes before any source's second: a
    source that we are bad at is seldom sampled, and its cells would be the first to go."""
    place = Counter[str]()
    ranked: list[tuple[int, CellValue]] = []
    for cell in filter(_can_travel, tracker.cell_values(now, MAX_CELL_VALUES)):
        ranked.append((place[cell.source], cell))
        place[cell.source] += 1
    return tuple(cell for _, cell in sorted(ranked, key=lambda pair: pair[0]))


class _Worth(NamedTuple):
    """One member's values."""

    sources: dict[str, float]
    cells: dict[tuple[str, str], float]

    @classmethod
    def of(cls, values: Iterable[CellValue]) -> _Worth:
        known = [cell for cell in values if cell.mass > 0]
        masses, successes = defaultdict[str, float](float), defaultdict[str, float](float)
        for cell in known:
            masses[cell.source] += cell.mass
            successes[cell.source] += cell.mass * cell.value
        sources = {source: successes[source] / mass for source, mass in masses.items()}
        return cls(sources, {(cell.source, cell.difficulty): cell.value for cell in known})


def _mean(own: float, said: Iterator[float | None]) -> float:
    values = [own, *(value for value in said if value is not None)]
    return sum(values) / len(values)


def _can_travel(cell: CellValue) -> bool:
    try:
        bounded_value(cell)
    except WireError:
        return False
    return True
