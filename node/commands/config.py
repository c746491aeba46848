"""swarm-node config: is this file right, and what does it amount to?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from node.settings import load_config, task_specs
from swarm.tasks import make_source

DESCRIPTION = """\
Checks a config file and prints every setting, defaults included, as TOML that `run` takes.
"""
EPILOG = """\
examples:
  swarm-node config configs/solo.toml
  swarm-node config configs/solo.toml --set learner.lr=1e-4 > mine.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_config_arguments(parser)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file, such as configs/solo.toml")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a setting: learner.lr=1e-4, tasks.0.weight=2, exchange.type=none (may be repeated)",
    )


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    for spec in task_specs(config):
        make_source(spec)  # refuses a dataset that does not exist, and settings that it does not have
    print("\n".join(toml_lines(config.model_dump(mode="json", exclude_none=True))))
    return 0


def toml_lines(table: Mapping[str, object], name: str = "") -> Iterator[str]:
    """A table as TOML: its own values first, as TOML has it, then the tables in it."""
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    lists = {key: value for key, value in table.items() if isinstance(value, list) and _all_tables(value)}
    for key, value in table.items():
        if key not in tables and key not in lists:
            yield f"{_key(key)} = {_value(value)}"
    for key, inner in tables.items():
        yield f"\n[{name}{_key(key)}]"
        yield from toml_lines(inner, f"{name}{_key(key)}.")
    for key, items in lists.items():
        for item in items:
            yield f"\n[[{name}{_key(key)}]]"
            yield from toml_lines(item, f"{name}{_key(key)}.")


def _all_tables(items: list[object]) -> bool:
    return bool(items) and all(isinstance(item, dict) for item in items)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "_").isidentifier()
    return key if bare else _value(key)


def _value(value: object) -> str:
    """A scalar, or a list of them; JSON's notation is TOML's, but for DEL in strings and for tables in lists."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
