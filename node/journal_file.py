"""The journal's SQLite file: schema, statements, damage. Synchronous; every instance belongs to one thread."""

from __future__ import annotations

import itertools
import logging
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
SCHEMA_VERSION = 1
SCHEMA = (
    """CREATE TABLE groups (
        cursor        INTEGER PRIMARY KEY AUTOINCREMENT,
        id            TEXT NOT NULL UNIQUE,
        origin        TEXT NOT NULL,
        own           INTEGER NOT NULL,
        created_at    REAL NOT NULL,  -- unix seconds, the origin's clock
        journalled_at REAL NOT NULL,  -- unix seconds, ours
        body          BLOB NOT NULL,
        signature     BLOB NOT NULL,
        rewards       TEXT NOT NULL   -- JSON: one number a rollout, null where the source gave no score
    )""",
    "CREATE INDEX published ON groups (cursor) WHERE own",
    # Replacing a row gives it the highest rowid: rowid order is recency.
    "CREATE TABLE cursors (peer TEXT PRIMARY KEY, epoch BLOB NOT NULL, cursor INTEGER NOT NULL)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "INSERT INTO sqlite_sequence VALUES ('groups', 0)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
INSERT = """INSERT INTO groups (id, origin, own, created_at, journalled_at, body, signature, rewards)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"""

Position = tuple[bytes, int]
"""Epoch of a peer's log, and the cursor in it that we have read to."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    fresh: Sequence[bool]
    """Of each row: whether it was new."""
    ids: Sequence[GroupId]
    """Of the new ones, in cursor order."""
    pruned: int
    """How many of the oldest groups went."""
    head: int
    """Cursor of the newest own one, 0 if there is none among them."""


def open_journal_file(path: Path, max_groups: int) -> JournalFile:
    """Opens or makes the file; sets a damaged one aside. Raises JournalError."""
    try:
        return JournalFile(path, max_groups)
    except _Damage as damage:
        aside = _set_aside(path)
        log.warning("%s is damaged (%s); it is kept as %s, and a new one is started", path, damage, aside)
        return JournalFile(path, max_groups)


class JournalFile:
    """The open file. Raises JournalError, naming the file and SQLite's reason."""

    def __init__(self, path: Path, max_groups: int) -> None:
        """Use `open_journal_file`."""
        self.path = path
        self._max_groups = max_groups
        self._count = 0
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

    def cursors(self) -> dict[PeerId, Position]:
        """The least recently saved first."""
        with self._explained("read"):
            rows = self._connection.execute("SELECT peer, epoch, cursor FROM cursors ORDER BY rowid")
            return {PeerId(peer): (epoch, cursor) for peer, epoch, cursor in rows}

    def append(self, rows: Sequence[Row]) -> Commit:
        """All of them in one transaction, or none. What is then too much goes, oldest first."""
        fresh, head = [], 0
        with self._explained("written"), self._transaction():
            for row in rows:
                inserted = self._connection.execute(INSERT, row)
                fresh.append(inserted.rowcount == 1)
                if fresh[-1] and row.own:
                    head = inserted.lastrowid or head
            count = self._count + sum(fresh)
            pruned = self._prune(count)
        self._count = count - pruned
        ids = [row.id for row, new in zip(rows, fresh, strict=True) if new]
        return Commit(fresh=fresh, ids=ids, pruned=pruned, head=head)

    def read(self, cursor: int, limit: int) -> list[LogEntry]:
        """Own groups after `cursor`, oldest first."""
        with self._explained("read"):
            rows = self._connection.execute(
                "SELECT cursor, body, signature FROM groups WHERE own AND cursor > ? ORDER BY cursor LIMIT ?",
                (cursor, limit),
            )
            return [LogEntry(cursor=cursor, body=body, signature=signature) for cursor, body, signature in rows]

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
        """Checks the file, makes the schema in a new one, skips cursors in an old one, prunes it."""
        version = self._value("PRAGMA user_version")
        if version not in (0, SCHEMA_VERSION):
            raise JournalError(
                f"journal {self.path} has schema version {version}, this program knows {SCHEMA_VERSION}: "
                "run the version that made it, or move the file away"
            )
        if (verdict := self._value("PRAGMA quick_check(1)")) != "ok":
            raise _Damage(verdict)
        if (mode := self._value("PRAGMA journal_mode = WAL")) != "wal":
            raise JournalError(f"journal {self.path} cannot have a WAL on this file system (journal mode {mode})")
        self._connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT}")
        self._connection.execute("PRAGMA synchronous = FULL")  # the epoch and the gap must not be lost again
        with self._transaction():
            if version == 0:
                for statement in SCHEMA:
                    self._connection.execute(statement)
                self._connection.execute("INSERT INTO meta VALUES ('epoch', ?)", (secrets.token_bytes(16),))
            else:
                self._connection.execute("UPDATE sqlite_sequence SET seq = seq + ?", (CURSOR_GAP,))
            count = self._value("SELECT count(*) FROM groups")
            self._count = count - self._prune(count)
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def _read_epoch(self) -> bytes:
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        if row is None:
            raise _Damage("it has no epoch")
        return row[0]

    def _prune(self, count: int) -> int:
        """Within a transaction."""
        if count <= self._max_groups:
            return 0
        excess = count - self._max_groups
        newest = self._value(f"SELECT cursor FROM groups ORDER BY cursor LIMIT 1 OFFSET {excess - 1}")
        self._connection.execute("DELETE FROM groups WHERE cursor <= ?", (newest,))
        return excess

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
            kind = _Damage if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else JournalError
            raise kind(f"journal {self.path} cannot be {verb}: {error}") from error


class _Damage(JournalError):
    """The file is not, or no longer, a journal."""


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
