"""Nodes by the hundred: one process that has imported everything forks into them, which spares each the seconds of CPU
that importing torch takes. Whatever the child does afterwards it does as `swarm-node run` would.

    python -m tests.chaos.zygote     "CONFIG LOG FAULT" a line on stdin -> "born PID" and, later, "died PID CODE"
"""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Zygote:
    """The other end of it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._born: asyncio.Queue[int] = asyncio.Queue()
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._turn = asyncio.Lock()

    async def fork(self, config: Path, log: Path, fault: str = "none") -> Child:
        assert self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write(f"{config} {log} {fault}\n".encode())
            return Child(pid := await self._born.get(), self._ends[pid])

    async def listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word, *numbers = line.decode().split()
            pid = int(numbers[0])
            if word == "born":
                self._ends[pid] = asyncio.get_running_loop().create_future()
                self._born.put_nowait(pid)
            else:
                self._ends[pid].set_result(int(numbers[1]))


class Child:
    def __init__(self, pid: int, end: asyncio.Future[int]) -> None:
        self.pid, self.end = pid, end

    @property
    def alive(self) -> bool:
        return not self.end.done()

    async def wait(self) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        return await asyncio.shield(self.end)

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)


@asynccontextmanager
async def zygote() -> AsyncIterator[Zygote]:
    command = [sys.executable, "-m", "tests.chaos.zygote"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE, start_new_session=True)
    made = Zygote(process)
    listening = asyncio.create_task(made.listen())
    try:
        yield made
    finally:
        listening.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        for pid, end in made._ends.items():
            if not end.done():
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


def serve() -> None:
    """One thread, which nothing has been computed in: a fork of it is as good as new."""
    from node import cli, daemon  # noqa: F401 - what takes so long
    from tests.chaos.faulty import inject

    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    looking = selectors.DefaultSelector()
    for fd in (0, read):
        looking.register(fd, selectors.EVENT_READ)
    rest = b""
    while True:
        for key, _ in looking.select():
            data = os.read(key.fd, 4096)
            if key.fd == read:
                _bury()
            elif not data:
                return
            else:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    config, log, fault = line.decode().split()
                    if pid := os.fork():
                        print("born", pid, flush=True)
                    else:
                        looking.close()
                        _become(log)
                        inject(fault)
                        code = 70
                        try:
                            code = cli.main(["run", config])
                        finally:
                            sys.stderr.flush()
                            os._exit(code)


def _become(log: str) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(fd, number)


def _bury() -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            print("died", found[0], os.waitstatus_to_exitcode(found[1]), flush=True)


if __name__ == "__main__":
    serve()
