"""The journal read from outside, by whoever looks at it while a daemon writes: read only, a page at a time.

Every page is a transaction of its own: a reader that stays in one would keep the WAL from being reused.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from node.journal_file import COLUMNS, Row
from node.journal_schema import SCHEMA_VERSION
from swarm.errors import JournalError

PAGE = 256
BUSY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which groups: all that every one of these lets pass."""

    own: bool | None = None
    """Own ones or peers' only."""
    source: str = ""
    """Of the task: its name, or the part after the slash."""
    min_reward: float = -math.inf
    """Of the best rollout; with it, groups without a score are left out."""
    since: float = -math.inf
    """Journalled at this time or later, unix seconds."""
    id: str = ""
    """The beginning of its id."""

    def condition(self) -> tuple[str, Sequence[object]]:
        parts: list[tuple[str, Sequence[object]]] = [("1", ())]
        if self.own is not None:
            parts.append(("own = ?", (self.own,)))
        if self.source:
            parts.append(("(source = ? OR substr(source, instr(source, '/') + 1) = ?)", (self.source, self.source)))
        if self.min_reward > -math.inf:
            parts.append(("best >= ?", (self.min_reward,)))
        if self.since > -math.inf:
            parts.append(("journalled_at >= ?", (self.since,)))
        if self.id:
            parts.append(("substr(id, 1, ?) = ?", (len(self.id), self.id)))
        return " AND ".join(text for text, _ in parts), [value for _, values in parts for value in values]


def newest_groups(path: Path, wanted: Wanted, limit: int) -> Iterator[tuple[int, Row]]:
    """Up to `limit` groups with their cursors, the newest first. Raises JournalError."""
    condition, values = wanted.condition()
    statement = f"SELECT cursor, {COLUMNS} FROM groups WHERE cursor < ? AND {condition} ORDER BY cursor DESC LIMIT ?"
    try:
        with closing(_open(path)) as connection:
            below = (1 << 63) - 1
            while limit > 0:
                page = connection.execute(statement, (below, *values, min(limit, PAGE))).fetchall()
                yield from ((cursor, Row(*rest)) for cursor, *rest in page)
                if len(page) < min(limit, PAGE):
                    return
                limit -= len(page)
                below = page[-1][0]
    except sqlite3.Error as error:
        raise JournalError(f"journal {path} cannot be read: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise JournalError(f"there is no journal at {path}")
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        connection.close()
        raise JournalError(
            f"journal {path} has schema version {version}, this program reads {SCHEMA_VERSION}: "
            "a node of this version that is started on it brings an older one up to date"
        )
    return connection
