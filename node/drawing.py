"""The batches of a learner, one after the other.

With `ahead`, the next one is drawn, and made into packed rows, while the one before is trained on. It is drawn as if
that step were over: for the version that it will be trained at. What arrives during the step comes a step later, and
own groups wait for a step more than the pool's capacity says, so that a swarm learns a little differently: experiments
(node/lab) draw when a step is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from node.engine.trainer import PreparedStep
from node.experience import Experience
from node.learning import Learning
from node.pool import RolloutPool
from swarm.types import PolicyVersion


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    groups: Sequence[Experience]
    prepared: PreparedStep | None
    """None where the step does that."""


class Drawing:
    """An asynchronous context manager; leaving it gives up what is being drawn."""

    def __init__(self, learning: Learning, pool: RolloutPool, *, ahead: bool = False) -> None:
        self._learning = learning
        self._pool = pool
        self._ahead = ahead
        self._coming: asyncio.Task[Batch] | None = None
        self._for = PolicyVersion(0)  # the version that it is drawn for

    async def __aenter__(self) -> Drawing:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)

    async def next(self) -> Batch:
        """Waits for own groups, and while the node is paused."""
        batch = await self._learning.waiting_for(self._coming) if self._coming is not None else None
        if batch is None or self._learning.version > self._for:  # the learner has gone back: it was of another line
            batch = Batch(groups=await self._learning.draw(self._pool), prepared=None)
        self._for = PolicyVersion(self._learning.version + 1)
        self._coming = asyncio.create_task(self._draw_ahead(self._for)) if self._ahead else None
        return batch

    async def _draw_ahead(self, version: PolicyVersion) -> Batch:
        groups = await self._learning.draw(self._pool, version)
        return Batch(groups=groups, prepared=await self._learning.prepare(groups, version))
