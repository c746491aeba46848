from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node import journal as journal_module
from node.holds import Holds
from node.journal import Journal
from node.journal_file import MAX_PEERS, JournalFile, Position
from swarm.errors import JournalError
from swarm.net.base import GroupLog
from swarm.types import GroupId, PeerId, RolloutGroup, SamplingParams, SignedGroup, TaskRef

MAX_GROUPS = 1000


def signed(number: int, body: bytes = b"") -> SignedGroup:
    body = body or f"group {number}".encode()
    group = RolloutGroup(
        swarm="swarm",
        origin=PeerId("12D3KooWauthor"),
        task=TaskRef(source="reasoning_gym/spell_backward", version="1", config="{}", seed=0, index=number),
        rollouts=(),
        model="model",
        tokenizer="tokenizer",
        sampling=SamplingParams(),
        created_at=1_700_000_000.0 + number,
    )
    return SignedGroup(id=GroupId(hashlib.sha256(body).hexdigest()), group=group, body=body, signature=b"s%d" % number)


async def fill(journal: Journal, numbers: range, *, own: bool = True) -> None:
    for number in numbers:
        assert await journal.append(signed(number), [1.0], own)


async def bodies(journal: Journal, cursor: int = 0, limit: int = MAX_GROUPS) -> list[str]:
    return [entry.body.decode() for entry in await journal.read(cursor, limit)]


@contextmanager
def held(journal: Journal) -> Iterator[None]:
    """Keeps the journal's thread busy: what is appended meanwhile queues up."""
    gate = threading.Event()
    journal._thread.submit(gate.wait)
    try:
        yield
    finally:
        gate.set()


async def queued(journal: Journal, count: int) -> None:
    """Returns once so many appends are waiting for the thread."""
    while len(journal._pending) < count:  # noqa: ASYNC110 - the queue is a plain deque, and only tests watch it
        await asyncio.sleep(0)


# What it keeps --------------------------------------------------------------------------------------------------------


