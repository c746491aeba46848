"""Reading from relays: of what they offer, ask for what we do not know, get from nobody else and have an appetite for.

The other end of `swarm.net.relaying`; `swarm.net.relay.Wishes` decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from swarm.errors import LimitError, NetworkError, WireError
from swarm.limits import Limits
from swarm.membership import Membership
from swarm.net.base import Received
from swarm.net.frames import end, write_frame
from swarm.net.packing import read_message
from swarm.net.rates import Meter, TokenBucket
from swarm.net.relay import MAX_ASKED, Asked, Wishes
from swarm.net.streams import ENVELOPE_BYTES, IDLE_S
from swarm.types import GroupId, PeerId
from swarm.wire.codec import group_id
from swarm.wire.deflate import Inflater
from swarm.wire.relay import Offer, Relayed, RelayPull, decode_relay_response, encode_relay_request, encode_wants

ASK_BATCH = 8
"""Groups that are asked for at once."""
OFFERS_PER_S = 256.0
"""That we listen to, of one relay."""
RECHECK_S = 1.0
"""What another relay was asked for in vain becomes free without a sign."""

Clock = Callable[[], float]


@dataclass(slots=True)
class _Stream:
    """One stream's state: what was asked for on it, when there is something to do, and why it has to end."""

    asked: Asked = field(default_factory=Asked)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    fault: WireError | None = None


class RelayReader:
    """Reads from relays what is worth it. `known`: whether we have a group already; `meter`: our appetite."""

    def __init__(
        self,
        *,
        me: PeerId,
        membership: Membership,
        limits: Limits,
        wishes: Wishes,
        meter: Meter,
        known: Callable[[GroupId], Awaitable[bool]],
        clock: Clock,
        wall: Clock,
        deflate: bool = True,
    ) -> None:
        """`deflate`: let relays pack what they send."""
        self._me, self._membership, self._limits = me, membership, limits
        self._wishes, self._meter, self._known = wishes, meter, known
        self._clock, self._wall, self._deflate = clock, wall, deflate

    async def read(
        self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncGenerator[Received, None]:
        """What the relay `peer` sends of what it was asked for; ends with its empty frame.

        Raises NetworkError when the stream breaks, WireError (LimitError) for what no honest relay does."""
        ours = self._membership
        asked = RelayPull(swarm=ours.swarm, membership=ours.proof(self._me), deflate=self._deflate)
        await write_frame(writer, encode_relay_request(asked))
        stream, inflater = _Stream(), Inflater() if self._deflate else None
        asking = asyncio.create_task(self._ask(peer, writer, stream))
        attention = TokenBucket(OFFERS_PER_S, self._clock())
        try:
            limit = self._limits.max_group_bytes + ENVELOPE_BYTES
            while message := await read_message(reader, inflater, limit, IDLE_S):
                said = decode_relay_response(message)
                if not isinstance(said, Relayed):
                    attention.take(len(said) + 1, self._clock())
                    for offer in said:
                        self._wishes.offered(peer, offer)
                    stream.changed.set()
                    if wait := attention.wait_s(1, self._clock()):
                        await asyncio.sleep(wait)
                    if stream.fault is not None:  # what was offered meanwhile is not listened to
                        raise stream.fault
                elif (offer := self._answer(peer, stream, said)) is not None:
                    yield Received(sender=peer, body=said.body, signature=said.signature, hops=offer.hops)
        except NetworkError:
            if stream.fault is not None:
                raise stream.fault from None
            raise
        finally:
            await end(asking)
            self._wishes.left(peer)

    def pulled(self, peer: PeerId, body: bytes) -> None:
        """A group came from the peer's own log: nobody needs to be asked for it."""
        self._wishes.came(peer, group_id(body), self._clock())

    def refused(self, peer: PeerId) -> None:
        """What the peer handed over was not what it seemed."""
        self._wishes.refused(peer)

    def _answer(self, peer: PeerId, stream: _Stream, said: Relayed) -> Offer | None:
        """The offer of a group that came and is new."""
        stream.changed.set()
        offer = stream.asked.answered(said.id)
        if not said.body:
            self._wishes.missing(peer, said.id)
            return None
        if len(said.body) > self._limits.max_group_bytes:
            raise LimitError(f"a group of {len(said.body)} bytes: must be at most {self._limits.max_group_bytes}")
        if group_id(said.body) != said.id or len(said.body) != offer.size:
            raise WireError(f"{len(said.body)} bytes that are not group {said.id} of {offer.size} bytes")
        stream.asked.came_at = self._clock()
        return offer if self._wishes.came(peer, said.id, stream.asked.came_at) else None

    async def _ask(self, peer: PeerId, writer: asyncio.StreamWriter, stream: _Stream) -> None:
        asked = stream.asked
        try:
            while True:
                stream.changed.clear()
                asked.check(self._clock())
                room = min(MAX_ASKED - len(asked.waiting), ASK_BATCH, self._meter.burst)
                if not (offers := await self._worth_asking(peer, room)):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(RECHECK_S):
                            await stream.changed.wait()
                    continue
                turns = len(offers)
                await self._meter.take(peer, turns, relayed=True)
                # While we waited for our turn they may have come from elsewhere, and newer ones been offered.
                offers = await self._worth_asking(peer, turns)
                now = self._clock()
                for offer in offers:
                    self._wishes.ask(peer, offer.id, now)
                    asked.waiting[offer.id] = (offer, now)
                size = sum(offer.size for offer in offers)
                self._meter.charge(peer, groups=len(offers) - turns, size=size, relayed=True)
                if offers:
                    await write_frame(writer, encode_wants([offer.id for offer in offers]))
        except WireError as error:
            stream.fault = error
            writer.transport.abort()
        except NetworkError:
            writer.transport.abort()

    async def _worth_asking(self, peer: PeerId, limit: int) -> list[Offer]:
        """Offers of the peer that are free to be asked for and not known."""
        while True:
            offers = self._wishes.choose(peer, limit, self._clock(), self._wall(), self._meter.log_waits(peer))
            known = [offer.id for offer in offers if await self._known(offer.id)]
            if not known:
                return offers
            for id in known:
                self._wishes.forget(peer, id)
