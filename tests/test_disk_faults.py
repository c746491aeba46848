"""ENOSPC and EIO at every write of a checkpoint and of the small files: nothing is corrupt, the message names file and
reason, and the node goes on."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import node.checkpoint
from node.checkpoint import CheckpointStore
from node.metrics import MetricsLog
from swarm.errors import CheckpointError
from swarm.net.addressbook import AddressBook
from swarm.net.standing import Standing
from swarm.types import PeerId
from tests.faults.disk import failing
from tests.test_checkpoint import check, put

ERRORS = (errno.ENOSPC, errno.EIO)
WRITES: tuple[tuple[Any, str], ...] = (
    (node.checkpoint, "save_file"),
    (node.checkpoint, "sync"),
    (Path, "write_text"),
    (Path, "mkdir"),
    (Path, "rename"),
    (shutil, "rmtree"),
)


@pytest.mark.parametrize("error", ERRORS, ids=os.strerror)
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_or_is_there(tmp_path: Path, error: int) -> None:
    number, failed = 0, True
    while failed:
        store = CheckpointStore(tmp_path / str(number) / "checkpoints", keep=1)
        put(store, 1)
        with failing(number, error, WRITES) as made:
            try:
                put(store, 2)
                said = ""
            except (CheckpointError, OSError) as raised:
                said = str(raised)
        failed = len(made) > number
        assert bool(said) <= failed
        if said and made[number] != "write_text":  # which the model writes as well, and names itself
            assert os.strerror(error) in said
            assert "checkpoint" in said
        newest = store.latest()
        assert newest is not None
        assert newest.step in ((1, 2) if failed else (2,))
        check(store, newest.step)
        put(store, 3)
        check(store, 3)
        number += 1
    assert number > 12


@pytest.mark.parametrize("error", ERRORS, ids=os.strerror)
def test_metrics_lose_lines_and_never_have_half_of_one(tmp_path: Path, error: int) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    assert log._flush() == ""
    write = io.FileIO.write

    class Short(io.FileIO):
        def write(self, data: Any) -> int:
            if len(data) > 5:
                return write(self, data[:5])
            raise OSError(error, os.strerror(error))

    def opened(path: Path, mode: str = "r", **options: Any) -> Any:
        return Short(path, "a") if mode == "ab" else open(path, mode, **options)

    log.append({"step": 2, "text": "abc"})
    with mock.patch.object(Path, "open", opened):
        assert log._flush() == f"metrics.jsonl: lines lost: {os.strerror(error)}"
    log.append({"step": 3})
    assert log._flush() == ""
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 3]


def test_metrics_after_a_crash_in_the_middle_of_a_line_begin_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 2})
    assert log._flush() == ""
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}']


def standing(path: Path) -> Callable[[], None]:
    kept = Standing(lambda: 0.0, path)
    kept.credit(PeerId("peer"), 1.0)
    return kept.save


def addresses(path: Path) -> Callable[[], None]:
    peer = PeerId("12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5")
    book = AddressBook(path)
    book.remember(f"/ip4/127.0.0.1/tcp/4001/p2p/{peer}", peer)
    return book.save


@pytest.mark.parametrize("error", ERRORS, ids=os.strerror)
@pytest.mark.parametrize("call", ["write_text", "replace"])
@pytest.mark.parametrize("saver", [standing, addresses])
def test_small_files_keep_their_old_content_and_the_failure_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, saver: Callable[[Path], Callable[[], None]], call: str, error: int
) -> None:
    path = tmp_path / "file.json"
    saver(path)()
    before = path.read_bytes()
    save = saver(path)
    with failing(0, error, ((Path, call),)) as made:
        save()
    if made:
        assert f"{path}" in caplog.text
        assert os.strerror(error) in caplog.text
    assert path.read_bytes() == before
    saver(path)()
    assert json.loads(path.read_bytes())
