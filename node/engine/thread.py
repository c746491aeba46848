"""A thread for one kind of work, which says how long it has been at its present piece."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class WorkThread:
    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._since: float | None = None

    @property
    def busy_s(self) -> float:
        """Seconds that the piece of work under way has taken so far; 0 between two of them."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    async def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, once it is its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, function)

    async def close(self) -> None:
        """Waits for the piece under way, without holding up the event loop: nothing can cut it short."""
        await asyncio.to_thread(self._executor.shutdown)

    def _timed(self, function: Callable[[], T]) -> T:
        self._since = time.monotonic()
        try:
            return function()
        finally:
            self._since = None
