"""Where groups are kept: one SQLite file, touched by one thread, which peers read through the `GroupLog` protocol.

A group counts only once `append` has returned. What survives then:

* SIGKILL: every group that was acknowledged, because a commit is in the kernel's hands before it is acknowledged.
* A power cut: a consistent file that may lack the newest commits (synchronous=NORMAL in WAL mode does not fsync each
  one; FULL would cost an fsync per commit). A cursor is never given out twice even then: each opening durably skips
  more of them than can have been lost, so a peer that had read a lost group still gets whatever comes next. What a
  checkpoint refers to is not among them: `sync` comes before it.

A full disk makes appenders wait, and the node with them, until there is room. Everything else that goes wrong is
raised: after a failed write or fsync nobody knows what the disk has, and opening the file anew finds out.

Concurrent appenders share a transaction: while one commits, the others queue, and the next commit takes them all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from node.experience import Judged
from node.holds import Holds
from node.journal_file import MAX_PEERS, Bounds, Commit, DiskFull, JournalFile, Position, Row, open_journal_file
from node.journalled import Private, private_of
from node.logs import ids
from swarm.errors import JournalError
from swarm.net.base import GroupLog, LogEntry
from swarm.types import GroupId, PeerId, SignedGroup

log = logging.getLogger(__name__)

MAX_PENDING = 512
"""Appends waiting for one commit; further ones wait for room."""
CURSOR_DELAY_S = 1.0
"""A crash loses at most so much of the cursors' progress, which costs a few duplicates."""
RETRY_S = 5.0
"""Between two attempts at what a full disk had no room for."""
HOLDER = "journal"
PAGE = 256
"""Rows that are read at a time."""


class GroupJournal(GroupLog, Protocol):
    """What the loops ask of a journal: a log of our own groups for peers to read, that remembers peers' groups too."""

    async def keep(self, judged: Judged) -> bool:
        """Returns True once the group is kept, False if it was there already."""
        ...

    async def known(self, id: GroupId) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A moment in a journal's life, as the event loop sees it."""

    epoch: bytes
    cursor: int
    """Of the newest group that was kept by then."""
    untaken: tuple[GroupId, ...]
    """Of those that were, whose `keep` has not returned yet."""


