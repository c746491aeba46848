"""Where the time of something goes, in shares of a recent window: what it does, or what it waits for. Pure.

Several activities may be under way at once, as with a generator that has many requests: the time is that of the first
one of them in the account's order, so that shares add up to 1.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

#: What is done when nothing that has a name is.
OTHER = "other"
#: In how many pieces time falls out of a window.
PIECES = 60

WORKING = "working"
OWN_GROUPS = "own_groups"
PAUSED = "paused"
WEIGHTS = "weights"
CHECKPOINT = "checkpoint"
ENGINE = "engine"
SAMPLING = "sampling"
SCORING = "scoring"
TASKS = "tasks"
POOL_FULL = "pool_full"
LEARNER = "learner"
RESTART = "restart"

#: Of the learner: steps; then what it does beside them (WEIGHTS are copied for the engine), or waits for (ENGINE: until
#: that has given its memory back).
LEARNERS = (WORKING, CHECKPOINT, WEIGHTS, ENGINE, PAUSED, OWN_GROUPS)
#: Of the generator: what keeps it from sampling whatever is asked of it, sampling, and why nothing is asked of it.
GENERATORS = (RESTART, LEARNER, WEIGHTS, SAMPLING, PAUSED, POOL_FULL, SCORING, TASKS)


class TimeAccount:
    """`activities`: the first one counts where several are under way. Not safe for threads."""

    def __init__(
        self, activities: Sequence[str], *, window_s: float = 300.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._activities = (*activities, OTHER)
        self._window_s = window_s
        self._clock = clock
        self._under_way = Counter[str]()
        self._pieces = deque[tuple[int, defaultdict[str, float]]](maxlen=PIECES)  # (its number, seconds in it)
        self._counted = clock()

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Around one. Raises ValueError for one that the account has not."""
        if activity not in self._activities:
            raise ValueError(f"{activity!r} is none of {', '.join(self._activities)}")
        self._count()
        self._under_way[activity] += 1
        try:
            yield
        finally:
            self._count()
            self._under_way[activity] -= 1

    @property
    def present(self) -> str:
        """What time counts as now."""
        return next((each for each in self._activities if self._under_way[each]), OTHER)

    def shares(self) -> dict[str, float]:
        """Activity -> share of the window that ends now, for those that have one. They add up to 1; empty when no time
        has passed. The window is up to a PIECESth shorter than it should be."""
        self._count()
        totals = {each: sum(seconds[each] for _, seconds in self._pieces) for each in self._activities}
        whole = sum(totals.values())
        return {each: seconds / whole for each, seconds in totals.items() if seconds > 0}

    def forget(self) -> None:
        """The window begins now."""
        self._count()
        self._pieces.clear()

    def _count(self) -> None:
        """The time since this was last asked goes to the present activity, piece by piece."""
        now, activity, length = self._clock(), self.present, self._window_s / PIECES
        start = max(self._counted, now - 2 * self._window_s)  # what is before is seen no more
        while start < now:
            piece = int(start // length)
            if (end := (piece + 1) * length) <= start:  # rounding
                piece, end = piece + 1, (piece + 2) * length
            if not self._pieces or self._pieces[-1][0] != piece:
                self._pieces.append((piece, defaultdict(float)))
            self._pieces[-1][1][activity] += min(end, now) - start
            start = end
        self._counted = now


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Times:
    """A node's two accounts."""

    learner: TimeAccount = field(default_factory=lambda: TimeAccount(LEARNERS))
    generator: TimeAccount = field(default_factory=lambda: TimeAccount(GENERATORS))

    def metrics(self) -> dict[str, float]:
        """ "learner_working_share", "generator_pool_full_share" and so on."""
        accounts = {"learner": self.learner.shares(), "generator": self.generator.shares()}
        return {f"{who}_{what}_share": share for who, shares in accounts.items() for what, share in shares.items()}
