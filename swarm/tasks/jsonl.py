"""Tasks from a file: one JSON object a line, {"prompt", "answer", "verifier"?: "math" | "exact", "difficulty"?}.

The file's digest is the source's version: peers agree on a file by having the same bytes. Lines are found by their
offsets; the file stays on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from swarm.errors import ConfigError, TaskError
from swarm.tasks.base import SourceSpec, canonical_json
from swarm.tasks.scoring import check_place, final_answer
from swarm.types import Task, TaskRef

MAX_FILE_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 20
MAX_DIFFICULTY_CHARS = 200
VERIFIERS = ("math", "exact")

_KEYS = frozenset({"prompt", "answer", "verifier", "difficulty"})
#: What math-verify recognises maths in prose by.
_DELIMITERS = ("$", "\\(", "\\[", "\\boxed", "\\begin")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    prompt: str
    answer: str
    verifier: str
    difficulty: str


class JsonlSource:
    """`spec.name` is what peers call it, `spec.path` where it is here, `spec.config` {"verifier": the default one}.

    Every line is read and checked once, when the source is made.
    """

    def __init__(self, spec: SourceSpec) -> None:
        self._verifier = _default_verifier(spec)
        self._path = Path(spec.path)
        self.name = f"jsonl/{spec.name}"
        self.config = canonical_json({"verifier": self._verifier})
        try:
            with self._path.open("rb") as file:
                self._stamp = _stamp(file)
                self.version, self._offsets = self._read(file)
        except OSError as error:
            raise ConfigError(f"{self.name}: path {spec.path!r} cannot be read: {error.strerror}") from error
        self.size = len(self._offsets)

    def task(self, seed: int, index: int) -> Task:
        check_place(self.name, seed, index, self.size)
        ref = TaskRef(source=self.name, version=self.version, config=self.config, seed=seed, index=index)
        line = self._line(index)
        metadata = {"verifier": line.verifier}
        return Task(ref=ref, prompt=line.prompt, answer=line.answer, difficulty=line.difficulty, metadata=metadata)

    def score(self, task: Task, response: str) -> float:
        """1 if the answer is right, else 0. "exact" compares text, white space normalised; "math" compares values."""
        verifier = task.metadata.get("verifier") or self._line(task.ref.index).verifier
        given = final_answer(response)
        right = _normalised(given) == _normalised(task.answer)
        if not right and verifier == "math":
            right = math_equal(task.answer, given, tagged=given != response.strip())
        return float(right)

    def _line(self, index: int) -> _Line:
        try:
            with self._path.open("rb") as file:
                if _stamp(file) != self._stamp:
                    raise TaskError(f"{self.name}: {self._path} has changed since it was read")
                file.seek(self._offsets[index])
                return _parse(file.readline(), self._verifier)
        except OSError as error:
            raise TaskError(f"{self.name}: {self._path} cannot be read: {error.strerror}") from error

    def _read(self, file: BinaryIO) -> tuple[str, array[int]]:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(f"{self._path} has {size} bytes; at most {MAX_FILE_BYTES} are allowed")
        digest, offsets, offset = hashlib.sha256(), array("Q"), 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"is longer than {MAX_LINE_BYTES} bytes")
                _parse(line, self._verifier)
            except ValueError as error:
                raise ConfigError(f"{self._path}, line {len(offsets) + 1}: {error}") from error
            digest.update(line)
            offsets.append(offset)
            offset += len(line)
        if not offsets:
            raise ConfigError(f"{self._path} is empty; it must have one JSON object a line")
        return digest.hexdigest(), offsets


def math_equal(gold: str, given: str, *, tagged: bool) -> bool:
    """Whether both are the same value, by math-verify. LaTeX or plain; a `tagged` answer is nothing but maths.

    May take forever (9**9**9). math-verify's own limit is a signal, which works in main threads only, so it is off: the
    judge's process has the limit.
    """
    # Says once per process, at warning level, that its limit is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    from math_verify import verify

    expected = _expressions(gold, bare=True)
    return bool(expected) and bool(verify(expected, _expressions(given, bare=tagged), timeout_seconds=None))


def _expressions(text: str, *, bare: bool) -> list[Any]:
    """What `text` says, as SymPy expressions; bare text is first read as one LaTeX formula."""
    from math_verify import LatexExtractionConfig, parse

    if bare and not any(mark in text for mark in _DELIMITERS):
        latex = [LatexExtractionConfig()]
        found = parse(f"${text}$", latex, fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        if found:
            return found
    return parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]


def _default_verifier(spec: SourceSpec) -> str:
    try:
        config = json.loads(spec.config)
    except ValueError as error:
        raise ConfigError(f"jsonl/{spec.name}: config {spec.config!r} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.keys() - {"verifier"}:
        raise ConfigError(f'jsonl/{spec.name}: config {spec.config!r}; it may have the key "verifier" only')
    verifier = config.get("verifier", VERIFIERS[0])
    if verifier not in VERIFIERS:
        raise ConfigError(f"jsonl/{spec.name}: config.verifier = {verifier!r}; it is one of {', '.join(VERIFIERS)}")
    return verifier


def _parse(line: bytes, default_verifier: str) -> _Line:
    """Raises ValueError with what is wrong."""
    if not line.strip():
        raise ValueError("is empty")
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"is a {type(fields).__name__}, not an object")
    if unknown := fields.keys() - _KEYS:
        raise ValueError(f"has an unknown key {min(unknown)!r}; allowed are {', '.join(sorted(_KEYS))}")
    for key in ("prompt", "answer"):
        if not isinstance(fields.get(key), str) or not fields[key].strip():
            raise ValueError(f"{key} = {fields.get(key)!r}; it must be a text that is not empty")
    verifier = fields.get("verifier", default_verifier)
    if verifier not in VERIFIERS:
        raise ValueError(f"verifier = {verifier!r}; it is one of {', '.join(VERIFIERS)}")
    difficulty = _difficulty(fields.get("difficulty", {}))
    return _Line(prompt=fields["prompt"], answer=fields["answer"], verifier=verifier, difficulty=difficulty)


def _difficulty(value: object) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        value = {"level": value}
    if not isinstance(value, dict):
        raise ValueError(f"difficulty = {value!r}; it must be an object, a text or a number")
    canonical = canonical_json(value)
    if len(canonical) > MAX_DIFFICULTY_CHARS:
        raise ValueError(f"difficulty has {len(canonical)} characters; at most {MAX_DIFFICULTY_CHARS} are allowed")
    return canonical


def _normalised(text: str) -> str:
    return " ".join(text.split())


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
