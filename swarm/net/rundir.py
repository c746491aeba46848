"""Where a libp2p daemon's sockets live: a private directory that does not outlive its owner for long."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "swarm-node-"
#: A UNIX socket's path has about 100 bytes, of which its own name takes 40.
MAX_PARENT_CHARS = 50
#: One that was just made may not be locked yet.
STALE_AFTER_S = 60.0


@contextmanager
def run_directory() -> Iterator[Path]:
    """A private directory for the daemon's sockets; those of processes that were killed are removed on the way."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > MAX_PARENT_CHARS:
        parent = Path("/tmp")
    for stale in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if stale.stat().st_uid == os.getuid() and time.time() - stale.stat().st_mtime > STALE_AFTER_S:
                with open(stale / "lock") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(stale, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        with open(directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
