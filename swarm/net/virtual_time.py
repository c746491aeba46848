"""An event loop whose clock jumps: whoever sleeps an hour is woken at once, an hour later by `loop.time()`.

Real coroutines run on it unchanged and in an order that depends on nothing but them: a swarm of many nodes, each with
its own speed, lives through hours in seconds and does the same again for the same seed. What is given to a thread
(`run_in_executor`, `asyncio.to_thread`) runs at once, here, and takes no time.

There is no outside: a loop on which everybody waits and nobody sleeps would wait for ever, and raises `Deadlock`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Everybody waits for somebody else."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 seconds and is moved by sleeping only."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Skipping(self._skip))

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - raised again, in whoever awaits it
            done.set_exception(error)
        return done

    def _skip(self, seconds: float) -> None:
        self._now += seconds


class _Skipping(selectors.DefaultSelector):
    """Never waits: tells how long it would have, which is until the loop's next timer."""

    def __init__(self, skip: Callable[[float], None]) -> None:
        super().__init__()
        self._skip = skip

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("nothing is ready, nothing is scheduled: everybody waits for somebody else")
        self._skip(timeout)
        return super().select(0)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, in virtual time. Raises Deadlock."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
