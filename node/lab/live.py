"""How far the runs are: a line per finished run, and below them, on a terminal, one that moves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from node.demo.style import ACCENT, BAD, MUTED, duration
from node.lab.parallel import Event
from node.lab.plan import Plan
from node.lab.results import RunKey
from node.lab.statistics import mean


class Progress:
    """Hears the events of `run_all`. Rendered by rich, it is the line that moves.

    rich renders in a thread of its own: what is iterated over there is a copy.
    """

    def __init__(
        self, plan: Plan, *, processes: int, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._waiting = [run.key for run in plan.missing]
        self._total = len(plan.missing)
        self._past = dict(plan.past)
        self._processes = processes
        self._console = console
        self._clock = clock
        self._running: dict[RunKey, float] = {}
        self.counts: Counter[str] = Counter()

    def heard(self, event: Event) -> None:
        key, now = event.run.key, self._clock()
        if event.kind in ("started", "elsewhere"):
            self._waiting.remove(key)
        if event.kind == "started":
            self._running[key] = now
            return
        self.counts[event.kind] += 1
        seconds = now - self._running.pop(key, now)
        if event.kind == "done":
            self._past[key] = seconds
        self._console.print(self._finished(event, seconds), soft_wrap=True)

    def remaining_s(self) -> float | None:
        """An estimate from the runs of the same arm, or else of any; None before one has finished."""
        if not self._past:
            return None
        now = self._clock()
        rest = [max(0.0, self._expected_s(key) - (now - since)) for key, since in dict(self._running).items()]
        work = sum(rest) + sum(self._expected_s(key) for key in list(self._waiting))
        return max([work / self._processes, *rest])

    def line(self) -> str:
        """ "7 of 24 runs, 1 failed; about 3 min 07 s left; now lag/lag=8 seed 2, ..."."""
        parts = [f"{self.counts.total()} of {self._total} runs"]
        parts[0] += f", {failed} failed" if (failed := self.counts["failed"]) else ""
        if (rest := self.remaining_s()) is not None:
            parts.append(f"about {duration(rest)} left")
        if self._running:
            parts.append("now " + ", ".join(map(name_of, dict(self._running))))
        return "; ".join(parts)

    def __rich__(self) -> Text:
        return Text(self.line(), MUTED, no_wrap=True, overflow="ellipsis")

    def _finished(self, event: Event, seconds: float) -> Text:
        done = f"{self.counts.total():>{len(str(self._total))}}/{self._total}"
        what = (f"{done} ", MUTED), (name_of(event.run.key), ACCENT)
        if event.kind == "failed":
            return Text.assemble(*what, (f" failed after {duration(seconds)}\n", BAD), event.detail)
        if event.kind == "elsewhere":
            return Text.assemble(*what, (" is made by another process", MUTED))
        return Text.assemble(*what, (f" {duration(seconds)}", MUTED))

    def _expected_s(self, key: RunKey) -> float:
        same = [s for past, s in dict(self._past).items() if (past.experiment, past.arm) == (key.experiment, key.arm)]
        return mean(same or list(self._past.values()))


def name_of(key: RunKey) -> str:
    return f"{key.experiment}/{key.arm} seed {key.seed}"
