"""What the seed model is shown: questions of a few procedural families with their ground truth, no held-out one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence

from swarm.errors import PolicyError
from swarm.tasks import make_source
from swarm.tasks.base import SourceSpec, TaskSource, canonical_json, held_out
from swarm.types import Task


def reasoning_gym_spec(name: str, **config: int) -> SourceSpec:
    return SourceSpec(type="reasoning_gym", name=name, config=canonical_json(config))


#: The families of the built-in model and of the demo: learnable by half a million parameters in seconds.
DEMO_FAMILIES: tuple[SourceSpec, ...] = (
    reasoning_gym_spec("spell_backward", min_word_len=3, max_word_len=6),
    reasoning_gym_spec("rotate_matrix", min_n=2, max_n=2),
    reasoning_gym_spec(
        "number_sorting", min_numbers=2, max_numbers=3, min_value=0, max_value=9, min_decimals=0, max_decimals=0
    ),
    reasoning_gym_spec("palindrome_generation", min_length=3, max_length=5),
)

#: Consecutive indices that may give nothing new before a source counts as exhausted.
MAX_MISSES = 10_000


def make_sources(families: Sequence[SourceSpec]) -> dict[str, TaskSource]:
    """By family name, in order."""
    return {spec.name: make_source(spec) for spec in families}


def stream_seed(seed: int, stream: str) -> int:
    """A task seed far from any other: neighbouring ones of procedural sources have tasks in common."""
    return int.from_bytes(hashlib.sha256(f"{stream}/{seed}".encode()).digest()[:4])


def demonstrations(source: TaskSource, seed: int, excluded: frozenset[str] = frozenset()) -> Iterator[Task]:
    """An endless stream, lazily made; skips held-out and excluded questions. A finite source has one seed, and repeats.

    Raises PolicyError when the source has no other ones.
    """
    misses = 0
    for index in itertools.count():
        task = source.task(seed, index) if source.size is None else source.task(0, index % source.size)
        if held_out(task.prompt) or task.prompt in excluded:
            misses += 1
            if misses > MAX_MISSES:
                raise PolicyError(f"{source.name}: {MAX_MISSES} tasks in a row that may not be trained on")
            continue
        misses = 0
        yield task


def distinct(tasks: Iterator[Task], n: int) -> list[Task]:
    """The first n different questions; fewer where the stream repeats itself `MAX_MISSES` times."""
    found: dict[str, Task] = {}
    misses = 0
    while len(found) < n and misses < MAX_MISSES:
        task = next(tasks)
        misses = misses + 1 if task.prompt in found else 0
        found.setdefault(task.prompt, task)
    return list(found.values())
