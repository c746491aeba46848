"""The judge's end of the pipe to its process, on the event loop that a daemon has."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from swarm.errors import TaskError
from swarm.tasks.base import SourceSpec
from swarm.tasks.child import Worker
from swarm.tasks.judge import MEMORY_BYTES


def test_a_closed_pipe_is_a_process_that_has_died() -> None:
    """uvloop raises RuntimeError where asyncio raises OSError."""

    async def ask() -> None:
        worker = await Worker.start([SourceSpec(type="reasoning_gym", name="spell_backward")], MEMORY_BYTES)
        assert worker._process.stdin is not None
        worker._process.stdin.transport.abort()
        try:
            await asyncio.sleep(0)
            with pytest.raises(TaskError, match="has died"):
                await worker.send([{"op": "task", "source": 0, "seed": 1, "index": 1}])
        finally:
            worker.abort()
            await worker.stop()

    uvloop.run(ask())
