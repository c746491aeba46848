"""Serving the relay: a reader is told what is on our shelf (`swarm.net.relay.Shelf`), and gets what it asks for.

On a libp2p stream of protocol RELAY, in frames (`swarm.net.frames`):

    reader  -> RelayRequest, RelayWants, RelayWants, ...
    relay   -> RelayResponse (offers, or one group), ... and an empty frame: "that is all for now, ask again"

Nothing is sent that was not asked for; frames are packed as in `swarm.net.streams`. The other end:
`swarm.net.relay_reader`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from swarm.errors import LimitError, SwarmError, WireError
from swarm.membership import Membership
from swarm.net.base import Received
from swarm.net.frames import end, first_of, hold_little, read_frame, write_frame, write_frames
from swarm.net.packing import Packing
from swarm.net.places import Place, Places
from swarm.net.rates import Meter
from swarm.net.relay import ASK_S, MAX_ASKED, Shelf
from swarm.net.streams import IDLE_S, MAX_STREAMS, MAX_STREAMS_PER_PEER, PAGE_BYTES, REQUEST_S, STREAM_S
from swarm.types import GroupId, PeerId, SignedGroup
from swarm.wire.relay import (
    MAX_OFFERS,
    MAX_WANTS,
    Relayed,
    RelayPull,
    decode_relay_request,
    decode_wants,
    encode_offers,
    encode_relayed,
)

RELAY = "/swarm/1/relay"

WANT_S = ASK_S / 2
"""A reader that has waited so long hears that it will not get it, and asks somebody else."""
MAX_READER_BYTES = 4096
"""Of a frame from a reader."""

Clock = Callable[[], float]
logger = logging.getLogger(__name__)


class Relay:
    """Serves what is on the shelf, within the same limits as our own log."""

    def __init__(
        self,
        membership: Membership,
        shelf: Shelf,
        meter: Meter,
        clock: Clock,
        wall: Clock,
        stream_s: float = STREAM_S,
        packing: Packing | None = None,
    ) -> None:
        """`packing`: shared with whatever else the node sends; one of its own if None."""
        self._membership, self._shelf, self._meter = membership, shelf, meter
        self._clock, self._wall, self._stream_s = clock, wall, stream_s
        self._packing = packing or Packing()
        self._streams = Places(MAX_STREAMS, MAX_STREAMS_PER_PEER)
        self._news = asyncio.Event()

    def add(self, received: Received, signed: SignedGroup, use: float, short: bool = False) -> None:
        """A group that we admitted and kept, as `Exchange.thank`. `short`: as `Shelf.add`."""
        self._shelf.add(received, signed, use, self._clock(), self._wall(), short)
        self._tell()

    def made(self, own: Received, signed: SignedGroup, use: float) -> None:
        """As `Exchange.made`."""
        self._shelf.made(own, signed, use, self._clock(), self._wall())
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def serve(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One stream, from request to end. Whoever called closes it."""
        try:
            async with self._streams.take(peer, self._stream_s + REQUEST_S) as place:
                hold_little(writer)
                with place.waiting():
                    asked = decode_relay_request(await read_frame(reader, MAX_READER_BYTES, REQUEST_S))
                if complaint := self._membership.complaint(asked.swarm, peer, asked.membership):
                    raise WireError(complaint)
                await self._send(asked, place, reader, writer)
        except (SwarmError, OSError) as error:
            writer.transport.abort()
            logger.debug("%s: relay stream ended: %s", peer, error)

    async def _send(
        self, asked: RelayPull, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        deadline = self._clock() + self._stream_s
        number = self._shelf.start(self._clock())
        wanted = _Wanted()
        packer = self._packing.open(asked.deflate)
        listening = asyncio.create_task(_listen(reader, wanted, self._clock))
        try:
            while not listening.done() and (rest := deadline - self._clock()) > 0:
                pause = self._shelf.fill(self._clock(), self._wall())
                messages, groups = [], 0
                if self._shelf.head > number:
                    offers = self._shelf.after(number, place.peer, self._wall())
                    number = self._shelf.head
                    messages = [encode_offers(offers[i : i + MAX_OFFERS]) for i in range(0, len(offers), MAX_OFFERS)]
                elif wanted.ids:
                    messages, groups = self._page(wanted)
                else:
                    timeout = rest if pause is None else min(rest, pause)
                    await first_of(self._news.wait(), wanted.some(), until=listening, timeout=timeout)
                if messages:
                    frames = await packer.frames(messages)
                    await self._meter.take(place.peer, groups, sum(map(len, frames)))
                    with place.waiting():
                        await write_frames(writer, frames)
        finally:
            await end(listening)
        await write_frame(writer, b"")

    def _page(self, wanted: _Wanted) -> tuple[list[bytes], int]:
        """As many of the wanted as go together, and how many of the messages are groups."""
        messages, size, groups = [], 0, 0
        while wanted.ids and size < PAGE_BYTES:
            id, since = wanted.ids.popleft()
            shelved = self._shelf.get(id) if self._clock() - since < WANT_S else None
            body, signature = (shelved.received.body, shelved.received.signature) if shelved else (b"", b"")
            messages.append(encode_relayed(Relayed(id=id, body=body, signature=signature)))
            size += len(body)
            groups += shelved is not None
        return messages, groups


class _Wanted:
    """What a reader asked for, and when."""

    def __init__(self) -> None:
        self.ids: deque[tuple[GroupId, float]] = deque()
        self._come = asyncio.Event()

    def add(self, ids: Sequence[GroupId], now: float) -> None:
        self.ids.extend((id, now) for id in ids)
        self._come.set()

    async def some(self) -> None:
        self._come.clear()
        await self._come.wait()


async def _listen(reader: asyncio.StreamReader, wanted: _Wanted, clock: Clock) -> None:
    """Ends when the reader hangs up, or says what it may not."""
    while True:
        wanted.add(decode_wants(await read_frame(reader, MAX_READER_BYTES, 2 * IDLE_S)), clock())
        if len(wanted.ids) > MAX_ASKED + MAX_WANTS:
            raise LimitError(f"{len(wanted.ids)} groups wanted: must be at most {MAX_ASKED} at a time")
