"""What one run gives, and the files in which finished runs are kept: a small JSON each, written once and then skipped.

ROOT/
    EXPERIMENT/
        ARM/
            seed-3.json      see `_document`
            seed-3.lock      held (flock) by the process that makes this run now

Names that are no plain file names are percent-encoded. The text is canonical (sorted keys, one line per value and per
curve, curves rounded to five significant digits), so that a repository can keep it and a diff shows what moved.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from node.datadir import write_atomic

SCHEMA = 1
PACKAGES = ("swarm-node", "torch")

Curve = Sequence[tuple[float, float]]
"""(x, y), x rising."""
Record = Mapping[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run gives. NaN stands for what there is no number for ("steps until 50 %", never reached)."""

    summary: Mapping[str, float]
    curves: Mapping[str, Curve]
    records: Sequence[Record] = ()
    """One per step and node. Not among the results: they are large (node/lab/records.py)."""


@dataclass(frozen=True, slots=True)
class RunKey:
    experiment: str
    arm: str
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run, as it was read."""

    summary: Mapping[str, float]
    curves: Mapping[str, Curve]
    wall_s: float
    versions: Mapping[str, str]
    """Of the packages that made it."""


@dataclass(frozen=True, slots=True)
class Found:
    result: Result | None = None
    outdated: str = ""
    """Why the file that is there is not used; empty when it is used, or there is none."""


def digest(document: object) -> str:
    """SHA-256 of the canonical JSON, in hex. Raises TypeError, ValueError for what JSON cannot write."""
    return hashlib.sha256(_dumps(document).encode()).hexdigest()


def file_name(name: str) -> str:
    """Another for every other name: "J=4" stays, "a/b" becomes "a%2Fb"."""
    quoted = quote(name, safe="=+,")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


class ResultStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: RunKey) -> Path:
        return self.root / file_name(key.experiment) / file_name(key.arm) / f"seed-{key.seed}.json"

    def get(self, key: RunKey, digest: str) -> Result | None:
        """The finished run; None when it was not made yet, or with other settings than `digest` is of."""
        return self.find(key, digest).result

    def find(self, key: RunKey, digest: str) -> Found:
        """`get`, with the reason why a file that is there does not count. Raises OSError."""
        try:
            document = json.loads(self.path(key).read_bytes())
            if document["schema"] != SCHEMA:
                return Found(outdated=f"schema {document['schema']}, not {SCHEMA}")
            if document["digest"] != digest:
                return Found(outdated="made with other settings")
            return Found(_result(document))
        except FileNotFoundError:
            return Found()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return Found(outdated=f"not a result: {error!r}")

    def put(self, key: RunKey, digest: str, outcome: Outcome, wall_s: float) -> Path:
        """Writes a finished run, in place of one that is there. Raises ValueError for infinite numbers, OSError."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _text(_document(key, digest, outcome, wall_s)).encode())
        return path

    @contextmanager
    def claim(self, key: RunKey) -> Iterator[bool]:
        """Whether the run is ours to make, for as long as the context lasts: False while another process makes it.

        The kernel releases a dead process's claim, whatever it has left behind. Raises OSError.
        """
        path = self.path(key).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                path.unlink(missing_ok=True)
                os.close(descriptor)


def _lock(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.close(descriptor)  # its holder removed it after we had opened it: the name is, or will be, another file


def _is_open_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _document(key: RunKey, digest: str, outcome: Outcome, wall_s: float) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "experiment": key.experiment,
        "arm": key.arm,
        "seed": key.seed,
        "digest": digest,
        "wall_s": round(wall_s, 1),
        "versions": _versions(),
        "summary": {name: _number(f"summary.{name}", value) for name, value in outcome.summary.items()},
        "curves": {name: _points(f"curves.{name}", curve) for name, curve in outcome.curves.items()},
    }


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _points(name: str, curve: Curve) -> list[list[float | None]]:
    return [[_number(name, float(f"{v:.5g}")) for v in point] for point in curve]


def _number(name: str, value: float) -> float | None:
    """JSON has neither NaN, which becomes null, nor infinity."""
    if math.isinf(value):
        raise ValueError(f"{name} = {value}: expected a finite number, or NaN for none")
    if math.isnan(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)


def _result(document: Mapping[str, Any]) -> Result:
    return Result(
        summary={str(name): _read(value) for name, value in document["summary"].items()},
        curves={str(name): [(_read(x), _read(y)) for x, y in curve] for name, curve in document["curves"].items()},
        wall_s=float(document["wall_s"]),
        versions={str(name): str(version) for name, version in document["versions"].items()},
    )


def _read(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _dumps(document: object) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _text(document: Mapping[str, object]) -> str:
    """JSON with a line for every value, two levels deep."""
    lines = []
    for name, value in sorted(document.items()):
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {_dumps(key)}: {_dumps(value[key])}" for key in sorted(value))
            lines.append(f" {_dumps(name)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {_dumps(name)}: {_dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
