"""Light nodes (`tests.bench.light_node`) as processes, from the side of whoever started them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.light_words import Report, Task

ROOT = Path(__file__).parents[2]
START_S, ANSWER_S = 180.0, 60.0
STOP_S = 20.0
LINE_BYTES = 1 << 24


class Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.peer, self.addresses, self.up_s = "", (), 0.0

    async def begin(self) -> None:
        said = await self._line(START_S)
        self.peer, self.addresses, self.up_s = said["peer"], tuple(said["addresses"]), said["up_s"]

    def publish(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"publish {count}\n".encode())

    async def stop(self) -> None:
        """Returns when it has ended, by itself or by force."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def report(self) -> Report:
        assert self._process.stdin is not None
        self._process.stdin.write(b"report\n")
        return Report(**await self._line())

    async def _line(self, seconds: float = ANSWER_S) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a node ended: exit code {await self._process.wait()}")
        return json.loads(line)


@asynccontextmanager
async def started(task: Task, *prefix: str) -> AsyncIterator[Child]:
    """A node as long as the context is open. `prefix`: a command to run it with."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        "-m",
        "tests.bench.light_node",
        json.dumps(asdict(task)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        limit=LINE_BYTES,
    )
    child = Child(process)
    try:
        await child.begin()
        yield child
    finally:
        await child.stop()


async def reports(children: Sequence[Child]) -> list[Report]:
    return await asyncio.gather(*(child.report() for child in children))


async def reported(children: Sequence[Child], when: Callable[[list[Report]], bool], seconds: float) -> list[Report]:
    """As soon as `when` holds; the last ones when the time is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not when(them := await reports(children)) and loop.time() < until:  # noqa: ASYNC110 - other processes
        await asyncio.sleep(0.5)
    return them
