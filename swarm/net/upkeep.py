"""Keeps something on the network alive that may break at any time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Never, Protocol

from swarm.errors import NetworkError

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 60.0
STABLE_S = 60.0
"""What lived so long was good: the next pause is the shortest again."""

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who decides what happens after a failure."""

    def up(self) -> None:
        """It works again."""
        ...

    def failed(self, error: Exception) -> float:
        """How many seconds to wait before the next try. Raises what is not to be survived."""
        ...


class Patience:
    """OSError (NetworkError is one; so is a disk that has no room for a socket) is survived for ever, with pauses that
    grow; anything else is a bug, and raised."""

    def __init__(self, rng: random.Random, clock: Callable[[], float] = time.monotonic) -> None:
        self._rng, self._clock = rng, clock
        self._pause_s = FIRST_RETRY_S
        self._up_at: float | None = None

    def up(self) -> None:
        self._up_at = self._clock()

    def failed(self, error: Exception) -> float:
        if not isinstance(error, OSError):
            raise error
        logger.warning("the network is down (%s); starting it again", error)
        if self._up_at is not None and self._clock() - self._up_at > STABLE_S:
            self._pause_s = FIRST_RETRY_S
        self._up_at = None
        pause_s = self._pause_s * self._rng.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, LAST_RETRY_S)
        return pause_s


async def keep_up(live: Callable[[], Awaitable[None]], broke: Callable[[str], None], watcher: Watcher) -> Never:
    """Awaits `live()` again and again, with `watcher`'s pauses. `broke` is told why it ended."""
    while True:
        error: Exception = NetworkError("ended")
        try:
            await live()
        except Exception as raised:  # noqa: BLE001 - the watcher says what is survived, and raises the rest
            error = _cause(raised)
        broke(str(error) or type(error).__name__)
        await asyncio.sleep(watcher.failed(error))


def _cause(error: Exception) -> Exception:
    """Of all that a group of tasks ended with, what weighs most: a bug, if there is one."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if not isinstance(leaf, OSError)), leaves[0])


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
