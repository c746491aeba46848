"""Packed messages (`swarm.wire.deflate`) on streams: who packs how much, and where.

Packing costs a third of a millisecond for 16 kB, and readers decide how much is sent to them. So all streams of a node
together have a share of one core for it; what would take more is sent plain, which every reader understands. Where
bytes are short there is nothing to compete for: 100 Mbit/s are packed in less.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from swarm.net.frames import read_frame
from swarm.net.rates import TokenBucket
from swarm.wire.deflate import Deflater, Inflater, largest_frame

CORE_SHARE = 0.25
OFF_LOOP_BYTES = 65_536
"""What is larger is packed and unpacked in a thread: a megabyte takes 20 ms, or ten times as long if it is made to."""


class Packing:
    """A node's, for all that it sends. `share` of a core; 0 packs nothing."""

    def __init__(self, share: float = CORE_SHARE, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ms = TokenBucket(1000 * share, clock()) if share else None

    def open(self, unpacks: bool) -> Packer:
        """For a new stream; `unpacks`: whether its reader says that it can."""
        return Packer(self, Deflater() if unpacks and self._ms is not None else None)

    def affordable(self) -> bool:
        """Whether there is time left for more."""
        return self._ms is not None and self._ms.wait_s(1.0, self._clock()) == 0

    def spent(self, seconds: float) -> None:
        if self._ms is not None:
            self._ms.take(1000 * seconds, self._clock())


class Packer:
    """Of one stream."""

    def __init__(self, packing: Packing, deflater: Deflater | None) -> None:
        self._packing, self._deflater = packing, deflater

    async def frames(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """One for each message. All of them have to be sent, in this order."""
        if self._deflater is None or not self._packing.affordable():
            return messages
        if sum(map(len, messages)) > OFF_LOOP_BYTES:
            frames, seconds = await asyncio.to_thread(_pack, self._deflater, messages)
        else:
            frames, seconds = _pack(self._deflater, messages)
        self._packing.spent(seconds)
        return frames


def _pack(deflater: Deflater, messages: Sequence[bytes]) -> tuple[list[bytes], float]:
    """The frames, and the CPU seconds that they took."""
    started = time.thread_time()
    frames = [deflater.pack(message) for message in messages]
    return frames, time.thread_time() - started


async def read_message(reader: asyncio.StreamReader, inflater: Inflater | None, limit: int, idle_s: float) -> bytes:
    """The next frame's message, of at most `limit` bytes; a frame as it is where it is not packed, or we have no
    inflater. Raises as `read_frame`, LimitError and WireError as `Inflater.unpack`."""
    if inflater is None:
        return await read_frame(reader, limit, idle_s)
    frame = await read_frame(reader, largest_frame(limit), idle_s)
    if len(frame) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(inflater.unpack, frame, limit)
    return inflater.unpack(frame, limit)
