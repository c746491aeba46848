"""What one input may cost, and what all of them have cost."""

from __future__ import annotations

import resource
import signal
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # guided.py imports it in its own way
    from tests.fuzz.targets import Target

CPU_S = 0.050
"""Of one input. Time of our own thread: a busy machine is no defect."""
HANG_CPU_S = 5.0
"""When an input is interrupted, if it is Python that hangs."""
TRACED_FACTOR = 8
"""Peak of what Python and numpy allocate for an input, in multiples of the most bytes that the target is fed with."""
TRACED_BASE = 500_000
"""What it may be for the smallest of inputs."""
RESIDENT_BYTES = 64_000_000
"""How far one input may raise the highest memory of the process. Protobuf allocates behind Python's back: thirty bytes
for one, where a message of empty messages is read."""
_ATTEMPTS = 3
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class DefectError(AssertionError):
    """What an input has done that none may do."""


@dataclass
class Watch:
    """Runs a target, input by input."""

    target: Target
    inputs: int = 0
    slowest_s: float = 0.0
    """CPU seconds of the slowest input; of the best of several attempts, where the first was slower than it may be."""
    traced_bytes: int = 0
    """Most of what Python and numpy had allocated for one input; of the best of several attempts, as above."""
    outcomes: Counter[str] = field(default_factory=Counter)

    def __call__(self, data: bytes) -> str:
        """What became of `data`. Raises DefectError for what cost too much; what the target raises, comes through."""
        self.inputs += 1
        resident = resident_peak()
        with no_hang():
            outcome, seconds, traced = traced_and_timed(self.target.run, data)
            if seconds > CPU_S:  # Perhaps the tracing's fault, or that of whoever else uses the processor's caches.
                seconds = min(timed(self.target.run, data)[1] for _ in range(_ATTEMPTS))
            if traced > self._traced_limit:  # Perhaps an earlier input's: what it left behind was cleared away now.
                traced = min(traced_and_timed(self.target.run, data)[2] for _ in range(_ATTEMPTS))
        self.slowest_s = max(self.slowest_s, seconds)
        self.traced_bytes = max(self.traced_bytes, traced)
        self.outcomes[str(outcome)] += 1
        self._judge("CPU seconds", seconds, CPU_S)
        self._judge("bytes traced", traced, self._traced_limit)
        self._judge("bytes resident", resident_peak() - resident, RESIDENT_BYTES)
        return outcome

    @property
    def _traced_limit(self) -> int:
        return TRACED_BASE + TRACED_FACTOR * self.target.max_bytes

    def _judge(self, what: str, value: float, largest: float) -> None:
        if value > largest:
            raise DefectError(f"{self.target.name}: {value:g} {what}, at most {largest:g}")


def timed(run: Callable[[bytes], str], data: bytes) -> tuple[str, float]:
    """What `run` returns, and the CPU seconds that it took in this thread."""
    started = time.thread_time()
    outcome = run(data)
    return outcome, time.thread_time() - started


def traced_and_timed(run: Callable[[bytes], str], data: bytes) -> tuple[str, float, int]:
    """As `timed`, and the most bytes that Python and numpy had allocated for it."""
    tracemalloc.start()
    try:
        outcome, seconds = timed(run, data)
        return outcome, seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextmanager
def no_hang() -> Iterator[None]:
    """Raises DefectError in what goes on for longer than HANG_CPU_S. Main thread only."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise DefectError(f"hangs: interrupted after {HANG_CPU_S:g} CPU seconds")

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, HANG_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def resident_peak() -> int:
    """Bytes: the highest memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
