"""Pulling: one reader asks, one publisher answers with what its log holds and what it gets, for up to a minute.

On a libp2p stream of protocol PULL, in frames (`swarm.net.frames`):

    reader     -> PullRequest, PullCredit, PullCredit, ...
    publisher  -> PullResponse, PullResponse, ... and an empty frame: "that is all for now, ask again"

The publisher sends as many groups as the reader has given credit for, and as fast as its own limits allow. A publisher
that refuses (another swarm, too many streams) closes without the empty frame.

A publisher packs its frames (`swarm.wire.deflate`) for a reader that says that it can unpack them. Such a reader takes
plain ones all the same: older publishers send them.

A log is a stream and not an archive: a reader who does not know it starts FIRST_CONTACT groups before its head; one who
was away goes on from its cursor, but not from further back than it asked for, and never CATCH_UP groups: older ones are
stale anyway. The same holds for one that falls behind on the way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from swarm.errors import LimitError, NetworkError, SwarmError, WireError
from swarm.limits import Limits
from swarm.membership import Membership
from swarm.net.base import GroupLog, LogEntry
from swarm.net.frames import end, first_of, hold_little, read_frame, write_frame, write_frames
from swarm.net.packing import Packing, read_message
from swarm.net.places import Place, Places
from swarm.net.rates import Meter
from swarm.types import PeerId
from swarm.wire.codec import (
    MAX_PULL_GROUPS,
    Pull,
    decode_credit,
    decode_entry,
    decode_pull,
    encode_credit,
    encode_entry,
    encode_pull,
)
from swarm.wire.deflate import Inflater

PULL = "/swarm/1/pull"

STREAM_S = 60.0
"""A publisher ends a stream after so long."""
REQUEST_S = 10.0
IDLE_S = STREAM_S + 15.0
MAX_STREAMS = 64
"""That a publisher serves at a time."""
MAX_STREAMS_PER_PEER = 2
MAX_REQUEST_BYTES = 1024
ENVELOPE_BYTES = 512
"""What a response has beside the group's body."""
MAX_PAGE = 64
"""Groups that are read from a log at a time, at most."""
PAGE_BYTES = 262_144
"""What they should not be more than together: it is what a stream holds in memory."""
FIRST_CONTACT = 64
CATCH_UP = 1024

logger = logging.getLogger(__name__)


# Reading --------------------------------------------------------------------------------------------------------------


async def pull(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    wanted: Pull,
    limits: Limits,
    allowed: Callable[[int], Awaitable[None]] | None = None,
) -> AsyncGenerator[tuple[bytes, LogEntry], None]:
    """What a publisher sends, as (epoch, entry) with cursors that grow; ends with its empty frame.

    `allowed(n)` returns when there is room for n groups more; without it there never is, and the stream ends after
    `wanted.max_groups`. Raises NetworkError when the stream breaks, WireError (LimitError) for what no honest publisher
    sends."""
    await write_frame(writer, encode_pull(wanted))
    credit = _Credit(wanted.max_groups)
    granting = asyncio.create_task(_grant(writer, wanted.max_groups, credit, allowed)) if allowed else None
    epoch, cursor = wanted.epoch, wanted.cursor
    inflater = Inflater() if wanted.deflate else None
    try:
        while (credit.left or allowed) and (
            message := await read_message(reader, inflater, limits.max_group_bytes + ENVELOPE_BYTES, IDLE_S)
        ):
            new_epoch, entry = decode_entry(message)
            if len(entry.body) > limits.max_group_bytes:
                raise LimitError(f"a group of {len(entry.body)} bytes: must be at most {limits.max_group_bytes}")
            if new_epoch == epoch and entry.cursor <= cursor:
                raise WireError(f"cursor {entry.cursor} after {cursor}")
            if not credit.left:
                raise WireError("a group more than there was credit for")
            epoch, cursor = new_epoch, entry.cursor
            yield epoch, entry
            # Only now it has been taken: the room that it had is free again.
            credit.add(-1)
    finally:
        if granting is not None:
            await end(granting)


