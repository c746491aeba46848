"""The journal's SQLite file: statements, bounds, damage. Synchronous; every instance belongs to one thread."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from node.journal_schema import MIGRATIONS, SCHEMA_VERSION, create, migrate
from swarm.errors import JournalError
from swarm.net.base import LogEntry
from swarm.types import GroupId, PeerId

log = logging.getLogger(__name__)

MAX_PEERS = 4096
"""Peers whose cursors are remembered; the least recently read go first."""
CURSOR_GAP = 1 << 20
"""Skipped at each opening. SQLite fsyncs its WAL about every 4 MB, which is far fewer groups."""
BUSY_TIMEOUT_S = 5.0
WAL_SIZE_LIMIT = 64 << 20
"""Bytes that the WAL shrinks back to after it has grown."""
ROW_BYTES = 300
"""Of a row, beside body, rewards and what was sampled: id, origin, signature, source, numbers, and the ids' index."""
COLUMNS = "id, origin, own, created_at, journalled_at, body, signature, rewards, source, best, value, version, sampled"
INSERT = f"""INSERT INTO groups ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO NOTHING"""

Position = tuple[bytes, int]
"""Epoch of a peer's log, and the cursor in it that we have read to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a journal keeps. Whatever is beyond one of them goes, oldest first."""

    max_groups: int
    """Own and foreign."""
    max_bytes: float = math.inf
    """Pages of the file that are in use. Those that are not are used again; the file itself does not shrink."""
    max_age_s: float = math.inf
    """Since they were journalled, by our wall clock."""


class Row(NamedTuple):
    """What INSERT takes, in its order."""

    id: GroupId
    origin: PeerId
    own: bool
    created_at: float
    journalled_at: float
    body: bytes
    signature: bytes
    rewards: str
    source: str
    best: float | None
    value: float | None
    version: int | None
    sampled: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    fresh: Sequence[bool]
    """Of each row: whether it was new."""
    ids: Sequence[GroupId]
    """Of the new ones, in cursor order."""
    newest: int
    """Cursor of the newest group, own or foreign."""
    pruned: int
    """How many of the oldest groups went."""
    head: int
    """Cursor of the newest own one, 0 if there is none among them."""


def open_journal_file(path: Path, bounds: Bounds) -> JournalFile:
    """Opens or makes the file; sets a damaged one aside. Raises JournalError."""
    try:
        return JournalFile(path, bounds)
    except _Damage as damage:
        aside = _set_aside(path)
        log.warning("%s is damaged (%s); it is kept as %s, and a new one is started", path, damage, aside)
        return JournalFile(path, bounds)


