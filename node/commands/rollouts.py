"""swarm-node rollouts: what a node has sampled and received, from its journal."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.datadir import DataDirectory
from node.journal_file import Row
from node.journal_reader import Wanted, newest_groups
from node.journalled import group_of
from node.ledger import printable
from swarm.errors import ConfigError, JournalError
from swarm.types import Rollout, RolloutGroup

DESCRIPTION = """\
Shows what is in a node's journal, whether it is running or not: groups of rollouts,
ours and peers', with the rewards that this node computed.
"""
EPILOG = """\
examples:
  swarm-node rollouts list runs/solo --own --limit 50
  swarm-node rollouts list runs/solo --source spell_backward --min-reward 1 --json
  swarm-node rollouts show runs/solo 3fa9c1
  swarm-node rollouts export runs/solo solved.jsonl --min-reward 1 --since 2026-01-31
  swarm-node rollouts export runs/solo all.parquet --tokens

Texts are strangers': on a terminal, what is not printable in them is shown as U+FFFD.
"""
BATCH = 512
"""Rollouts that are written together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    verbs = parser.add_subparsers(metavar="VERB", required=True, dest="verb")
    listed = verbs.add_parser("list", help="one line a group, the newest first")
    _add_common(listed)
    _add_filters(listed, limit=20)
    listed.add_argument("--json", action="store_true", help="one JSON object a line")
    shown = verbs.add_parser("show", help="all of one group")
    _add_common(shown)
    shown.add_argument("id", metavar="ID", type=_hex, help="of the group, or its beginning")
    shown.add_argument("--json", action="store_true", help="as JSON, one object a rollout")
    shown.add_argument("--tokens", action="store_true", help="with --json: of every token, too")
    exported = verbs.add_parser("export", help="one record a rollout, the newest first, into a file")
    _add_common(exported)
    exported.add_argument("out", metavar="OUT", type=Path, help="a new file, .jsonl or .parquet; - prints JSONL")
    _add_filters(exported, limit=None)
    exported.add_argument("--tokens", action="store_true", help="log-probabilities, ids and byte lengths, too")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", type=Path, help="the node's data_dir")


def _add_filters(parser: argparse.ArgumentParser, limit: int | None) -> None:
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--own", dest="own", action="store_const", const=True, help="own groups only")
    whose.add_argument("--foreign", dest="own", action="store_const", const=False, help="peers' groups only")
    parser.add_argument("--source", default="", help="of the task: reasoning_gym/spell_backward, or spell_backward")
    parser.add_argument("--min-reward", type=float, default=-math.inf, metavar="R", help="rollouts of at least this")
    parser.add_argument(
        "--since", type=_moment, default=-math.inf, metavar="TIME", help="ISO 8601, or 90m, 24h, 7d ago"
    )
    default = f"groups ({limit})" if limit else "groups (all)"
    parser.add_argument("--limit", type=_positive, default=limit or sys.maxsize, metavar="N", help=default)


def main(arguments: argparse.Namespace) -> int:
    journal = DataDirectory(arguments.dir).journal
    if arguments.verb == "show":
        return _show(journal, arguments)
    wanted = Wanted(own=arguments.own, source=arguments.source, min_reward=arguments.min_reward, since=arguments.since)
    rows = newest_groups(journal, wanted, arguments.limit)
    if arguments.verb == "list":
        return _list(rows, arguments.json)
    least = arguments.min_reward
    records = (
        record
        for _, row in rows
        for record in _records(row, arguments.tokens)
        if least == -math.inf or (record["reward"] is not None and record["reward"] >= least)
    )
    return _export(records, arguments.out, arguments.tokens)


# Listing --------------------------------------------------------------------------------------------------------------


def _list(rows: Iterable[tuple[int, Row]], as_json: bool) -> int:
    if as_json:
        for cursor, row in rows:
            print(json.dumps(_summary(cursor, row)))
        return 0
    table = Table("id", "journalled", "whose", "source", "rewards", "expected", "bytes", box=None)
    for _, row in rows:
        when = datetime.fromtimestamp(row.journalled_at).isoformat(" ", "seconds")
        rewards = " ".join("-" if reward is None else f"{reward:.3g}" for reward in json.loads(row.rewards))
        whose = "own" if row.own else row.origin[-8:]
        expected = "" if row.value is None else f"{row.value:.2f}"
        cells = (row.id[:12], when, whose, row.source, rewards, expected, str(len(row.body)))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)
    return 0


def _summary(cursor: int, row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "cursor": cursor,
        "own": bool(row.own),
        "origin": row.origin,
        "source": row.source,
        "created_at": row.created_at,
        "journalled_at": row.journalled_at,
        "rewards": json.loads(row.rewards),
        "value": row.value,
        "version": row.version,
        "bytes": len(row.body),
    }


# One group ------------------------------------------------------------------------------------------------------------


