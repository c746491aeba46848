"""Ends an engine's process with the node that started it: a killed node would otherwise leave it behind with all its
memory, and the next start would not fit."""

from __future__ import annotations

import os
import select
import signal
import threading

#: Environment variable: the process id of the node that an engine belongs to.
OWNER = "SWARM_NODE_ENGINE_OWNER"


def is_of_an_engine() -> bool:
    """Whether this process is one that an engine is made of, and not the node itself."""
    return OWNER in os.environ and int(os.environ[OWNER]) != os.getpid()


def die_with_owner() -> None:
    """In a process that an engine is made of; does nothing in any other."""
    if is_of_an_engine():
        owner = int(os.environ[OWNER])
        threading.Thread(target=_die_with, args=(owner,), daemon=True, name="owner-watch").start()


def _die_with(owner: int) -> None:
    try:
        watched = os.pidfd_open(owner)
    except ProcessLookupError:
        pass  # it has gone already
    else:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)
