"""Which groups of the journal are still to be learned from: what a checkpoint says of them, and how they come back.

A checkpoint refers to groups and does not contain them. It names those that were waiting, drawn or not, in the order of
the pool, and the place that the journal had reached. At the next start

* what waited is put back into the pool as it was (`restore`), before anything else happens;
* what was journalled since is learned from again (`replay`), in the order in which it came, while the producers wait:
  those steps were lost with the weights, and the groups need not be sampled a second time.

So every group that was journalled is trained on, dropped for a reason that is counted, or waiting; and a group is
trained on again only where the checkpoint knows nothing of the first time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from node.experience import Experience
from node.journal import Journal
from node.journal_file import Row
from node.journalled import experience_of, group_of
from node.pool import RolloutPool
from swarm.errors import JournalError, TaskError
from swarm.tasks.base import Judge
from swarm.types import GroupId, RolloutGroup

log = logging.getLogger(__name__)

KEY = "experience"
"""In a checkpoint's state."""


class Outstanding(Protocol):
    """What the learner asks when it writes everything down."""

    def state(self, drawn: Sequence[Experience]) -> dict[str, Any]:
        """What a checkpoint says of the groups that wait, `drawn` ones first. Plain JSON data, as of now."""
        ...

    async def sync(self) -> None:
        """Returns when what the newest `state` refers to survives a power cut. Never raises."""
        ...


class Nothing:
    """`Outstanding` of a node whose journal ends with it."""

    def state(self, drawn: Sequence[Experience]) -> dict[str, Any]:
        return {}

    async def sync(self) -> None:
        pass


class Backlog:
    """Between one node's journal and its pool. For use from the event loop."""

    def __init__(
        self,
        journal: Journal,
        pool: RolloutPool,
        judge: Judge,
        *,
        ours: Callable[[RolloutGroup, bool], bool],
        max_age_s: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`ours`: whether a group, own or not, is of the swarm and the policy that this node has now. `max_age_s`: of
        peers' groups. `wall_clock`: unix seconds."""
        self._journal = journal
        self._pool = pool
        self._judge = judge
        self._ours = ours
        self._max_age_s = max_age_s
        self._wall_clock = wall_clock
        self._untaken: list[GroupId] = []
        self._ranges: list[tuple[int, int]] = []
        self.replayed = asyncio.Event()
        """Set when nothing is left to be replayed."""

    def state(self, drawn: Sequence[Experience]) -> dict[str, Any]:
        place = self._journal.place
        waiting = [*drawn, *self._pool.waiting]
        account = {
            "epoch": place.epoch.hex(),
            "cursor": place.cursor,
            "untaken": [*place.untaken, *self._untaken],
            "ranges": self._ranges,
            "waiting": [e.id for e in waiting if e.own] + [e.id for e in waiting if not e.own],
        }
        return {KEY: account}

    async def sync(self) -> None:
        try:
            await self._journal.sync()
        except JournalError as error:
            log.warning("%s: a power cut may cost groups that wait", error)

    async def restore(self, state: Mapping[str, Any] | None) -> None:
        """Puts back what waited by a checkpoint's `state`; None if there is no checkpoint. Where an older version wrote
        one and did not say, nothing is learned from again."""
        place = self._journal.place
        account = None if state is None else state.get(KEY)
        if state is not None and account is None:
            return
        if account is None or account["epoch"] != place.epoch.hex():  # all of this journal is newer
            self._ranges = [(0, place.cursor)]
            return
        self._untaken = [GroupId(id) for id in account["untaken"]]
        self._ranges = [(low, high) for low, high in account["ranges"]] + [(account["cursor"], place.cursor)]
        ids = [GroupId(id) for id in account["waiting"]]
        rows = await self._journal.rows_of(ids)
        experiences = [await self._experience(rows[id]) for id in ids if id in rows]
        there = [experience for experience in experiences if experience is not None]
        self._pool.restore(there)
        if missing := len(ids) - len(rows):
            log.warning("%d groups that were waiting are not in the journal any more", missing)
        if ids:
            log.info("%d of %d groups that were waiting are back", len(there), len(ids))

    async def replay(self) -> AsyncIterator[Experience]:
        """What the checkpoint knows nothing of. Each has been taken when the next one is asked for."""
        rows = await self._journal.rows_of(self._untaken)
        for id in list(self._untaken):
            experience = await self._experience(rows[id]) if id in rows else None
            self._untaken.remove(id)
            if experience is not None:
                yield experience
        while self._ranges:
            low, high = self._ranges[0]
            page = [(cursor, row) for cursor, row in await self._journal.rows_after(low) if cursor <= high]
            for cursor, row in page:
                experience = await self._experience(row)
                self._ranges[0] = (cursor, high)
                if experience is not None:
                    yield experience
            if not page:
                del self._ranges[0]
        self.replayed.set()

    async def _experience(self, row: Row) -> Experience | None:
        """None for one that cannot or need not be learned from."""
        age_s = max(self._wall_clock() - row.journalled_at, 0.0)
        if row.value is None or (not row.own and age_s > self._max_age_s):
            return None
        try:
            group = group_of(row)
            if not self._ours(group, bool(row.own)):
                return None
            task = await self._judge.task(group.task)
            return experience_of(row, group, task, asyncio.get_running_loop().time() - age_s)
        except (JournalError, TaskError) as error:
            log.warning("a group of the journal is not learned from: %s", error)
            return None