async def test_reads_what_was_appended_in_order(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        log: GroupLog = journal
        assert log.head == 0
        assert len(log.epoch) == 16
        assert await log.read(0, 10) == ()
        await fill(journal, range(5))
        entries = await log.read(0, 3)
        assert [(entry.body, entry.signature) for entry in entries] == [(b"group %d" % n, b"s%d" % n) for n in range(3)]
        rest = await log.read(entries[-1].cursor, 10)
        assert [entry.body for entry in rest] == [b"group 3", b"group 4"]
        assert rest[-1].cursor == log.head
        assert await log.read(log.head, 10) == ()
        assert await log.read(0, 0) == ()
        assert await log.read(2**64 - 1, 10) == (), "a peer's cursor may be anything"


async def test_survives_reopening_with_its_epoch(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path, MAX_GROUPS) as journal:
        await fill(journal, range(3))
        epoch, head = journal.epoch, journal.head
    assert not path.with_name("journal.db-wal").exists(), "closed cleanly"
    async with Journal.open(path, MAX_GROUPS) as journal:
        assert (journal.epoch, journal.head) == (epoch, head)
        assert await journal.known(signed(2).id)
        assert not await journal.append(signed(2), [], own=True)
        await fill(journal, range(3, 4))
        assert await bodies(journal, head) == ["group 3"]


async def test_publishes_only_own_groups(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        await fill(journal, range(2), own=False)
        assert journal.head == 0
        await fill(journal, range(2, 4))
        head = journal.head
        await fill(journal, range(4, 6), own=False)
        assert journal.head == head
        assert await bodies(journal) == ["group 2", "group 3"]
        assert await journal.known(signed(5).id)


async def test_keeps_the_columns_that_an_analyst_wants(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path, MAX_GROUPS) as journal:
        await journal.append(signed(7), [1.0, None, 0.25], own=False)
    with closing(sqlite3.connect(path)) as connection:
        row = connection.execute("SELECT id, origin, own, created_at, rewards FROM groups").fetchone()
    assert row == (signed(7).id, "12D3KooWauthor", 0, 1_700_000_007.0, "[1.0, null, 0.25]")


async def test_a_group_is_journalled_once(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        with held(journal):
            twins = [asyncio.create_task(journal.append(signed(1), [1.0], own=True)) for _ in range(5)]
            await queued(journal, 5)
            assert not await journal.known(signed(1).id), "not before it is committed"
        assert sorted(await asyncio.gather(*twins)) == [False] * 4 + [True]
        assert await bodies(journal) == ["group 1"]


async def test_200_concurrent_appends_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = []
    append = JournalFile.append
    monkeypatch.setattr(JournalFile, "append", lambda file, rows: commits.append(len(rows)) or append(file, rows))
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        with held(journal):
            tasks = [asyncio.create_task(journal.append(signed(n), [1.0], own=True)) for n in range(200)]
            await queued(journal, 200)
        assert all(await asyncio.gather(*tasks))
        assert commits == [200]
        assert await bodies(journal) == [f"group {n}" for n in range(200)]
        assert all([await journal.known(signed(n).id) for n in range(200)])


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    count = journal_module.MAX_PENDING + 10
    async with Journal.open(tmp_path / "journal.db", 2 * count) as journal:
        with held(journal):
            tasks = [asyncio.create_task(journal.append(signed(n), [1.0], own=True)) for n in range(count)]
            await queued(journal, journal_module.MAX_PENDING)
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(journal._pending) == journal_module.MAX_PENDING
        assert all(await asyncio.gather(*tasks))
        assert len(await bodies(journal, limit=2 * count)) == count


async def test_a_cancelled_append_takes_nobody_with_it(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        with held(journal):
            tasks = [asyncio.create_task(journal.append(signed(n), [1.0], own=True)) for n in range(3)]
            await queued(journal, 3)
            tasks[0].cancel()
            await asyncio.wait(tasks[:1])
        assert await asyncio.gather(*tasks[1:]) == [True, True]
        assert await bodies(journal) == ["group 1", "group 2"]


async def test_closing_commits_what_is_queued(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        with held(journal):
            tasks = [asyncio.create_task(journal.append(signed(n), [1.0], own=True)) for n in range(3)]
            await queued(journal, 3)
    assert await asyncio.gather(*tasks) == [True] * 3
    with pytest.raises(JournalError, match="is closed"):
        await journal.append(signed(4), [1.0], own=True)


# Pruning --------------------------------------------------------------------------------------------------------------


async def test_prunes_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path, 10) as journal:
        await fill(journal, range(4))
        behind = (await journal.read(0, 1))[0].cursor
        await fill(journal, range(4, 8), own=False)
        await fill(journal, range(8, 13))
        assert [await journal.known(signed(n).id) for n in range(13)] == [False] * 3 + [True] * 10
        kept = ["group 3", *(f"group {n}" for n in range(8, 13))]
        assert await bodies(journal, behind) == kept, "a reader whose cursor was pruned goes on with the oldest kept"
    async with Journal.open(path, 2) as journal:
        assert await bodies(journal) == ["group 11", "group 12"]
        assert not await journal.known(signed(10).id)
        await fill(journal, range(13, 14))
        assert await bodies(journal) == ["group 12", "group 13"]


async def test_one_commit_may_exceed_what_is_kept(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", 5) as journal:
        with held(journal):
            tasks = [asyncio.create_task(journal.append(signed(n), [1.0], own=True)) for n in range(20)]
            await queued(journal, 20)
        assert all(await asyncio.gather(*tasks))
        assert await bodies(journal) == [f"group {n}" for n in range(15, 20)]
        assert [await journal.known(signed(n).id) for n in (14, 15)] == [False, True]


# Waiting --------------------------------------------------------------------------------------------------------------


async def test_wait_returns_the_head_once_it_is_beyond_the_cursor(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        waiters = [asyncio.create_task(journal.wait(0)) for _ in range(3)]
        await fill(journal, range(1), own=False)
        assert not any(waiter.done() for waiter in waiters), "a foreign group is no news to readers"
        await fill(journal, range(1, 2))
        async with asyncio.timeout(5):
            assert await asyncio.gather(*waiters) == [journal.head] * 3
            assert await journal.wait(0) == journal.head
        next_one = asyncio.create_task(journal.wait(journal.head))
        await fill(journal, range(2, 3))
        async with asyncio.timeout(5):
            assert await next_one == journal.head


async def test_closing_ends_the_waiting(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        waiter = asyncio.create_task(journal.wait(0))
        await asyncio.sleep(0)
    with pytest.raises(JournalError, match="is closed"):
        await waiter


# Cursors into peers' logs ---------------------------------------------------------------------------------------------


async def test_cursors_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    alice, bob = PeerId("alice"), PeerId("bob")
    async with Journal.open(path, MAX_GROUPS) as journal:
        assert journal.cursor(alice) == (b"", 0)
        journal.set_cursor(alice, b"old epoch", 70)
        journal.set_cursor(alice, b"new epoch", 3)
        journal.set_cursor(bob, b"his", 9)
        assert journal.cursor(alice) == (b"new epoch", 3)
    async with Journal.open(path, MAX_GROUPS) as journal:
        assert journal.cursor(alice) == (b"new epoch", 3)
        assert journal.cursor(bob) == (b"his", 9)


async def test_cursors_are_written_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "CURSOR_DELAY_S", 0.01)
    path = tmp_path / "journal.db"
    loop, saved = asyncio.get_running_loop(), asyncio.Event()
    save_cursors = JournalFile.save_cursors

    def save_and_tell(file: JournalFile, cursors: Mapping[PeerId, Position]) -> None:
        save_cursors(file, cursors)
        loop.call_soon_threadsafe(saved.set)

    monkeypatch.setattr(JournalFile, "save_cursors", save_and_tell)
    async with Journal.open(path, MAX_GROUPS) as journal:
        with closing(sqlite3.connect(path)) as other:
            for cursor in range(1, 4):
                journal.set_cursor(PeerId("alice"), b"epoch", cursor)
            assert other.execute("SELECT * FROM cursors").fetchall() == []
            async with asyncio.timeout(5):
                await saved.wait()
            assert other.execute("SELECT * FROM cursors").fetchall() == [("alice", b"epoch", 3)]


async def test_the_least_recent_cursors_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path, MAX_GROUPS) as journal:
        for number in range(MAX_PEERS):
            journal.set_cursor(PeerId(f"peer {number}"), b"epoch", number + 1)
    async with Journal.open(path, MAX_GROUPS) as journal:
        journal.set_cursor(PeerId("peer 0"), b"epoch", 5000)
        journal.set_cursor(PeerId("newcomer"), b"epoch", 1)
        assert journal.cursor(PeerId("peer 1")) == (b"", 0)
    async with Journal.open(path, MAX_GROUPS) as journal:
        assert journal.cursor(PeerId("peer 0")) == (b"epoch", 5000)
        assert journal.cursor(PeerId("peer 1")) == (b"", 0)
        assert journal.cursor(PeerId("peer 2")) == (b"epoch", 3)
        assert journal.cursor(PeerId("newcomer")) == (b"epoch", 1)
        assert len(journal._cursors) == MAX_PEERS


# Damage and other trouble ---------------------------------------------------------------------------------------------


def garbage(data: bytes) -> bytes:
    return random.Random(0).randbytes(len(data))


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2 // 4096 * 4096
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 4096]) + data[middle + 4096 :]


@pytest.mark.parametrize("damage", [garbage, truncated, flipped])
async def test_a_damaged_file_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path, MAX_GROUPS) as journal:
        await fill(journal, range(100))
        epoch = journal.epoch
    for attempt in (1, 2):
        path.write_bytes(content := damage(path.read_bytes()))
        async with Journal.open(path, MAX_GROUPS) as journal:
            assert journal.epoch != epoch, "cursors into the old log mean nothing in the new one"
            assert journal.head == 0
            await fill(journal, range(100))
        assert path.with_name(f"journal.db.damaged-{attempt}").read_bytes() == content
        assert f"journal.db.damaged-{attempt}" in caplog.text


async def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.touch()
    async with Journal.open(path, MAX_GROUPS) as journal:
        await fill(journal, range(1))
    assert os.listdir(tmp_path) == ["journal.db"]


async def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"journal\.db has schema version 7, this program knows 2"):
        async with Journal.open(path, MAX_GROUPS):
            pass
    assert path.read_bytes() == before


async def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"nowhere/journal\.db cannot be opened: unable to open database file"):
        async with Journal.open(tmp_path / "nowhere" / "journal.db", MAX_GROUPS):
            pass