class Journal:
    """Own and foreign groups in the order of their arrival, and how far we have read each peer's log.

    For use from the event loop that opened it, which it never blocks. Any method may raise JournalError.
    """

    def __init__(
        self, file: JournalFile, thread: ThreadPoolExecutor, loop: asyncio.AbstractEventLoop, room: Holds
    ) -> None:
        """Use `Journal.open`. Made in the thread, because it reads the file."""
        self._file = file
        self._thread = thread
        self._loop = loop
        self._on_disk = room
        self._ids = OrderedDict.fromkeys(file.ids())
        self._head = file.head()
        self._newest = file.newest()
        self._untaken: dict[GroupId, None] = {}
        self._full = False
        self._advanced = asyncio.Event()
        self._pending: deque[_Append] = deque()
        self._room = asyncio.Semaphore(MAX_PENDING)
        self._cursors = OrderedDict(file.cursors())
        self._unsaved: dict[PeerId, Position] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path,
        max_groups: int,
        room: Holds | None = None,
        *,
        max_bytes: float = math.inf,
        max_age_s: float = math.inf,
    ) -> AsyncIterator[Journal]:
        """The journal at `path`: made if there is none, brought up to date if an older version made it. Keeps the
        newest `max_groups` groups, own and foreign, as far as they are within the other bounds. Nothing is appended
        while `room` is held: appenders wait.

        A damaged file is set aside as `<path>.damaged-<n>` and a fresh one, with a new epoch, takes its place.
        """
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "journal")
        try:
            bounds = Bounds(max_groups=max_groups, max_bytes=max_bytes, max_age_s=max_age_s)
            journal = await loop.run_in_executor(
                thread, lambda: cls(open_journal_file(path, bounds), thread, loop, room or Holds())
            )
            try:
                yield journal
            finally:
                await journal._close()
        finally:
            thread.shutdown()

    @property
    def epoch(self) -> bytes:
        """16 random bytes made with the file."""
        return self._file.epoch

    @property
    def head(self) -> int:
        """Cursor of the newest own group, 0 if there is none."""
        return self._head

    @property
    def place(self) -> Place:
        """Now. Whoever keeps a group and takes note of it before it awaits anything else is never seen in between."""
        return Place(epoch=self.epoch, cursor=self._newest, untaken=tuple(self._untaken))

    async def keep(self, judged: Judged) -> bool:
        experience = judged.experience
        return await self.append(judged.signed, experience.scores, experience.own, private_of(experience))

    async def append(
        self, signed: SignedGroup, rewards: Sequence[float | None], own: bool, private: Private | None = None
    ) -> bool:
        """Returns True once the group is committed, False if it was there already. Waits for room on the disk.

        `rewards` are the ones that we computed, None for a rollout without a score; a group without what is `private`
        is not learned from again. A cancelled append may or may not have been committed.
        """
        if signed.id in self._ids:
            return False
        row = _row(signed, rewards, own, private)
        async with self._room:
            while True:
                await self._on_disk.wait()
                try:
                    kept = await self._commit(row)
                except DiskFull as error:
                    await self._wait_for_room(error)
                else:
                    log.debug("journalled", extra=ids(group=signed.id, peer=signed.group.origin, own=own))
                    self._untaken.pop(row.id, None)
                    return kept

    async def _commit(self, row: Row) -> bool:
        self._check_open()
        append = _Append(row)
        self._pending.append(append)
        self._thread.submit(self._commit_pending)
        return await asyncio.wrap_future(append.done)

    async def _wait_for_room(self, error: DiskFull) -> None:
        """All appenders wait, and say why; then all of them try again."""
        if not self._full:
            log.warning("%s; what was sampled and received waits until there is room", error)
        self._full = True
        self._on_disk.hold(HOLDER, f"{error}; what was sampled and received waits until there is room")
        try:
            await asyncio.sleep(RETRY_S)
        finally:
            self._on_disk.release(HOLDER)

    async def flush(self) -> None:
        """Returns once all that was appended is committed."""
        await self._loop.run_in_executor(self._thread, lambda: None)

    async def known(self, id: GroupId) -> bool:
        """Whether the group is in the journal. Answered from memory."""
        return id in self._ids

    async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
        """Up to `limit` own groups after `cursor`, oldest first. One that was pruned is passed over."""
        if cursor >= self._head or limit <= 0:
            return ()
        self._check_open()
        return await self._loop.run_in_executor(self._thread, self._file.read, cursor, limit)

    async def rows_of(self, ids: Sequence[GroupId]) -> Mapping[GroupId, Row]:
        """Those of these groups that are there and undamaged."""
        self._check_open()
        return await self._loop.run_in_executor(self._thread, self._file.rows_of, ids)

    async def rows_after(self, cursor: int) -> Sequence[tuple[int, Row]]:
        """The next groups with their cursors, own and foreign, oldest first; at most PAGE."""
        self._check_open()
        return await self._loop.run_in_executor(self._thread, self._file.rows_after, cursor, PAGE)

    async def sync(self) -> None:
        """Returns when everything that was kept before survives a power cut."""
        self._check_open()
        await self._loop.run_in_executor(self._thread, self._file.sync)

    async def wait(self, cursor: int) -> int:
        """Returns the head as soon as it is greater than `cursor`."""
        while self._head <= cursor:
            self._check_open()
            await self._advanced.wait()
        return self._head

    def cursor(self, peer: PeerId) -> Position:
        """How far we have read the peer's log; (b"", 0) if we never did."""
        return self._cursors.get(peer, (b"", 0))

    def set_cursor(self, peer: PeerId, epoch: bytes, cursor: int) -> None:
        """Remembers it at once, and on disk within CURSOR_DELAY_S or when the journal is closed."""
        self._check_open()
        self._cursors[peer] = self._unsaved[peer] = (epoch, cursor)
        self._cursors.move_to_end(peer)
        if len(self._cursors) > MAX_PEERS:
            forgotten, _ = self._cursors.popitem(last=False)
            self._unsaved.pop(forgotten, None)
        if self._timer is None:
            self._timer = self._loop.call_later(CURSOR_DELAY_S, self._save_cursors)

    def _save_cursors(self) -> None:
        self._timer = None
        unsaved, self._unsaved = self._unsaved, {}
        self._loop.run_in_executor(self._thread, self._write_cursors, unsaved)

    def _write_cursors(self, cursors: Mapping[PeerId, Position]) -> None:
        """In the thread."""
        try:
            self._file.save_cursors(cursors)
        except JournalError as error:  # nobody waits for it, and all it costs is some duplicates after a restart
            log.warning("cursors of %d peers were not saved: %s", len(cursors), error)

    def _commit_pending(self) -> None:
        """In the thread. Submitted once per append; the first of them takes what all have queued."""
        batch = []
        while self._pending:
            append = self._pending.popleft()
            if append.done.set_running_or_notify_cancel():
                batch.append(append)
        if not batch:
            return
        try:
            commit = self._file.append([append.row for append in batch])
        except Exception as error:  # noqa: BLE001 - raised again, in each of those who wait for this commit
            for append in batch:
                append.done.set_exception(error)
            return
        self._loop.call_soon_threadsafe(self._committed, commit)  # before the appenders hear of it
        for append, fresh in zip(batch, commit.fresh, strict=True):
            append.done.set_result(fresh)

    def _committed(self, commit: Commit) -> None:
        if self._full:
            log.info("journal %s has room again", self._file.path)
            self._full = False
        self._ids.update((id, None) for id in commit.ids)
        self._untaken.update((id, None) for id in commit.ids)
        self._newest = max(self._newest, commit.newest)
        for _ in range(commit.pruned):
            self._ids.popitem(last=False)
        if commit.head > self._head:
            self._head = commit.head
            self._wake()

    def _wake(self) -> None:
        self._advanced.set()
        self._advanced = asyncio.Event()

    def _check_open(self) -> None:
        if self._closed:
            raise JournalError(f"journal {self._file.path} is closed")

    async def _close(self) -> None:
        """Commits what is queued, saves the cursors, and lets those who `wait` know."""
        self._closed = True
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
            self._save_cursors()
        await self._loop.run_in_executor(self._thread, self._file.close)


def _row(signed: SignedGroup, rewards: Sequence[float | None], own: bool, private: Private | None) -> Row:
    scores = [None if reward is None else float(reward) for reward in rewards]
    return Row(
        id=signed.id,
        origin=signed.group.origin,
        own=own,
        created_at=signed.group.created_at,
        journalled_at=time.time(),
        body=signed.body,
        signature=signed.signature,
        rewards=json.dumps(scores, allow_nan=False),
        source=signed.group.task.source,
        best=max((score for score in scores if score is not None), default=None),
        value=private.value if private else None,
        version=private.version if private else None,
        sampled=private.sampled if private else None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Append:
    row: Row
    done: Future[bool] = field(default_factory=Future)
