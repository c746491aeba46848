"""A run's records, one per step and node, as a parquet file: too large for a repository, right for data frames.

Needs pyarrow, which nothing else here does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from node.lab.results import Record, RunKey, file_name
from swarm.errors import ConfigError


def check_available() -> None:
    """Raises ConfigError, saying what to install, when records cannot be written."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("--records needs pyarrow, which is not installed: pip install 'swarm-node[bench]'")


def records_path(root: Path, key: RunKey) -> Path:
    return root / file_name(key.experiment) / file_name(key.arm) / f"seed-{key.seed}.parquet"


def write_records(path: Path, records: Sequence[Record]) -> None:
    """A column for every name that any record has, null where one lacks it; zstd; replaces the file whole.

    Raises pyarrow.ArrowInvalid when a column has texts and numbers, OSError.
    """
    from pyarrow import parquet, table

    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: [record.get(name) for record in records] for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        parquet.write_table(table(columns), aside, compression="zstd")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
