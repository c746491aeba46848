"""Pulling: one reader asks, one publisher answers with what its log holds and what it gets, for up to a minute.

On a libp2p stream of protocol PULL, in frames of a 4 byte big-endian length and as many bytes:

    reader     -> PullRequest
    publisher  -> PullResponse, PullResponse, ... and an empty frame: "that is all for now, ask again"

The reader takes frames as fast as it has room for; when it does not read, the transport's windows fill and the
publisher waits, until its minute is over. A publisher that refuses (another swarm, too many streams) closes without the
empty frame.

A log is a stream and not an archive: a reader who does not know it starts FIRST_CONTACT groups before its head; one who
was away goes on from its cursor, but not from further than CATCH_UP groups back: older ones are stale anyway.

hivemind's streams (`ServicerBase`) allocate what a peer's length prefix states and have no deadlines: not used here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from swarm.errors import LimitError, NetworkError, SwarmError, WireError
from swarm.limits import Limits
from swarm.membership import Membership
from swarm.net.base import GroupLog, LogEntry
from swarm.types import PeerId
from swarm.wire.codec import Pull, decode_entry, decode_pull, encode_entry, encode_pull

PULL = "/swarm/1/pull"

STREAM_S = 60.0
"""A publisher ends a stream after so long."""
REQUEST_S = 10.0
FRAME_S = 30.0
"""From a frame's first byte to its last."""
IDLE_S = STREAM_S + 15.0
MAX_STREAMS = 64
"""That a publisher serves at a time."""
MAX_STREAMS_PER_PEER = 2
MAX_REQUEST_BYTES = 1024
ENVELOPE_BYTES = 512
"""What a response has beside the group's body."""
PAGE = 8
"""Groups that are read from a log at a time."""
FIRST_CONTACT = 64
CATCH_UP = 1024
_HEADER = 4

logger = logging.getLogger(__name__)


async def write_frame(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(len(data).to_bytes(_HEADER, "big") + data)
    await writer.drain()


async def read_frame(reader: asyncio.StreamReader, limit: int, idle_s: float) -> bytes:
    """Raises LimitError before anything of a frame that is too large is read, NetworkError when the stream ends, or
    when nothing begins for `idle_s` or what began is not complete after FRAME_S."""
    try:
        async with asyncio.timeout(idle_s):
            first = await reader.readexactly(1)
        async with asyncio.timeout(FRAME_S):
            length = int.from_bytes(first + await reader.readexactly(_HEADER - 1), "big")
            if length > limit:
                raise LimitError(f"a frame of {length} bytes: must be at most {limit}")
            return await reader.readexactly(length)
    except TimeoutError:
        raise NetworkError("stream: nothing came in time") from None
    except (OSError, EOFError) as error:
        raise NetworkError(f"stream: {error}") from error


async def pull(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wanted: Pull, limits: Limits
) -> AsyncGenerator[tuple[bytes, LogEntry], None]:
    """What a publisher sends, as (epoch, entry) with cursors that grow; ends with its empty frame.

    Raises NetworkError when the stream breaks, WireError (LimitError) for what no honest publisher sends."""
    try:
        await write_frame(writer, encode_pull(wanted))
    except OSError as error:
        raise NetworkError(f"stream: {error}") from error
    epoch, cursor = wanted.epoch, wanted.cursor
    while frame := await read_frame(reader, limits.max_group_bytes + ENVELOPE_BYTES, IDLE_S):
        new_epoch, entry = decode_entry(frame)
        if len(entry.body) > limits.max_group_bytes:
            raise LimitError(f"a group of {len(entry.body)} bytes: must be at most {limits.max_group_bytes}")
        if new_epoch == epoch and entry.cursor <= cursor:
            raise WireError(f"cursor {entry.cursor} after {cursor}")
        epoch, cursor = new_epoch, entry.cursor
        yield epoch, entry


class Publisher:
    """Serves our log to whoever asks: so many streams at a time, so many of one peer, each for a minute."""

    def __init__(self, membership: Membership, log: GroupLog, limits: Limits, stream_s: float = STREAM_S) -> None:
        self._membership, self._log, self._limits, self._stream_s = membership, log, limits, stream_s
        self._streams: Counter[PeerId] = Counter()

    async def serve(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One stream, from request to end. Whoever called closes it."""
        if self._streams.total() >= MAX_STREAMS or self._streams[peer] >= MAX_STREAMS_PER_PEER:
            logger.debug("%s: refused, too many streams", peer)
            return
        self._streams[peer] += 1
        try:
            asked = decode_pull(await read_frame(reader, MAX_REQUEST_BYTES, REQUEST_S))
            if complaint := self._membership.complaint(asked.swarm, peer, asked.membership):
                raise WireError(complaint)
            async with asyncio.timeout(self._stream_s + REQUEST_S):
                await self._send(asked, reader, writer)
        except (SwarmError, OSError) as error:
            logger.debug("%s: stream ended: %s", peer, error)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _send(self, asked: Pull, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        log = self._log
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._stream_s
        cursor = max(asked.cursor, log.head - CATCH_UP) if asked.epoch == log.epoch else log.head - FIRST_CONTACT
        cursor, left = min(max(cursor, 0), log.head), asked.max_groups
        hung_up = asyncio.create_task(reader.read(1))
        try:
            while left and not hung_up.done() and (rest := deadline - loop.time()) > 0:
                head = log.head
                entries = await log.read(cursor, min(left, PAGE))
                for entry in entries:
                    cursor = entry.cursor
                    if len(entry.body) <= self._limits.max_group_bytes:
                        await write_frame(writer, encode_entry(log.epoch, entry))
                        left -= 1
                if not entries:
                    # What lay between has been pruned.
                    cursor = max(cursor, head)
                    news = asyncio.create_task(_head_after(log, cursor))
                    try:
                        await asyncio.wait({news, hung_up}, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        await _end(news)
        finally:
            await _end(hung_up)
        await write_frame(writer, b"")


async def _head_after(log: GroupLog, cursor: int) -> int:
    return await log.wait(cursor)


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancels it, waits for it, and takes note of how it ended, so that nobody else complains."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