async def test_a_full_disk_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path, MAX_GROUPS) as journal:
        await fill(journal, range(3))
        _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(JournalError, match=r"journal\.db cannot be written"):
                await journal.append(signed(3, bytes(1_000_000)), [1.0], own=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not await journal.known(signed(3, bytes(1_000_000)).id)
        await fill(journal, range(4, 6))
    async with Journal.open(path, MAX_GROUPS) as journal:
        assert await bodies(journal) == [f"group {n}" for n in (0, 1, 2, 4, 5)]


@pytest.mark.parametrize(("signature", "error"), [(None, JournalError), (2**70, OverflowError)])
async def test_an_append_that_fails_tells_its_whole_commit(
    tmp_path: Path, signature: Any, error: type[Exception]
) -> None:
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS) as journal:
        with held(journal):
            groups = signed(0), replace(signed(1), signature=signature), signed(2)
            tasks = [asyncio.create_task(journal.append(group, [1.0], own=True)) for group in groups]
            await queued(journal, 3)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [error] * 3
        assert await bodies(journal) == []
        await fill(journal, range(3))
        assert await bodies(journal) == ["group 0", "group 1", "group 2"]


async def test_cursors_are_not_reused_after_a_power_cut(tmp_path: Path) -> None:
    path, after_the_cut = tmp_path / "journal.db", tmp_path / "after" / "journal.db"
    after_the_cut.parent.mkdir()
    async with Journal.open(path, MAX_GROUPS) as journal:
        for suffix in ("", "-wal"):  # what is on the disk for sure, as nothing was fsynced since
            after_the_cut.with_name(f"journal.db{suffix}").write_bytes(
                path.with_name(f"journal.db{suffix}").read_bytes()
            )
        await fill(journal, range(20))
        epoch, read_by_peer = journal.epoch, journal.head
    async with Journal.open(after_the_cut, MAX_GROUPS) as journal:
        assert journal.epoch == epoch
        assert journal.head == 0
        await fill(journal, range(100, 103))
        assert await bodies(journal, read_by_peer) == ["group 100", "group 101", "group 102"]


