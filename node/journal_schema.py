"""What the journal's SQLite file looks like, and how one that an older version made is brought up to date.

The version is in `PRAGMA user_version`. Migrations go forward only, one version at a time, all in one transaction:
after a crash or a power cut in the middle the file is still of the older version, and is migrated at the next start.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Mapping

from swarm.errors import WireError
from swarm.wire.codec import task_source

SCHEMA_VERSION = 2
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
        rewards       TEXT NOT NULL,  -- JSON: one number a rollout, null where the source gave no score
        source        TEXT NOT NULL,  -- of the task
        best          REAL,           -- the highest of `rewards`, null where there is none
        value         REAL,           -- what we expected of the task
        version       INTEGER,        -- own: our oldest policy version in it; foreign: ours when it arrived
        sampled       BLOB            -- own: what the body lacks of every token (node/journalled.py)
    )""",
    "CREATE INDEX published ON groups (cursor) WHERE own",
    # Replacing a row gives it the highest rowid: rowid order is recency.
    "CREATE TABLE cursors (peer TEXT PRIMARY KEY, epoch BLOB NOT NULL, cursor INTEGER NOT NULL)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "INSERT INTO sqlite_sequence VALUES ('groups', 0)",
)


def create(connection: sqlite3.Connection) -> None:
    """Makes everything in an empty file. Within a transaction, as `migrate`."""
    for statement in SCHEMA:
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('epoch', ?)", (secrets.token_bytes(16),))
    _set_version(connection, SCHEMA_VERSION)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """From `version` to SCHEMA_VERSION. Raises KeyError for a version that there never was."""
    for older in range(version, SCHEMA_VERSION):
        MIGRATIONS[older](connection)
    _set_version(connection, SCHEMA_VERSION)


def _with_what_learning_needs(connection: sqlite3.Connection) -> None:
    """1 to 2. What we expected of the groups that are there was never written down: they are not learned from again."""
    for column in ("source TEXT NOT NULL DEFAULT ''", "best REAL", "value REAL", "version INTEGER", "sampled BLOB"):
        connection.execute(f"ALTER TABLE groups ADD COLUMN {column}")
    connection.create_function("source_of", 1, _source_of, deterministic=True)
    connection.create_function("best_of", 1, _best_of, deterministic=True)
    connection.execute("UPDATE groups SET source = source_of(body), best = best_of(rewards)")


#: Version -> how to get to the next.
MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _with_what_learning_needs}


def _set_version(connection: sqlite3.Connection, version: int) -> None:
    connection.execute(f"PRAGMA user_version = {version}")


def _source_of(body: bytes) -> str:
    try:
        return task_source(body)
    except WireError:
        return ""


def _best_of(rewards: str) -> float | None:
    return max((reward for reward in json.loads(rewards) if reward is not None), default=None)
