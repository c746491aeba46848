"""What a task source is, and who asks it.

A source is small and pure: the same reference gives the same prompt and the same ground truth on every machine, and
scoring a text touches nothing else. It may raise; whoever asks it (`Judge`) turns that into a status.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from swarm.errors import TaskError
from swarm.types import Score, Task, TaskRef

#: One question in eight is never trained on, by anybody. By the question's own bytes and not by seed or index, because
#: neighbouring seeds of procedural sources overlap.
HELD_OUT_IN = 8


def held_out(prompt: str) -> bool:
    """Whether this question belongs to everybody's evaluation set: `crc32(prompt) % 8 == 0`."""
    return binascii.crc32(prompt.encode()) % HELD_OUT_IN == 0


def canonical_json(value: object) -> str:
    """Sorted keys, no spaces, ASCII: equal values are equal strings. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


class SourceInfo(Protocol):
    """What can be known of a source without having it: the judge's process has it, the node has this."""

    @property
    def name(self) -> str:
        """ "reasoning_gym/spell_backward"."""
        ...

    @property
    def version(self) -> str: ...

    @property
    def config(self) -> str:
        """Canonical JSON."""
        ...

    @property
    def size(self) -> int | None:
        """How many tasks there are (index < size), or None for a procedural source."""
        ...


class TaskSource(SourceInfo, Protocol):
    """One kind of task under one config; made by `swarm.tasks.make_source(spec)`."""

    def task(self, seed: int, index: int) -> Task:
        """Raises TaskError when there is no such task."""
        ...

    def score(self, task: Task, response: str) -> float:
        """Reward in [0, 1]. May raise anything; may hang (the judge has the time limit)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """What a source is made from, as plain data, so that it can be sent to the judge's process.

    Its agreed part (`name`, `version`, `config` of the source that it makes) is what peers must share; a JSONL file's
    path is private.
    """

    type: str
    """Key of `swarm.tasks.SOURCES`, or "module:factory" for a source of one's own."""
    name: str
    config: str = "{}"
    """Canonical JSON of the source's settings."""
    path: str = ""
    """Of a file, where the source is one."""


class Judge(Protocol):
    """Makes tasks and scores them, under a time limit. Asked by the producer, by the verifier and by evaluation."""

    @property
    def sources(self) -> Sequence[SourceInfo]:
        """Name, version, config and size of each, in the order of the specs."""
        ...

    async def task(self, ref: TaskRef) -> Task:
        """Raises TaskError when the reference names no source of ours (name, version and config must all agree) or no
        task of it, TaskTimeout when making it takes too long."""
        ...

    async def tasks(self, refs: Sequence[TaskRef]) -> list[Task | TaskError]:
        """Some tens of tasks in one turn, in the order of their references; for one that cannot be made, what `task`
        raises. After one that takes too long, no further one is tried."""
        ...

    async def score(self, task: Task, responses: Sequence[str]) -> list[Score]:
        """One score per response. Never raises for a source's sake: what fails or hangs has a status."""
        ...
