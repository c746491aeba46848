"""Keeps something on the network alive that may break at any time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Never

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 60.0
STABLE_S = 60.0
"""What lived so long was good: the next pause is the shortest again."""

logger = logging.getLogger(__name__)


async def keep_up(live: Callable[[], Awaitable[None]], broke: Callable[[str], None], rng: random.Random) -> Never:
    """Awaits `live()` again and again, with growing pauses. `broke` is told why it ended with OSError (in a group);
    anything else is a bug, and raised."""
    loop = asyncio.get_running_loop()
    pause, why = FIRST_RETRY_S, "ended"
    while True:
        started = loop.time()
        try:
            await live()
        except* OSError as failures:  # NetworkError is one; so is a disk that has no room for a socket.
            why = str(_first(failures))
        broke(why)
        if loop.time() - started > STABLE_S:
            pause = FIRST_RETRY_S
        logger.warning("the network is down (%s); starting it again", why)
        await asyncio.sleep(pause * rng.uniform(0.5, 1.0))
        pause = min(2 * pause, LAST_RETRY_S)


def _first(group: BaseExceptionGroup[OSError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