# SIGKILL --------------------------------------------------------------------------------------------------------------

APPENDER = """
import asyncio, sys
from pathlib import Path
from node.holds import Holds
from node.journal import Journal
from test_journal import MAX_GROUPS, signed

async def append_forever(journal, first):
    for number in range(first, 10**9, 8):
        await journal.append(signed(number), [1.0], own=True)
        print(number, flush=True)

async def main():
    async with Journal.open(Path(sys.argv[1]), 10 * MAX_GROUPS) as journal, asyncio.TaskGroup() as tasks:
        for first in range(8):
            tasks.create_task(append_forever(journal, int(sys.argv[2]) + first))

asyncio.run(main())
"""


def acknowledged_until_killed(path: Path, first: int, lines: int) -> set[int]:
    """Lets a child append from number `first` on, and kills it after it has reported so many."""
    arguments = [sys.executable, "-c", APPENDER, str(path), str(first)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path(__file__).parent) as child:
        assert child.stdout is not None
        reported = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        reported += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    return {int(line) for line in reported if line.endswith(b"\n")}  # the last may have been cut off


async def test_sigkill_loses_no_acknowledged_group(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    rng = random.Random(1)
    acknowledged: set[int] = set()
    head = 0
    for turn in range(4):
        acknowledged |= acknowledged_until_killed(path, turn * 1_000_000, lines=rng.randrange(1, 300))
        async with Journal.open(path, 10 * MAX_GROUPS) as journal:
            missing = [number for number in acknowledged if not await journal.known(signed(number).id)]
            assert not missing
            entries = await journal.read(0, 10 * MAX_GROUPS)
            assert acknowledged <= {int(entry.body.split()[1]) for entry in entries}
            assert journal.head > head, "cursors only grow"
            head = journal.head
    assert os.listdir(tmp_path) == ["journal.db"], "never taken for damaged"


# Bounds ---------------------------------------------------------------------------------------------------------------


def used_bytes(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        count, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return (count - free) * size


async def test_it_takes_no_more_bytes_than_it_may_and_readers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    rng = random.Random(0)
    async with Journal.open(path, 10_000, max_bytes=500_000) as journal:
        first = await journal.append(signed(0), [1.0], own=True)
        behind = journal.head
        for number in range(1, 200):
            await journal.append(signed(number, rng.randbytes(10_000)), [1.0], own=True)
        kept = await journal.read(0, 1000)
        assert first
        assert 30 <= len(kept) < 50
        assert [e.cursor for e in await journal.read(behind, 1000)] == [e.cursor for e in kept], "who is behind goes on"
        assert kept[-1].cursor == journal.head
        assert used_bytes(path) <= 500_000
    assert path.stat().st_size < 1_000_000
    async with Journal.open(path, 10_000, max_bytes=100_000) as journal:
        assert used_bytes(path) <= 100_000
        newest = await journal.read(0, 1000)
        assert 5 < len(newest) < 10
        assert [e.cursor for e in newest] == [e.cursor for e in kept[-len(newest) :]]
        await fill(journal, range(1000, 1001))
        assert [e.body for e in await journal.read(kept[-1].cursor, 10)] == [b"group 1000"]


async def test_groups_go_when_they_are_too_old_and_cursors_stay_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr("node.journal.time.time", lambda: now[0])
    path = tmp_path / "journal.db"
    async with Journal.open(path, MAX_GROUPS, max_age_s=100.0) as journal:
        await fill(journal, range(3))
        now[0] += 60
        await fill(journal, range(3, 5))
        now[0] += 60
        await fill(journal, range(5, 6), own=False)
        assert await bodies(journal) == ["group 3", "group 4"]
        assert not await journal.known(signed(0).id)
        now[0] += 1000
        await fill(journal, range(6, 7), own=False)
        assert (await bodies(journal), journal.head > 0) == ([], True), "all that was published has gone"
        head = journal.head
    async with Journal.open(path, MAX_GROUPS, max_age_s=100.0) as journal:
        await fill(journal, range(7, 8))
        assert await bodies(journal, head) == ["group 7"], "a reader who had read everything gets what comes next"


async def test_a_full_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_S", 0.01)
    caplog.set_level("INFO")
    room = Holds()
    async with Journal.open(tmp_path / "journal.db", MAX_GROUPS, room) as journal:
        await fill(journal, range(3))
        execute(journal, "PRAGMA max_page_count = 1")  # of what it has: not a page more
        large = [asyncio.create_task(journal.append(signed(n, bytes([n]) * 300_000), [1.0], True)) for n in (3, 4)]
        async with asyncio.timeout(10):
            while room.open:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.001)
        (why,) = room.reasons
        assert "journal.db cannot be written: database or disk is full; what was sampled" in why
        assert not any(task.done() for task in large)
        execute(journal, "PRAGMA max_page_count = 1000000")
        async with asyncio.timeout(10):
            assert await asyncio.gather(*large) == [True, True]
            await room.wait()
        assert len(await journal.read(0, 10)) == 5
    assert caplog.text.count("waits until there is room") == 1
    assert "has room again" in caplog.text


def execute(journal: Journal, statement: str) -> None:
    journal._thread.submit(lambda: journal._file._connection.execute(statement).fetchall()).result()


# Bits that flip -------------------------------------------------------------------------------------------------------


async def test_a_group_whose_bytes_have_changed_is_published_no_more_and_the_others_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path, MAX_GROUPS) as journal:
        await fill(journal, range(5))
    content = path.read_bytes()
    assert content.count(b"group 2") == 1
    path.write_bytes(content.replace(b"group 2", b"group \xb2"))
    async with Journal.open(path, MAX_GROUPS) as journal:
        for _ in range(2):
            assert await bodies(journal) == ["group 0", "group 1", "group 3", "group 4"]
        assert set(await journal.rows_of([signed(n).id for n in range(5)])) == {signed(n).id for n in (0, 1, 3, 4)}
    assert caplog.text.count(f"group {signed(2).id} is passed over") == 1
