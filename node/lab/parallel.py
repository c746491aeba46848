"""Missing runs, each in a child process of its own, so many at a time.

A run that fails is an event, not the end of the others. Two invocations share the work: what one is making is left to
it by the other. Whatever ends this, no child is left running and every finished run is on disk.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from node.demo.processes import ChildFailed, Children
from node.lab.plan import Run
from node.lab.results import ResultStore


@dataclass(frozen=True, slots=True)
class Event:
    run: Run
    kind: Literal["started", "done", "failed", "elsewhere"]
    """"elsewhere": another invocation is making it, or has made it since."""
    detail: str = ""
    """Why it failed: the last lines of its stderr."""


async def run_all(
    runs: Sequence[Run],
    store: ResultStore,
    *,
    processes: int,
    heard: Callable[[Event], None],
    records: Path | None = None,
) -> None:
    """Makes the runs in their order, `processes` at a time; `records` is where they leave theirs.

    Cancelled: the runs under way are killed. Raises an ExceptionGroup of OSError when the results cannot be written to.
    """
    waiting = iter(runs)
    async with Children() as children, asyncio.TaskGroup() as group:
        for _ in range(min(processes, len(runs))):
            group.create_task(_work(waiting, store, children, heard, records))


async def _work(
    waiting: Iterator[Run], store: ResultStore, children: Children, heard: Callable[[Event], None], records: Path | None
) -> None:
    for run in waiting:
        with store.claim(run.key) as ours:
            if not ours or store.get(run.key, run.digest) is not None:
                heard(Event(run, "elsewhere"))
                continue
            heard(Event(run, "started"))
            heard(await _make(run, store, children, records))


async def _make(run: Run, store: ResultStore, children: Children, records: Path | None) -> Event:
    command = [sys.executable, "-m", "node.lab.child", run.reference, run.key.arm, str(run.key.seed), str(store.root)]
    try:
        await children.output([*command, str(records)] if records else command)
    except ChildFailed as error:
        return Event(run, "failed", str(error))
    found = store.find(run.key, run.digest)
    if found.result is None:
        return Event(run, "failed", f"it ended without a result: {found.outdated or 'there is no file'}")
    return Event(run, "done")
