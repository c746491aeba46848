"""Frames on a raw stream: a 4 byte big-endian length and as many bytes. What every stream of ours is made of.

Nobody waits for a slow one: a frame that has begun, and bytes that are to be read, have GRACE_S and the time that they
take at MIN_BYTES_S. Whoever is slower is cut off, and what it had not read is thrown away.

hivemind's streams (`ServicerBase`) allocate what a peer's length prefix states and have no deadlines: not used here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from swarm.errors import LimitError, NetworkError

GRACE_S = 10.0
MIN_BYTES_S = 16_000
_HEADER = 4


async def write_frame(writer: asyncio.StreamWriter, data: bytes) -> None:
    await write_frames(writer, [data])


async def write_frames(writer: asyncio.StreamWriter, frames: Sequence[bytes]) -> None:
    """Returns when the transport has room again. Raises NetworkError when the stream is broken or is not read fast
    enough; what waits in it is then dropped."""
    data = b"".join(part for frame in frames for part in (len(frame).to_bytes(_HEADER, "big"), frame))
    try:
        async with asyncio.timeout(_patience(len(data))):
            writer.write(data)
            await writer.drain()
    except TimeoutError:
        writer.transport.abort()
        raise NetworkError("stream: not read in time") from None
    except OSError as error:
        raise NetworkError(f"stream: {error}") from error


async def read_frame(reader: asyncio.StreamReader, limit: int, idle_s: float) -> bytes:
    """Raises LimitError before anything of a frame that is too large is read, NetworkError when the stream ends, or
    when nothing begins for `idle_s` or what began does not come fast enough."""
    try:
        async with asyncio.timeout(idle_s):
            first = await reader.readexactly(1)
        async with asyncio.timeout(GRACE_S) as deadline:
            length = int.from_bytes(first + await reader.readexactly(_HEADER - 1), "big")
            if length > limit:
                raise LimitError(f"a frame of {length} bytes: must be at most {limit}")
            deadline.reschedule(asyncio.get_running_loop().time() + _patience(length))
            return await reader.readexactly(length)
    except TimeoutError:
        raise NetworkError("stream: nothing came in time") from None
    except (OSError, EOFError) as error:
        raise NetworkError(f"stream: {error}") from error


def _patience(size: int) -> float:
    return GRACE_S + size / MIN_BYTES_S


def hold_little(writer: asyncio.StreamWriter) -> None:
    """From now on a write is over when the kernel has all of it: what a peer does not read is not kept for it."""
    writer.transport.set_write_buffer_limits(high=0)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels it, waits for it, and takes note of how it ended, so that nobody else complains."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def first_of(*events: Coroutine[Any, Any, Any], until: asyncio.Task[Any], timeout: float) -> None:
    """Returns when one of the events has come, `until` is over, or `timeout` seconds are."""
    tasks = [asyncio.create_task(event) for event in events]
    try:
        await asyncio.wait({*tasks, until}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            await end(task)
