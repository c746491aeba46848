"""Becomes another program that does not outlive its parent: `python -m node.demo.child PARENT_PID COMMAND ...`.

A separate step between fork and exec, because code that runs between those two in a process with threads may deadlock.
On Linux the kernel sends SIGTERM when the parent dies, however it dies; elsewhere the program just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
