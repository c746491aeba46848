"""What an older version wrote opens: whole data directories, and journals of every schema that there was."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from node.config import NodeConfig
from node.daemon import open_node
from node.journal import Journal
from node.journal_file import COLUMNS
from node.journal_schema import MIGRATIONS, SCHEMA_VERSION
from node.settings import load_config
from swarm.errors import ConfigError

OLD = Path(__file__).parent / "old" / "before-2"


def rows(path: Path, columns: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {columns} FROM groups ORDER BY cursor").fetchall()


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def test_there_is_a_migration_from_every_older_schema() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


async def test_a_journal_of_the_first_schema_keeps_all_that_it_had(tmp_path: Path) -> None:
    path = Path(shutil.copy(OLD / "journal.db", tmp_path))
    had = "cursor, id, origin, own, created_at, journalled_at, body, signature, rewards"
    before = rows(path, had)
    assert (version(path), len(before) > 5) == (1, True)
    async with Journal.open(path, 1000) as journal:
        epoch = journal.epoch
        assert [await journal.known(id) for _, id, *_ in before] == [True] * len(before)  # type: ignore[arg-type]
        assert len(await journal.read(0, 1000)) == len(before)
    assert version(path) == SCHEMA_VERSION
    assert rows(path, had) == before
    assert {source for (source,) in rows(path, "source")} == {"plain/plain"}
    assert {best for (best,) in rows(path, "best")} <= {0.0, 1.0}
    assert {value for (value,) in rows(path, "value")} == {None}
    async with Journal.open(path, 1000) as journal:
        assert journal.epoch == epoch, "peers go on reading where they were"


async def test_a_migrated_file_is_like_a_new_one(tmp_path: Path) -> None:
    old, new = Path(shutil.copy(OLD / "journal.db", tmp_path)), tmp_path / "new.db"
    for path in (old, new):
        async with Journal.open(path, 1000):
            pass
    for path in (old, new):
        assert rows(path, COLUMNS) is not None
        with closing(sqlite3.connect(path)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
            columns = [row[1] for row in connection.execute("PRAGMA table_info(groups)")]
        assert {name for (name,) in tables} >= {"groups", "cursors", "meta", "published"}
        assert columns == ["cursor", *COLUMNS.split(", ")]


def old_config(data_dir: Path, **settings: object) -> NodeConfig:
    return NodeConfig.model_validate(
        {
            "name": "old",
            "data_dir": data_dir,
            "policy": {"model": "policy", "device": "cpu"},
            "tasks": [{"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}],
            "engine": {"type": "transformers"},
            "sampler": {"group_size": 2, "concurrency": 4, "max_new_tokens": 4},
            "learner": {"lr": 1e-2, "warmup_steps": 0, "truncated": "scored"},
            "pool": {"own_groups": 2, "foreign_groups": 2, "own_capacity": 4},
            "exchange": {"type": "none"},
            "eval": {"every_steps": 0},
        }
        | settings
    )


async def test_a_data_directory_of_an_older_version_opens_and_the_node_goes_on(tmp_path: Path) -> None:
    data_dir = Path(shutil.copytree(OLD, tmp_path / "node"))
    async with AsyncExitStack() as stack:
        stopping = asyncio.Event()
        node = await open_node(old_config(data_dir), stack, stopping)
        assert (node.learning.steps, node.pool.waiting) == (3, [])
        assert node.author.identity.peer_id == rows(data_dir / "journal.db", "origin")[0][0]
        running = asyncio.create_task(node.run())
        async with asyncio.timeout(60):
            await node.learning.reached(5)
        stopping.set()
        await running
        assert node.ledger.counters["replayed_groups"] == 0
        assert not [warning for warning in node.ledger.warnings if "checkpoint" in warning]
    assert (data_dir / "checkpoints" / "step-00000003").is_dir()
    assert any(path.name > "step-00000004" for path in (data_dir / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("old", "sentence"),
    [("[journal]\nmax_group = 5\n", "journal.max_group"), ("[checkpoint]\nkeep_last = 5\n", "checkpoint.keep_last")],
)
def test_a_key_that_is_none_any_more_is_named_with_its_neighbour(tmp_path: Path, old: str, sentence: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(old + '[[tasks]]\ntype = "arithmetic"\n')
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        load_config(path)
