"""One node's data on disk: which file is where, who may touch it, and how a small file is replaced whole.

DATA_DIR/
    node.lock        held (flock) by the daemon that runs here; contains its pid
    identity.key     the node's signing key
    journal.db       groups and cursors (node/journal.py)
    checkpoints/     node/checkpoint.py
    ended            why the daemon before ended, if it was not asked to
    rpc              {"address": "127.0.0.1:40123", "pid": 4711} while a daemon serves
    peers.json       who was alive last
    standing.json    what peers have earned with us (swarm/net/standing.py)
    metrics.jsonl    one record a step
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcEndpoint:
    address: str
    """host:port that an operator dials."""
    pid: int


@dataclass(frozen=True, slots=True)
class DataDirectory:
    path: Path

    @property
    def identity(self) -> Path:
        return self.path / "identity.key"

    @property
    def journal(self) -> Path:
        return self.path / "journal.db"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rpc(self) -> Path:
        return self.path / "rpc"

    @property
    def ended(self) -> Path:
        return self.path / "ended"

    @property
    def peers(self) -> Path:
        return self.path / "peers.json"

    @property
    def standing(self) -> Path:
        return self.path / "standing.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes this process the only daemon in the directory, which is created if need be.

        The kernel releases the lock when the process dies, however it dies; a child that was forked without exec holds
        it too, as long as it lives. Raises ConfigError naming the directory and the holder's pid when another daemon
        runs here, or the reason when the directory cannot be used.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / "node.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"data_dir: {self.path} cannot be used: {error.strerror}") from error
        try:
            self._claim(descriptor)
            yield
        finally:
            os.close(descriptor)  # the file stays: unlinking it would let two nodes lock two files of one name

    def _claim(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            self.rpc.unlink(missing_ok=True)  # of a daemon that was killed
            self.ended.unlink(missing_ok=True)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"data_dir: {self.path} is in use by another node (pid {holder}): "
                "stop that one, or give this one a directory of its own"
            ) from None
        except OSError as error:
            raise ConfigError(f"data_dir: {self.path} cannot be locked: {error.strerror}") from error

    @contextmanager
    def serving(self, address: str) -> Iterator[None]:
        """Tells operators of this machine where the daemon's RPC is, for as long as the context lasts."""
        write_atomic(self.rpc, json.dumps({"address": address, "pid": os.getpid()}).encode())
        try:
            yield
        finally:
            self.rpc.unlink(missing_ok=True)

    def note_end(self, why: str) -> None:
        """For operators who come later, as far as the disk lets us. Only for the daemon that has had the lock."""
        with suppress(OSError):
            write_atomic(self.ended, f"{why}\n".encode(errors="replace"))

    def last_end(self) -> str:
        """Why the daemon before ended without being asked to; nothing if it was, if it was killed, or if one runs."""
        try:
            return self.ended.read_text(errors="replace").strip()
        except OSError:
            return ""

    def endpoint(self) -> RpcEndpoint | None:
        """Where the daemon's RPC is; None if none serves. Outdated after a SIGKILL, until the next daemon starts."""
        try:
            record = json.loads(self.rpc.read_bytes())
            return RpcEndpoint(address=str(record["address"]), pid=int(record["pid"]))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"data_dir: {self.rpc} is not what a daemon writes there: {error!r}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file whole: after a crash or a power cut there is the old content or the new, never a mixture.

    Readable by its owner alone. One writer per path at a time. Raises OSError, the old content then being untouched.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync of a file's content, or of a directory's entries: a new name is durable only after the latter."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
