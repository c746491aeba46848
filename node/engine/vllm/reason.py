"""Why an engine's process failed, for the node that started it. vLLM tells only its log ("see root cause above")."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref

from node.engine.vllm.owner import is_of_an_engine

#: Environment variable: the file that an engine's processes write their errors to.
REASON = "SWARM_NODE_ENGINE_REASON"
MAX_LENGTH = 600


class Reason:
    """Room for the errors of one engine's processes, in memory (Linux only, memfd)."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("swarm-node-reason", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self.variables = {REASON: f"/proc/{os.getpid()}/fd/{self._fd}"}

    def first(self) -> str:
        """The first error, in one line, which those after it follow from; empty when there is none."""
        return os.pread(self._fd, MAX_LENGTH, 0).decode(errors="replace").partition("\n")[0]


class _ToOwner(logging.Handler):
    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            with contextlib.suppress(OSError), open(self._path, "a") as file:  # the owner may have gone
                file.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")


def tell_owner() -> None:
    """In a process that an engine is made of: from now on the owner gets to know what vLLM logs as an error."""
    if is_of_an_engine() and REASON in os.environ:
        logging.getLogger("vllm").addHandler(_ToOwner(os.environ[REASON]))
