"""Another process of a measurement: `python -m MODULE '{"...": ...}'`, which answers in lines of JSON.

Its module's `publish` (or what `run_child` is given) reports what it measured; it goes when its input ends, and is
killed with whatever it started if it does not.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvloop

LINE_BYTES = 1 << 24
ANSWER_S = 110.0
END_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Child:
    process: asyncio.subprocess.Process

    async def tell(self, patience_s: float = ANSWER_S) -> dict[str, Any]:
        """The next line of its own. Raises TimeoutError when there is none in time, RuntimeError when it ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(patience_s):
            line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended: status {await self.process.wait()}")
        return json.loads(line)

    async def say(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()

    def signal_all(self, number: signal.Signals) -> None:
        """It, and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@asynccontextmanager
async def child(module: str, task: Mapping[str, Any], python: str | None = None) -> AsyncIterator[Child]:
    """`python`: another environment's, whose complaints are not shown."""
    process = await asyncio.create_subprocess_exec(
        python or sys.executable,
        "-m",
        module,
        json.dumps(task),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
        start_new_session=True,
        stderr=asyncio.subprocess.DEVNULL if python else None,
    )
    running = Child(process)
    try:
        yield running
    finally:
        assert process.stdin is not None
        process.stdin.close()
        running.signal_all(signal.SIGCONT)
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            pass
        running.signal_all(signal.SIGKILL)
        await process.wait()


# In the process -------------------------------------------------------------------------------------------------------


def report(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def told() -> dict[str, Any] | None:
    """What the parent says next; None when it has gone."""
    line = await asyncio.to_thread(sys.stdin.readline)
    return json.loads(line) if line else None


def run_child(work: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    async def main() -> None:
        await work(json.loads(sys.argv[1]))

    uvloop.run(main())
