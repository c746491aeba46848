"""Operating-system processes that never outlive whoever started them.

Each child leads a session and process group of its own (so a terminal's Ctrl-C reaches only us, and we can end a child
together with whatever it has started), and is told by the kernel when we die. `Children.kill` ends all of them at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from swarm.errors import SwarmError

#: One thread each: the demo's models are slowed down by more, and its processes share the machine's cores.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
MAX_LINE_BYTES = 1 << 20


class ChildFailed(SwarmError):
    """A child that was to do something and end came back with an error; the message has its last lines."""


class Children:
    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self._alive: set[Process] = set()
        self._starting: set[asyncio.Task[Process]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nobody is left: what still runs is killed."""
        await asyncio.gather(*self._starting, return_exceptions=True)
        self.kill()
        await asyncio.gather(*(self.reap(process) for process in list(self._alive)))

    async def spawn(self, command: Sequence[str], *, output: int, errors: int) -> Process:
        """Starts `command` with its output going to file descriptors (or PIPE). Call `reap` when done with it."""
        return await self._whole(self._start(command, output, errors))

    async def start_logged(self, command: Sequence[str], log: Path) -> Process:
        """Starts a long-lived child whose output, all of it, is appended to `log`."""
        return await self._whole(self._start_logged(command, log))

    async def _whole(self, start: Coroutine[None, None, Process]) -> Process:
        """A child is started or it is not: cancelled on its way, it would be there and nobody would know of it. So it
        comes, and is killed."""
        starting = asyncio.create_task(start)
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_unwanted)
            raise

    async def _start(self, command: Sequence[str], output: int, errors: int) -> Process:
        wrapped = [sys.executable, "-m", "node.demo.child", str(os.getpid()), *command]
        process = await asyncio.create_subprocess_exec(
            *wrapped,
            stdin=DEVNULL,
            stdout=output,
            stderr=errors,
            env=self._environment,
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
        self._alive.add(process)
        return process

    async def _start_logged(self, command: Sequence[str], log: Path) -> Process:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            return await self._start(command, file.fileno(), file.fileno())

    async def reap(self, process: Process) -> int:
        """Waits until it ends by itself, then sweeps what is left of its group. Returns its exit code."""
        code = await process.wait()
        signal_group(process, signal.SIGKILL)
        self._alive.discard(process)
        return code

    async def output(self, command: Sequence[str], heard: Callable[[str], None] | None = None) -> str:
        """Runs `command` to its end and returns what it printed; `heard` is told each line of its stderr as it comes.

        Cancelled: it is killed. Raises ChildFailed, with the last lines of stderr.
        """
        process = await self.spawn(command, output=PIPE, errors=PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            out, lines = await asyncio.gather(process.stdout.read(), _last_lines(process.stderr, heard))
        except asyncio.CancelledError:
            signal_group(process, signal.SIGKILL)
            raise
        finally:
            code = await self.reap(process)
        if code:
            shown = " ".join(command[1:] if command[0] == sys.executable else command)
            raise ChildFailed(f"{shown}: exit code {code}\n{lines}")
        return out.decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL to every child and its group, now."""
        for process in self._alive:
            signal_group(process, signal.SIGKILL)


def _unwanted(started: asyncio.Task[Process]) -> None:
    if not started.cancelled() and started.exception() is None:
        signal_group(started.result(), signal.SIGKILL)


def signal_group(process: Process, number: signal.Signals) -> None:
    """To the process and everything that it has started; to nobody, if they are gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def end(process: Process, *, patience_s: float) -> None:
    """SIGTERM to the child itself (which closes its own children in order), `patience_s` later SIGKILL to its group."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        if not await ends_within(process, patience_s):
            signal_group(process, signal.SIGKILL)


async def ends_within(process: Process, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), seconds)
    return process.returncode is not None


def last_line(log: Path, *, within_bytes: int = 8192) -> str:
    """The last line of a log that says something; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - within_bytes))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line), "")


async def _last_lines(stream: asyncio.StreamReader, heard: Callable[[str], None] | None, count: int = 12) -> str:
    kept: deque[str] = deque(maxlen=count)
    async for line in stream:
        kept.append(line.decode(errors="replace").rstrip())
        if heard is not None and kept[-1]:
            heard(kept[-1])
    return "\n".join(kept)
