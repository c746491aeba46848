from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.datadir import DataDirectory, RpcEndpoint, write_atomic
from node.operator_client import discover
from swarm.errors import ConfigError, NetworkError

HOLDER = """
import sys
from pathlib import Path
from node.datadir import DataDirectory

data = DataDirectory(Path(sys.argv[1]))
with data.lock(), data.serving("127.0.0.1:1234"):
    print("locked", flush=True)
    sys.stdin.read()
"""

WRITER = """
import sys
from pathlib import Path
from node.datadir import write_atomic

for number in range(10**9):
    write_atomic(Path(sys.argv[1]), bytes([number % 256]) * 300_000)
    print(number, flush=True)
"""


@contextmanager
def child(script: str, argument: Path) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [sys.executable, "-c", script, str(argument)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_two_processes_cannot_share_a_directory(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "new" / "node")
    with child(HOLDER, data.path) as holder:
        assert line(holder) == b"locked\n"
        with pytest.raises(ConfigError) as refused, data.lock():
            pass
        assert f"{data.path} is in use by another node (pid {holder.pid})" in str(refused.value)
        assert data.endpoint() == RpcEndpoint(address="127.0.0.1:1234", pid=holder.pid), "left to the holder"


def test_sigkill_releases_the_directory(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path)
    with child(HOLDER, tmp_path) as holder:
        assert line(holder) == b"locked\n"
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    assert data.endpoint() is not None
    with data.lock():
        assert (tmp_path / "node.lock").read_text() == f"{os.getpid()}\n"
        assert data.endpoint() is None, "the killed one's"


def test_a_clean_exit_leaves_neither_lock_nor_endpoint(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path)
    with child(HOLDER, tmp_path) as holder:
        assert line(holder) == b"locked\n"
        holder.communicate()
    assert holder.returncode == 0
    assert data.endpoint() is None
    for _ in range(2):
        with data.lock():
            pass


def test_the_lock_is_exclusive_within_a_process_too(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path)
    with data.lock(), pytest.raises(ConfigError, match=f"pid {os.getpid()}"), data.lock():
        pass


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data_dir: .*file/node cannot be used: Not a directory"):  # noqa: SIM117
        with DataDirectory(tmp_path / "file" / "node").lock():
            pass


def test_every_file_has_its_place(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path)
    places = [data.identity, data.journal, data.checkpoints, data.rpc, data.peers, data.metrics]
    names = ["identity.key", "journal.db", "checkpoints", "rpc", "peers.json", "metrics.jsonl"]
    assert places == [tmp_path / name for name in names]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"address": "127.0.0.1:1"}', b"\xff"])
def test_an_endpoint_that_nobody_wrote_is_an_error(tmp_path: Path, content: bytes) -> None:
    data = DataDirectory(tmp_path)
    data.rpc.write_bytes(content)
    with pytest.raises(ConfigError, match="is not what a daemon writes there"):
        data.endpoint()


def test_write_atomic_replaces_whole_and_privately(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    for content in (b"old and long", b"new"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["peers.json"]


def test_write_atomic_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    write_atomic(path, b"old")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["peers.json"]


@pytest.mark.parametrize("lines", [1, 7, 30])
def test_sigkill_never_leaves_a_mixture(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "peers.json"
    with child(WRITER, path) as writer:
        written = [int(line(writer)) for _ in range(lines)][-1]
    content = path.read_bytes()
    assert len(content) == 300_000
    assert len(set(content)) == 1
    assert content[0] >= written
    write_atomic(path, b"goes on")
    assert os.listdir(tmp_path) == ["peers.json"], "what was left aside is used up"


def test_why_a_daemon_ended_is_kept_until_the_next_one(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "node")
    assert data.last_end() == ""
    data.note_end("lost for ever")  # no directory yet: nothing to write to
    assert data.last_end() == ""
    with data.lock():
        data.note_end("the engine failed 11 times")
    assert data.last_end() == "the engine failed 11 times"
    with pytest.raises(NetworkError, match="the last one ended because the engine failed 11 times"):
        discover(data.path)
    with data.lock():
        assert data.last_end() == ""
