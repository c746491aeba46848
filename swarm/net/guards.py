"""Two tables of hivemind's control connection, without the ways in which they fail. See `swarm.net.stack`."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from swarm.errors import NetworkError

MAX_HANDLER_TASKS = 256
"""Unary requests of peers that are answered at a time; more are dropped, and their senders run into their deadlines."""


class PendingCalls(dict[UUID, "asyncio.Future[Any]"]):
    """Calls that wait for an answer, among which one that is done is not found any more: an answer that comes in the
    same turn of the loop as a cancellation would otherwise end the task that reads answers."""

    closed = False

    def __contains__(self, call: object) -> bool:
        future = self.get(call)  # type: ignore[call-overload]
        return future is not None and not future.done()

    def __setitem__(self, call: UUID, future: asyncio.Future[Any]) -> None:
        super().__setitem__(call, future)
        if self.closed:
            future.set_exception(NetworkError("closed"))

    def close(self) -> None:
        """Fails every call that waits or will be made, so that no task waits for a daemon that is gone."""
        self.closed = True
        for future in list(self.values()):
            if not future.done():
                future.set_exception(NetworkError("closed"))


class HandlerTasks(dict[UUID, "asyncio.Task[Any]"]):
    """Unary requests that are being answered: bounded, and without those that are done."""

    def __setitem__(self, call: UUID, task: asyncio.Task[Any]) -> None:
        super().__setitem__(call, task)
        task.add_done_callback(lambda done: self._forget(call, done))
        if len(self) > MAX_HANDLER_TASKS:
            task.cancel()

    def _forget(self, call: UUID, task: asyncio.Task[Any]) -> None:
        self.pop(call, None)
        if not task.cancelled():
            task.exception()
