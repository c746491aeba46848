"""What this process uses of the machine, and whether it grows: memory, descriptors, threads, child processes.

A daemon that lives for weeks may not leak. Its use moves up and down, so one reading says little; the *lowest* reading
of ten minutes says what it does not give back, and when that rises window after window, something is never freed.
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from node.alarms import Alarm

LOOK_S = 10.0
WINDOW_S = 600.0
WINDOWS = 7
"""How many windows' lowest readings are compared: an hour from the first to the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """What a gauge may have risen from the first window to the last."""

    most: float
    share: float = 0.0
    """Of the first, if that is more."""


#: Caches and tables fill up in the first hours, each to its bound (docs/operations.md).
SLACK: Mapping[str, Slack] = {
    "rss_mib": Slack(most=256.0, share=0.25),
    "open_files": Slack(most=64.0),
    "threads": Slack(most=16.0),
    "children": Slack(most=4.0),
}


class Growth:
    """One gauge's lowest readings, window by window. Pure."""

    def __init__(self, slack: Slack, window_s: float = WINDOW_S, windows: int = WINDOWS) -> None:
        self._slack, self._window_s = slack, window_s
        self._lowest: deque[float] = deque(maxlen=windows)  # of windows that are over
        self._current, self._ends = math.inf, -math.inf

    def observe(self, now: float, value: float) -> None:
        if now >= self._ends:
            if math.isfinite(self._current):
                self._lowest.append(self._current)
            self._current, self._ends = value, now + self._window_s
        else:
            self._current = min(self._current, value)

    @property
    def grown(self) -> float:
        """By how much, if no window's lowest is below that of the one before and it is more than the slack; else 0."""
        lowest = list(self._lowest)
        if len(lowest) < (self._lowest.maxlen or 0) or any(b < a for a, b in pairwise(lowest)):
            return 0.0
        grown = lowest[-1] - lowest[0]
        return grown if grown > max(self._slack.most, self._slack.share * lowest[0]) else 0.0


class Resources:
    def __init__(
        self,
        steps: Callable[[], int],
        changed: Callable[[Sequence[Alarm], Sequence[Alarm]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`steps`: that the node has made. `changed` hears of the alarms that are up and of those that are new."""
        self._steps, self._changed, self._clock = steps, changed, clock
        self._growth = {name: Growth(slack) for name, slack in SLACK.items()}
        self._active: dict[str, Alarm] = {}
        self._gauges: dict[str, float] = {}

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            self.look(gauges())
            await asyncio.sleep(LOOK_S)

    def look(self, readings: Mapping[str, float]) -> None:
        self._gauges = dict(readings)
        before, self._active = self._active, {}
        for name, growth in self._growth.items():
            if name in readings:
                growth.observe(self._clock(), readings[name])
            if grown := growth.grown:
                old = before.get(name)
                self._active[name] = _alarm(name, grown, old.since_step if old else self._steps())
        if self._active or before:
            self._changed(list(self._active.values()), [self._active[n] for n in self._active.keys() - before.keys()])

    def gauges(self) -> dict[str, float]:
        """The newest readings, by name (the keys of SLACK)."""
        return dict(self._gauges)


def _alarm(name: str, grown: float, since_step: int) -> Alarm:
    minutes = WINDOW_S * (WINDOWS - 1) / 60
    return Alarm(
        name=f"growing_{name}",
        text=f"{name} has risen by {grown:.0f} in {minutes:.0f} minutes and is not given back: something leaks; "
        "stop the node and start it again (nothing is lost), and report it with the log",
        value=grown,
        threshold=SLACK[name].most,
        since_step=since_step,
    )


def gauges() -> dict[str, float]:
    """Of this process, now. What the system does not say is missing."""
    found = {"threads": float(threading.active_count()), "rss_mib": _rss_bytes() / (1 << 20)}
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            found["open_files"] = float(len(os.listdir(directory)) - 1)  # one of them is the listing itself
            break
        except OSError:
            continue
    if Path("/proc/self/task").is_dir():
        found["threads"] = float(len(os.listdir("/proc/self/task")))  # libraries have threads that Python knows not of
        found["children"] = float(len(_descendants(os.getpid())))
    return found


def _rss_bytes() -> float:
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the most it ever was; better than nothing
        return float(peak if sys.platform == "darwin" else peak * 1024)


def _descendants(pid: int) -> list[int]:
    children = list[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, task.read_text().split())
        except OSError:  # it ended meanwhile
            continue
    return children + [grandchild for child in children for grandchild in _descendants(child)]
