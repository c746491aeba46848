"""What a node measures while it runs: how late its event loop is, and one line of numbers per step."""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path


class LoopDelay:
    """How late the event loop wakes a sleeper, over the last minute: what every request and every peer waits for.

    A loop that a call blocks for 80 ms wakes the sleeper about 80 ms late, so the maximum names the worst call.
    """

    def __init__(
        self, *, tick_s: float = 0.01, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tick_s = tick_s
        self._window_s = window_s
        self._clock = clock
        self._lags: deque[tuple[float, float]] = deque(maxlen=math.ceil(window_s / tick_s))  # (when, seconds late)

    async def run(self) -> None:
        """Measures until it is cancelled."""
        while True:
            due = self._clock() + self._tick_s
            await asyncio.sleep(self._tick_s)
            now = self._clock()
            self.record(now, max(0.0, now - due))

    def record(self, now: float, lag_s: float) -> None:
        self._lags.append((now, lag_s))

    def gauges(self) -> dict[str, float]:
        """loop_delay_max_ms and loop_delay_p99_ms (nearest rank) of the last minute; 0 before the first tick."""
        since = self._clock() - self._window_s
        while self._lags and self._lags[0][0] < since:
            self._lags.popleft()
        lags = sorted(lag for _, lag in self._lags) or [0.0]
        return {
            "loop_delay_max_ms": lags[-1] * 1000,
            "loop_delay_p99_ms": lags[math.ceil(0.99 * len(lags)) - 1] * 1000,
        }


class MetricsLog:
    """metrics.jsonl: one JSON object a line, at most `max_bytes` of it and as much again in metrics.jsonl.1.

    `append` never blocks: `run` writes in a thread. A disk that fails costs lines and a warning, never the node; a disk
    that is slow costs the oldest lines that wait.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 64_000_000,
        max_waiting: int = 10_000,
        max_waiting_bytes: int = 16_000_000,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_waiting, self._max_waiting_bytes = max_waiting, max_waiting_bytes
        self._waiting: deque[str] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._writing = threading.Lock()
        self._queue = threading.Lock()  # never held for longer than a copy
        self._warn = warn

    def append(self, record: Mapping[str, object]) -> None:
        """Takes numbers and strings; a number that JSON lacks (nan, inf) is written as null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = json.dumps(finite, allow_nan=False) + "\n"
        with self._queue:
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            while len(self._waiting) > self._max_waiting or self._waiting_bytes > self._max_waiting_bytes:
                self._waiting_bytes -= len(self._waiting.popleft())
        self._news.set()

    async def run(self) -> None:
        """Writes until it is cancelled, and then what is left."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                self._report(await asyncio.to_thread(self._flush))
        finally:
            self._report(self._flush())

    def _report(self, failure: str) -> None:
        if failure:
            self._warn(failure)

    def _flush(self) -> str:
        """Why lines were lost, or nothing. The lock is for a cancelled `run`, whose thread may still be at it."""
        with self._writing:
            with self._queue:
                lines = "".join(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
            try:
                self._write(lines)
            except OSError as error:
                return f"{self._path.name}: lines lost: {error.strerror}"
        return ""

    def _write(self, text: str) -> None:
        if not text:
            return
        size = self._path.stat().st_size if self._path.exists() else 0
        if size and size + len(text) > self._max_bytes:  # json.dumps writes ASCII: characters are bytes
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        # Half a line may be there: of a crash, or of a full disk on which not even this could be undone.
        data = b"\n" * self._torn() + text.encode("ascii")
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                os.truncate(self._path, end)
                raise

    def _torn(self) -> bool:
        try:
            with self._path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        except OSError:  # there is none, or it is empty
            return False