def _show(journal: Path, arguments: argparse.Namespace) -> int:
    found = list(newest_groups(journal, Wanted(id=arguments.id), 2))
    if not found:
        raise JournalError(f"no group in {journal} has an id that begins with {arguments.id}")
    if len(found) > 1:
        raise ConfigError(f"ID = {arguments.id}: more than one group has an id that begins so; give more of it")
    _, row = found[0]
    if arguments.json:
        for record in _records(row, arguments.tokens):
            print(json.dumps(record))
        return 0
    group, console = group_of(row), Console()
    task = group.task
    facts = {
        "group": row.id,
        "origin": f"{row.origin}{' (this node)' if row.own else ''}",
        "task": f"{task.source} {task.version}, seed {task.seed}, index {task.index}, config {task.config}",
        "model": f"{group.model}, tokenizer {group.tokenizer}",
        "expected": "not known" if row.value is None else f"{row.value:.3f}",
    }
    for what, how in facts.items():
        console.print(Text.assemble((f"{what:10}", "bold"), printable(how, None)))
    for number, (rollout, reward) in enumerate(zip(group.rollouts, json.loads(row.rewards), strict=False)):
        scored = "no score" if reward is None else f"reward {reward:.3g}"
        console.print(Text(f"\nrollout {number}: {scored}, {rollout.num_sampled} tokens, {_finish(rollout)}", "bold"))
        for turn in rollout.turns:
            for line in turn.text.split("\n"):
                console.print(Text(f"  {printable(line, None)}"))
    return 0


def _records(row: Row, tokens: bool) -> Iterator[dict[str, Any]]:
    """One for each rollout."""
    group = group_of(row)
    for number, (rollout, reward) in enumerate(zip(group.rollouts, json.loads(row.rewards), strict=False)):
        yield _record(row, group, number, rollout, reward) | (_tokens(rollout) if tokens else {})


def _record(row: Row, group: RolloutGroup, number: int, rollout: Rollout, reward: float | None) -> dict[str, Any]:
    logprobs = [turn.sampled.logprobs for turn in rollout.turns if turn.sampled is not None]
    return {
        "group": row.id,
        "rollout": number,
        "own": bool(row.own),
        "origin": row.origin,
        "source": row.source,
        "task_version": group.task.version,
        "task_config": group.task.config,
        "seed": group.task.seed,
        "index": group.task.index,
        "model": group.model,
        "tokenizer": group.tokenizer,
        "created_at": row.created_at,
        "journalled_at": row.journalled_at,
        "value": row.value,
        "reward": reward,
        "finish": _finish(rollout),
        "tokens": rollout.num_sampled,
        "logprob": float(sum(part.sum(dtype="float64") for part in logprobs)),
        "text": rollout.response,
    }


def _tokens(rollout: Rollout) -> dict[str, Any]:
    """Of all sampled turns, one after the other; ids only where all of them were sent."""
    turns = [turn.sampled for turn in rollout.turns if turn.sampled is not None]
    ids = None
    if all(turn.ids is not None for turn in turns):
        ids = [int(id) for turn in turns if turn.ids is not None for id in turn.ids]
    return {
        "ids": ids,
        "logprobs": [float(value) for turn in turns for value in turn.logprobs],
        "byte_lengths": [int(length) for turn in turns for length in turn.byte_lengths],
    }


def _finish(rollout: Rollout) -> str:
    return next((turn.finish.value for turn in reversed(rollout.turns) if turn.finish is not None), "")


# Exporting ------------------------------------------------------------------------------------------------------------


def _export(records: Iterator[dict[str, Any]], out: Path, tokens: bool) -> int:
    if str(out) == "-":
        for record in records:
            print(json.dumps(record))
        return 0
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"OUT = {out}: its name must end with .jsonl or .parquet")
    try:
        with _new_file(out) as file:
            count = _write_jsonl(records, file) if out.suffix == ".jsonl" else _write_parquet(records, file, tokens)
    except FileExistsError:
        raise ConfigError(f"OUT = {out}: is there already, and is not written over") from None
    except OSError as error:
        raise JournalError(f"{out} cannot be written: {error}") from error
    print(f"{out}: {count} rollouts")
    return 0


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """Gone again if what is inside fails."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            yield file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _write_jsonl(records: Iterable[Mapping[str, Any]], file: IO[bytes]) -> int:
    count = 0
    for record in records:
        file.write(json.dumps(record).encode() + b"\n")
        count += 1
    return count


def _write_parquet(records: Iterator[dict[str, Any]], file: IO[bytes], tokens: bool) -> int:
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("parquet needs pyarrow, which is not installed: pip install 'swarm-node[bench]'")
    import pyarrow
    from pyarrow import parquet

    texts = ("group", "origin", "source", "task_version", "task_config", "model", "tokenizer", "finish", "text")
    kinds = dict.fromkeys(texts, pyarrow.string()) | {"own": pyarrow.bool_()}
    kinds |= dict.fromkeys(("rollout", "tokens"), pyarrow.int32()) | dict.fromkeys(("seed", "index"), pyarrow.uint64())
    kinds |= dict.fromkeys(("created_at", "journalled_at", "value", "reward", "logprob"), pyarrow.float64())
    if tokens:
        kinds |= {"ids": pyarrow.list_(pyarrow.int32()), "logprobs": pyarrow.list_(pyarrow.float32())}
        kinds |= {"byte_lengths": pyarrow.list_(pyarrow.int32())}
    schema, count = pyarrow.schema(list(kinds.items())), 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(records, BATCH)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))
            count += len(batch)
    return count


# Arguments ------------------------------------------------------------------------------------------------------------

UNITS: Mapping[str, float] = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _moment(text: str) -> float:
    """Unix seconds."""
    try:
        if text[-1:] in UNITS:
            return time.time() - float(text[:-1]) * UNITS[text[-1]]
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a time such as 2026-01-31T12:00 nor 90m, 24h, 7d"
        ) from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def _hex(text: str) -> str:
    if not text or set(text.lower()) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError("it must be hexadecimal digits")
    return text.lower()
