"""Without coverage: mutations of the seeds, the same ones for the same number."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.fuzz.mutation import mutate_bytes, mutate_fields
from tests.fuzz.report import Report
from tests.fuzz.targets import Target
from tests.fuzz.watch import Watch


def mutated(data: bytes, donor: bytes, rng: random.Random, max_bytes: int) -> bytes:
    """`data` after one to four changes; as it was where those would be more than `max_bytes`."""
    changed = data
    for _ in range(rng.choice((1, 1, 2, 4))):
        room = max(0, max_bytes - len(changed))
        fields = rng.random() < 0.8
        changed = mutate_fields(changed, rng, donor, room) if fields else mutate_bytes(changed, rng, room)
    return changed if len(changed) <= max_bytes else data


def inputs(seeds: Sequence[bytes], number: int, max_bytes: int) -> Iterator[bytes]:
    """The seeds, and mutations of them for ever."""
    yield from seeds
    rng = random.Random(number)
    while True:
        yield mutated(rng.choice(seeds), rng.choice(seeds), rng, max_bytes)


def fuzz(target: Target, number: int, most: int, seconds: float, failures: Path) -> Report:
    """Until `most` inputs, `seconds` or the first defect, whose input is saved in `failures`."""
    watch = Watch(target)
    started = time.monotonic()
    for data in inputs(target.seeds(), number, target.max_bytes):
        try:
            watch(data)
        except Exception as error:  # noqa: BLE001  Whatever it is, it is what we are looking for.
            path = failures / f"{target.name}-{watch.inputs}"
            path.write_bytes(data)
            defect = f"{type(error).__name__}: {error}\n{path}"
            return replace(Report.of(watch, time.monotonic() - started), defect=defect)
        if watch.inputs >= most or time.monotonic() - started >= seconds:
            break
    return Report.of(watch, time.monotonic() - started)
