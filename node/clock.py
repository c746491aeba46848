"""Notices that time did not pass as it should: a machine that slept, a process that was stopped, a clock that was set.

Learning is by monotonic time and does not care. What others see of us (announcements, the age of groups) is by the wall
clock, and what we know of others is old after a pause: so it is said, and the network is asked to look again at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

TICK_S = 1.0
TOLERATED_S = 5.0
"""A loop that is late by less is busy, and a clock that is off by less is being set by NTP."""

log = logging.getLogger(__name__)


class ClockWatch:
    def __init__(
        self,
        *,
        warn: Callable[[str], None],
        refresh: Callable[[], None],
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refresh` is called after a jump. Clocks in seconds."""
        self._warn, self._refresh = warn, refresh
        self._wall_clock, self._clock = wall_clock, clock
        self._looked_at, self._wall_was = clock(), wall_clock()

    async def run(self) -> None:
        """Looks until it is cancelled."""
        self._looked_at, self._wall_was = self._clock(), self._wall_clock()
        while True:
            await asyncio.sleep(TICK_S)
            self.look()

    def look(self) -> None:
        """Once a tick."""
        now, wall = self._clock(), self._wall_clock()
        passed, wall_passed = now - self._looked_at, wall - self._wall_was
        self._looked_at, self._wall_was = now, wall
        texts = []
        if (stood_still := passed - TICK_S) > TOLERATED_S:
            texts.append(f"the node stood still for {stood_still:.0f} s: the process was stopped, or the machine slept")
        if abs(jump := wall_passed - passed) > TOLERATED_S:
            texts.append(
                f"the clock jumped by {jump:+.0f} s: it was set, or the machine slept; peers refuse what is too old or"
                " of the future by their clocks"
            )
        for text in texts:
            log.warning(text)
            self._warn(text)
        if texts:
            self._refresh()