async def _grant(
    writer: asyncio.StreamWriter, window: int, credit: _Credit, allowed: Callable[[int], Awaitable[None]]
) -> None:
    """Keeps up to `window` groups of credit given, half a window at a time."""
    try:
        while True:
            await credit.below(window // 2 + 1)
            more = window - credit.left
            await allowed(more)
            credit.add(more)
            await write_frame(writer, encode_credit(more))
    except NetworkError:
        writer.transport.abort()


class _Credit:
    def __init__(self, left: int) -> None:
        self.left = left
        self._changed = asyncio.Event()

    def add(self, groups: int) -> None:
        self.left += groups
        self._changed.set()

    async def below(self, groups: int) -> None:
        while self.left >= groups:
            await self._change()

    async def above(self, groups: int) -> None:
        while self.left <= groups:
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


# Publishing -----------------------------------------------------------------------------------------------------------


class Publisher:
    """Serves our log to whoever asks: so many streams at a time, so many of one peer, each for a minute, all together
    as fast as `meter` allows."""

    def __init__(
        self,
        membership: Membership,
        log: GroupLog,
        limits: Limits,
        meter: Meter,
        stream_s: float = STREAM_S,
        packing: Packing | None = None,
    ) -> None:
        """`packing`: shared with whatever else the node sends; one of its own if None."""
        self._membership, self._log, self._limits, self._meter = membership, log, limits, meter
        self._stream_s, self._packing = stream_s, packing or Packing()
        self._streams = Places(MAX_STREAMS, MAX_STREAMS_PER_PEER)

    @property
    def readers(self) -> int:
        """Peers that read our log at the moment."""
        return len(self._streams.peers)

    async def serve(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One stream, from request to end. Whoever called closes it."""
        try:
            async with self._streams.take(peer, self._stream_s + REQUEST_S) as place:
                hold_little(writer)
                with place.waiting():
                    asked = decode_pull(await read_frame(reader, MAX_REQUEST_BYTES, REQUEST_S))
                if complaint := self._membership.complaint(asked.swarm, peer, asked.membership):
                    raise WireError(complaint)
                await self._send(asked, place, reader, writer)
        except (SwarmError, OSError) as error:
            writer.transport.abort()
            logger.debug("%s: stream ended: %s", peer, error)

    async def _send(
        self, asked: Pull, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        log = self._log
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._stream_s
        cursor, backlog = first_cursor(asked, log.epoch, log.head)
        credit, page = _Credit(asked.max_groups), 1
        packer = self._packing.open(asked.deflate)
        listening = asyncio.create_task(_listen(reader, credit))
        try:
            while not listening.done() and (rest := deadline - loop.time()) > 0:
                if not credit.left:
                    with place.waiting():
                        await first_of(credit.above(0), until=listening, timeout=rest)
                    continue
                head = log.head
                cursor = max(cursor, head - backlog)
                entries = await log.read(cursor, min(credit.left, page))
                if not entries:
                    # What lay between has been pruned.
                    cursor = max(cursor, head)
                    await first_of(log.wait(cursor), until=listening, timeout=rest)
                    continue
                cursor = entries[-1].cursor
                messages = [
                    encode_entry(log.epoch, entry)
                    for entry in entries
                    if len(entry.body) <= self._limits.max_group_bytes
                ]
                page = max(page // 2, 1) if sum(map(len, messages)) > PAGE_BYTES else min(2 * page, MAX_PAGE)
                if messages:
                    frames = await packer.frames(messages)
                    await self._meter.take(place.peer, len(frames), sum(map(len, frames)))
                    credit.add(-len(frames))
                    with place.waiting():
                        await write_frames(writer, frames)
        finally:
            await end(listening)
        await write_frame(writer, b"")


def first_cursor(asked: Pull, epoch: bytes, head: int) -> tuple[int, int]:
    """Where a reader starts in a log, and how many groups behind its head it may be at most."""
    cursor = asked.cursor if asked.epoch == epoch else head - FIRST_CONTACT
    return min(max(cursor, 0), head), min(asked.max_backlog or CATCH_UP, CATCH_UP)


async def _listen(reader: asyncio.StreamReader, credit: _Credit) -> None:
    """Ends when the reader hangs up, or says what it may not."""
    while True:
        credit.add(decode_credit(await read_frame(reader, MAX_REQUEST_BYTES, 2 * IDLE_S)))
        if credit.left > MAX_PULL_GROUPS:
            raise LimitError(f"credit for {credit.left} groups: must be at most {MAX_PULL_GROUPS}")
