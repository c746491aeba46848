"""Tables as TOML text. Reading it is the standard library's affair (tomllib)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

LONG_CHARS = 120


def toml_lines(table: Mapping[str, object], name: str = "") -> Iterator[str]:
    """A table as TOML: its own values first, as TOML has it, then the tables in it."""
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    lists = {key: value for key, value in table.items() if isinstance(value, list) and _all_tables(value)}
    for key, value in table.items():
        if key not in tables and key not in lists:
            yield from _assignment(_key(key), value)
    for key, inner in tables.items():
        yield f"\n[{name}{_key(key)}]"
        yield from toml_lines(inner, f"{name}{_key(key)}.")
    for key, items in lists.items():
        for item in items:
            yield f"\n[[{name}{_key(key)}]]"
            yield from toml_lines(item, f"{name}{_key(key)}.")


def _assignment(key: str, value: object) -> Iterator[str]:
    """One line, or of a list that makes a long one, a line an item."""
    line = f"{key} = {_value(value)}"
    if isinstance(value, list) and len(line) > LONG_CHARS:
        yield f"{key} = ["
        yield from (f"    {_value(item)}," for item in value)
        yield "]"
    else:
        yield line


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
