"""How a node ends: asked once it saves what it has, asked twice it is gone, and in the end it is gone in any case.

SIGTERM, SIGINT, the operator's Stop
    └── sampling ends, what is in flight is finished    SAMPLING_S
    └── the step under way is finished                  LOOPS_S
    └── checkpoint                                      CHECKPOINT_S
    └── RPC, network, engine, judges, journal           CLOSING_S each
DEADLINE_S after the first signal the process ends, whatever still hangs: a thread cannot be cancelled, and a
native library need not return. What was committed to the journal, and the newest checkpoint, are safe by then.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

from node.exit_codes import OK, UNAVAILABLE, UNSAVED

T = TypeVar("T")

SAMPLING_S = 4.0
LOOPS_S = 4.0
CHECKPOINT_S = 6.0
CLOSING_S = 4.0
DEADLINE_S = 19.0

log = logging.getLogger(__name__)


class Ending:
    """Of one process. Made in its event loop; `stopping` is set once, by whoever ends the node."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self.stopping = asyncio.Event()
        self.saved = True
        """Whether all that was learned is in a checkpoint."""
        self._deadline_s = deadline_s
        self.why = ""
        """What it ended of, if it was not asked to."""
        self._armed = False

    @property
    def code(self) -> int:
        """What the process is to end with."""
        if self.why:
            return UNAVAILABLE
        return OK if self.saved else UNSAVED

    def on_signals(self) -> None:
        """The first one stops the node in good order, the second one at once, with 128 + its number."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    async def watch(self) -> None:
        """Returns when the node is stopped, whoever stopped it, with the deadline set."""
        await self.stopping.wait()
        self._arm()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns; None if the node is stopped before, and `work` with it."""
        task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    def stuck(self, what: str) -> None:
        """A part does not come back: the node is stopped, and is to be started again."""
        log.critical("%s; the node ends", what)
        self.why = what
        self.stopping.set()

    def _signalled(self, number: int) -> None:
        if self.stopping.is_set():
            log.warning("asked again (%s): ending now", signal.Signals(number).name)
            os._exit(128 + number)
        log.info("asked to stop (%s)", signal.Signals(number).name)
        self.stopping.set()
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            timer = threading.Timer(self._deadline_s, self._end)
            timer.daemon = True
            timer.start()

    def _end(self) -> None:
        """In a thread of its own, with whatever hangs still hanging."""
        log.critical("not gone %g s after it was asked to stop; where it hangs follows", self._deadline_s)
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        os._exit(self.code)


class Closing(AbstractAsyncContextManager[T], Generic[T]):
    """`context`, whose closing is given up after CLOSING_S: what is opened before it must still be closed."""

    def __init__(self, context: AbstractAsyncContextManager[T], what: str, within_s: float = CLOSING_S) -> None:
        self._context, self._what, self._within_s = context, what, within_s

    async def __aenter__(self) -> T:
        return await self._context.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        closing = asyncio.ensure_future(self._context.__aexit__(kind, error, trace))
        done, _ = await asyncio.wait([closing], timeout=self._within_s)
        if done:
            return closing.result()
        log.warning("%s is not closed after %g s, and is left as it is", self._what, self._within_s)
        closing.cancel()
        return None


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` goes on inside, and ends with it."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