class JournalFile:
    """The open file. Raises JournalError, naming the file and SQLite's reason."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        """Use `open_journal_file`."""
        self.path = path
        self._bounds = bounds
        self._count = 0
        self._damaged: set[int] = set()
        with self._explained("opened"):
            # isolation_level=None: transactions are ours to begin, the module's own would begin too late.
            self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            try:
                self._prepare()
                self.epoch = self._read_epoch()
            except BaseException:
                self._connection.close()
                raise

    def ids(self) -> list[GroupId]:
        """Of all groups, in cursor order."""
        with self._explained("read"):
            return [GroupId(id) for (id,) in self._connection.execute("SELECT id FROM groups ORDER BY cursor")]

    def head(self) -> int:
        """Cursor of the newest own group, 0 if there is none."""
        with self._explained("read"):
            return self._value("SELECT coalesce(max(cursor), 0) FROM groups WHERE own")

    def newest(self) -> int:
        """Cursor of the newest group, own or foreign, of all that there ever were."""
        with self._explained("read"):
            return self._value("SELECT seq FROM sqlite_sequence WHERE name = 'groups'")

    def cursors(self) -> dict[PeerId, Position]:
        """The least recently saved first."""
        with self._explained("read"):
            rows = self._connection.execute("SELECT peer, epoch, cursor FROM cursors ORDER BY rowid")
            return {PeerId(peer): (epoch, cursor) for peer, epoch, cursor in rows}

    def append(self, rows: Sequence[Row]) -> Commit:
        """All of them in one transaction, or none. What is then too much goes, oldest first."""
        fresh, head, newest = [], 0, 0
        with self._explained("written"), self._transaction():
            for row in rows:
                inserted = self._connection.execute(INSERT, row)
                fresh.append(inserted.rowcount == 1)
                if fresh[-1]:
                    newest = inserted.lastrowid or newest
                    head = newest if row.own else head
            count = self._count + sum(fresh)
            pruned = self._prune(count, time.time())
        self._count = count - pruned
        ids = [row.id for row, new in zip(rows, fresh, strict=True) if new]
        return Commit(fresh=fresh, ids=ids, pruned=pruned, head=head, newest=newest)

    def read(self, cursor: int, limit: int) -> list[LogEntry]:
        """Own groups after `cursor`, oldest first, less those whose bytes are not what they were."""
        with self._explained("read"):
            rows = self._connection.execute(
                "SELECT cursor, id, body, signature FROM groups WHERE own AND cursor > ? ORDER BY cursor LIMIT ?",
                (cursor, limit),
            )
            return [
                LogEntry(cursor=cursor, body=body, signature=signature)
                for cursor, id, body, signature in rows
                if self._whole(cursor, id, body)
            ]

    def rows_of(self, ids: Sequence[GroupId]) -> dict[GroupId, Row]:
        """Those of these groups that are there and whole."""
        found: dict[GroupId, Row] = {}
        with self._explained("read"):
            for id in ids:
                row = self._connection.execute(f"SELECT cursor, {COLUMNS} FROM groups WHERE id = ?", (id,)).fetchone()
                if row is not None and self._whole(row[0], id, row[6]):
                    found[id] = Row(*row[1:])
        return found

    def rows_after(self, cursor: int, limit: int) -> list[tuple[int, Row]]:
        """Up to `limit` groups with their cursors, own and foreign, oldest first. All are there, damaged or not."""
        with self._explained("read"):
            rows = self._connection.execute(
                f"SELECT cursor, {COLUMNS} FROM groups WHERE cursor > ? ORDER BY cursor LIMIT ?", (cursor, limit)
            )
            return [(cursor, Row(*rest)) for cursor, *rest in rows]

    def sync(self) -> None:
        """What was committed so far survives a power cut, too."""
        with self._explained("written"):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def save_cursors(self, cursors: Mapping[PeerId, Position]) -> None:
        """Adds to those that are there and keeps the newest MAX_PEERS."""
        rows = [(peer, epoch, cursor) for peer, (epoch, cursor) in cursors.items()]
        with self._explained("written"), self._transaction():
            self._connection.executemany("REPLACE INTO cursors (peer, epoch, cursor) VALUES (?, ?, ?)", rows)
            self._connection.execute(
                "DELETE FROM cursors WHERE rowid NOT IN (SELECT rowid FROM cursors ORDER BY rowid DESC LIMIT ?)",
                (MAX_PEERS,),
            )

    def close(self) -> None:
        with self._explained("closed"):
            self._connection.close()

    def _prepare(self) -> None:
        """Checks the file, makes the schema in a new one, migrates and prunes an old one, and skips cursors in it."""
        version = self._value("PRAGMA user_version")
        if version not in (0, SCHEMA_VERSION, *MIGRATIONS):
            raise JournalError(
                f"journal {self.path} has schema version {version}, this program knows {SCHEMA_VERSION}: "
                "run the version that made it, or move the file away"
            )
        if (verdict := self._value("PRAGMA quick_check(1)")) != "ok":
            raise _Damage(verdict)
        # Or a power cut may bring the rollback journal of a new file back, which would empty it.
        self._connection.execute("PRAGMA synchronous = EXTRA")
        if (mode := self._value("PRAGMA journal_mode = WAL")) != "wal":
            raise JournalError(f"journal {self.path} cannot have a WAL on this file system (journal mode {mode})")
        self._connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT}")
        self._connection.execute("PRAGMA synchronous = FULL")  # the epoch and the gap must not be lost again
        with self._transaction():
            if version == 0:
                create(self._connection)
            elif version < SCHEMA_VERSION:
                log.info("%s: from schema version %d to %d", self.path, version, SCHEMA_VERSION)
                migrate(self._connection, version)
            self._connection.execute("UPDATE sqlite_sequence SET seq = seq + ?", (CURSOR_GAP if version else 0,))
            count = self._value("SELECT count(*) FROM groups")
            self._count = count - self._prune(count, time.time())
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def _read_epoch(self) -> bytes:
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        if row is None:
            raise _Damage("it has no epoch")
        return row[0]

    def _prune(self, count: int, now: float) -> int:
        """Within a transaction. How many of the `count` groups went."""
        pruned = 0
        while excess := self._excess(count - pruned, now):
            last = self._value(f"SELECT cursor FROM groups ORDER BY cursor LIMIT 1 OFFSET {excess - 1}")
            self._connection.execute("DELETE FROM groups WHERE cursor <= ?", (last,))
            pruned += excess
        return pruned

    def _excess(self, count: int, now: float) -> int:
        """How many of the oldest groups are too many. By bytes it is a guess: a page is free when the last row in it is
        gone, so whoever has deleted them asks again."""
        surplus = self._used_bytes() - self._bounds.max_bytes
        sizes = self._connection.execute(
            "SELECT journalled_at, length(body) + length(rewards) + ifnull(length(sampled), 0) FROM groups"
            " ORDER BY cursor"
        )
        for number, (journalled_at, size) in enumerate(sizes):
            old = now - journalled_at > self._bounds.max_age_s
            if not old and surplus <= 0 and count - number <= self._bounds.max_groups:
                return number
            surplus -= size + ROW_BYTES
        return count

    def _used_bytes(self) -> int:
        pages = self._value("PRAGMA page_count") - self._value("PRAGMA freelist_count")
        return pages * self._value("PRAGMA page_size")

    def _whole(self, cursor: int, id: GroupId, body: bytes) -> bool:
        """SQLite does not see a bit that flips in a row, and peers would take it for a forgery of ours."""
        if hashlib.sha256(body).hexdigest() == id:
            return True
        if cursor not in self._damaged:
            self._damaged.add(cursor)
            log.warning("%s: group %s is passed over: its bytes are not what its id says", self.path, id)
        return False

    def _value(self, statement: str) -> Any:
        return self._connection.execute(statement).fetchone()[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # after some errors SQLite has rolled back by itself
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest its detail
            raise KINDS.get(code, JournalError)(f"journal {self.path} cannot be {verb}: {error}") from error


class DiskFull(JournalError):
    """There is no room for it now. Nothing is broken."""


class _Damage(JournalError):
    """The file is not, or no longer, a journal."""


#: SQLite's codes that say more than that something failed.
KINDS = {sqlite3.SQLITE_CORRUPT: _Damage, sqlite3.SQLITE_NOTADB: _Damage, sqlite3.SQLITE_FULL: DiskFull}


def _set_aside(path: Path) -> Path:
    """Renames the file and its WAL, so that they can still be examined together."""
    names = (path.with_name(f"{path.name}.damaged-{n}") for n in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            companion = path.with_name(path.name + suffix)
            if companion.exists():
                companion.rename(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise JournalError(f"journal {path} is damaged and cannot be renamed: {error.strerror}") from error
    return aside
