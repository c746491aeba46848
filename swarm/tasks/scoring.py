"""From what a policy wrote to a score: which part of it is the answer, and what becomes of a scorer that fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from swarm.errors import TaskError
from swarm.tasks.base import SourceInfo, TaskSource
from swarm.types import Score, ScoreStatus, Task, TaskRef

#: Seeds and indices are unsigned integers of 32 bits: what every random generator takes as a seed.
MAX_PLACE = 2**32 - 1
MAX_DETAIL_CHARS = 200

_OPEN, _CLOSE = "<answer>", "</answer>"

Source = TypeVar("Source", bound=SourceInfo)


def final_answer(response: str) -> str:
    """The text in the last <answer>...</answer> pair, or the whole response where there is none; stripped."""
    start = response.rfind(_OPEN, 0, max(response.rfind(_CLOSE), 0))
    if start < 0:
        return response.strip()
    start += len(_OPEN)
    return response[start : response.index(_CLOSE, start)].strip()


def score_response(source: TaskSource, task: Task, response: str) -> Score:
    """Asks the source; whatever it raises becomes a FAILED score. Has no time limit."""
    try:
        reward = float(source.score(task, response))
    except Exception as error:  # noqa: BLE001 - around one rollout: a source may raise anything, and that is data
        return failed(describe(error))
    if not 0.0 <= reward <= 1.0:
        return failed(f"reward {reward} is not in [0, 1]")
    return Score(reward=reward)


def failed(detail: str) -> Score:
    return Score(reward=0.0, status=ScoreStatus.FAILED, detail=detail)


def describe(error: Exception, limit: int = MAX_DETAIL_CHARS) -> str:
    """One line of at most `limit` printable characters: the error's type and message."""
    line = "".join(c if c.isprintable() else " " for c in f"{type(error).__name__}: {error}"[: 2 * limit])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def source_of(ref: TaskRef, sources: Sequence[Source]) -> tuple[int, Source]:
    """Position and source that `ref` names. Raises TaskError where there is none, or where it has no such place."""
    for position, source in enumerate(sources):
        if (source.name, source.version, source.config) == (ref.source, ref.version, ref.config):
            check_place(source.name, ref.seed, ref.index, source.size)
            return position, source
    ours = [s for s in sources if s.name == ref.source]
    if not ours:
        raise TaskError(f"source {ref.source[:MAX_DETAIL_CHARS]!r} is none of ours")
    what = "config" if any(s.version == ref.version for s in ours) else "version"
    theirs, known = getattr(ref, what)[:MAX_DETAIL_CHARS], " or ".join(repr(getattr(s, what)) for s in ours)
    raise TaskError(f"source {ref.source!r} has another {what}: {theirs!r}; ours is {known}")


def check_place(name: str, seed: int, index: int, size: int | None) -> None:
    """Raises TaskError unless a source of this size has this seed and index. Finite sources have one seed, 0."""
    if not (0 <= seed <= MAX_PLACE and 0 <= index <= MAX_PLACE):
        raise TaskError(f"{name}: seed {seed}, index {index}: both are integers from 0 to {MAX_PLACE}")
    if size is not None and (seed != 0 or index >= size):
        raise TaskError(f"{name}: seed {seed}, index {index}: it has seed 0 and indices below {size}")
