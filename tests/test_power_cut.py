"""The power fails at every moment of a checkpoint and of the journal: what was acknowledged as durable is there, and
whatever is there is whole."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from node import journal as journal_module
from node.checkpoint import CheckpointStore
from node.journal import Journal
from node.journal_file import CURSOR_GAP
from swarm.errors import JournalError
from tests.faults import sqlite
from tests.faults.disk import IMAGES, Moment, Recorder
from tests.faults.sqlite import Event, files_after, watching
from tests.test_checkpoint import check, put
from tests.test_journal import signed

MAX_GROUPS = 1000


# Checkpoints ----------------------------------------------------------------------------------------------------------


def recorded(root: Path, *steps: int) -> list[Moment]:
    """The last of these steps' checkpoints as it was written, the others being there."""
    root.mkdir()
    store = CheckpointStore(root / "checkpoints", keep=2)
    for step in steps[:-1]:
        put(store, step)
    recorder = Recorder(root)
    with recorder.recording():
        put(store, steps[-1])
    return recorder.moments


def starts(directory: Path, *, old: int | None, new: int, done: bool) -> None:
    """A start finds the old state or the new one, and writes the next checkpoint as if nothing had happened."""
    store = CheckpointStore(directory / "checkpoints", keep=2)
    newest = store.latest()
    if newest is None:
        assert old is None
        assert not done
    else:
        assert newest.step in ((new,) if done else (old, new))
        check(store, newest.step)
    put(store, 9)
    check(store, 9)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("steps", [(1,), (1, 2), (1, 2, 3), (1, 2, 2)], ids=str)
def test_a_checkpoint_is_the_old_one_or_the_new_one(tmp_path: Path, steps: tuple[int, ...], image: str) -> None:
    moments = recorded(tmp_path / "disk", *steps)
    assert len(moments) > 10
    old = max(steps[:-1], default=None)
    for number, moment in enumerate(moments):
        after = tmp_path / "after"
        moment.write(image, after)
        starts(after, old=old, new=steps[-1], done=number == len(moments) - 1)
        shutil.rmtree(after)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(20))
def test_any_part_of_what_was_not_synced_may_be_lost(tmp_path: Path, seed: int) -> None:
    moments, rng = recorded(tmp_path / "disk", 1, 2, 3), random.Random(seed)
    for number, moment in enumerate(moments):
        after = tmp_path / "after"
        moment.write("mixed", after, rng)
        starts(after, old=2, new=3, done=number == len(moments) - 1)
        shutil.rmtree(after)


def damaged(directory: Path) -> list[str]:
    """What was set aside."""
    return [name for name in os.listdir(directory) if ".damaged" in name]


# The journal ----------------------------------------------------------------------------------------------------------

needs_sqlite = pytest.mark.skipif(sqlite.library() is None, reason="SQLite is built into this Python")


async def written(path: Path) -> tuple[list[Event], list[tuple[int, int, int]]]:
    """Everything that is written in two lives of a journal; and when so many groups were kept, so many of them durably,
    up to which cursor: (events by then, groups, durable, cursor)."""
    marks = list[tuple[int, int, int]]()
    with watching() as watched:
        kept, durable = 0, 0
        for _ in range(2):
            async with Journal.open(path, MAX_GROUPS) as journal:
                durable = kept  # a close writes everything back, and an opening is fsynced
                for number in range(kept, kept + 4):
                    await journal.append(signed(number, b"%d" % number * 3000), [1.0], own=number % 4 != 3)
                    kept += 1
                    if number % 4 == 1:
                        await journal.sync()
                        durable = kept
                    marks.append((len(watched.events), durable, journal.head))
                journal.set_cursor(signed(0).group.origin, b"epoch", 7)
        return watched.events, marks


async def opens(directory: Path, events: int, marks: list[tuple[int, int, int]]) -> None:
    """A start finds a beginning of what was written, with everything that was durable by then, and gives out no cursor
    that was given out before."""
    durable = max((groups for at, groups, _ in marks if at <= events), default=0)
    given = max((cursor for at, _, cursor in marks if at <= events), default=0)
    async with Journal.open(directory / "journal.db", MAX_GROUPS) as journal:
        there = [await journal.known(signed(n, b"%d" % n * 3000).id) for n in range(8)]
        count = sum(there)
        assert there == [True] * count + [False] * (8 - count)
        assert count >= durable
        await journal.append(signed(100), [1.0], own=True)
        assert journal.head > given
        assert journal.head >= CURSOR_GAP or count == 0
    if durable:
        assert not damaged(directory)


@needs_sqlite
@pytest.mark.parametrize("image", ["all", "synced"])
async def test_a_journal_has_everything_up_to_some_moment(tmp_path: Path, image: str) -> None:
    events, marks = await written(tmp_path / "journal.db")
    assert {event.kind for event in events} >= {"open", "write", "sync", "delete"}
    assert len(events) > 50
    for number in range(len(events) + 1):
        after = tmp_path / "after"
        after.mkdir()
        for name, content in files_after({}, events[:number], image).items():
            (after / name).write_bytes(content)
        await opens(after, number, marks)
        shutil.rmtree(after)


@needs_sqlite
@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
async def test_any_sectors_of_the_journal_that_were_not_synced_may_be_lost(tmp_path: Path, seed: int) -> None:
    events, marks = await written(tmp_path / "journal.db")
    rng = random.Random(seed)
    for number in range(len(events) + 1):
        after = tmp_path / "after"
        after.mkdir()
        for name, content in files_after({}, events[:number], "mixed", rng).items():
            (after / name).write_bytes(content)
        await opens(after, number, marks)
        shutil.rmtree(after)


@needs_sqlite
async def test_the_disk_refuses_any_write_of_the_journal_and_the_next_start_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC and EIO at every write and fsync of a life: an error that names file and reason, or waiting; what was
    acknowledged is there afterwards."""
    monkeypatch.setattr(journal_module, "RETRY_S", 0.001)
    for code in (sqlite.FULL, sqlite.IOERR_WRITE, sqlite.IOERR_FSYNC):
        number = 0
        while await life_refused(tmp_path / f"{code}-{number}", code, number):
            number += 1
        assert number > 5


async def life_refused(directory: Path, code: int, number: int) -> bool:
    """The write (fsync) with that number is refused, once. Whether there was one."""
    os.mkdir(directory)
    kind = ("sync",) if code == sqlite.IOERR_FSYNC else ("write", "truncate")
    asked, refused, acknowledged, said = 0, 0, 0, ""

    def refuse(event: Event) -> int:
        nonlocal asked, refused
        if event.kind not in kind:
            return 0
        asked += 1
        if asked - 1 != number:
            return 0
        refused += 1
        return code

    with watching() as watched:
        watched.refuse = refuse
        try:
            async with asyncio.timeout(20), Journal.open(directory / "journal.db", MAX_GROUPS) as journal:
                for n in range(4):
                    await journal.append(signed(n), [1.0], own=True)
                    acknowledged += 1
                await journal.sync()
        except JournalError as error:
            said = str(error)
        watched.refuse = lambda event: 0
        async with Journal.open(directory / "journal.db", MAX_GROUPS) as journal:
            assert all([await journal.known(signed(n).id) for n in range(acknowledged)])
            await journal.append(signed(100), [1.0], own=True)
    assert not damaged(directory)
    assert refused or not said
    assert not said or re.search(r"journal\.db cannot be .*(is full|disk I/O error)", said)
    return bool(refused)
