"""A relay that lies: about what it has, how far it came, what it is; that offers without end, and sends nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from swarm.errors import NetworkError
from swarm.net.frames import read_frame, write_frame
from swarm.net.stack import StreamHandler
from swarm.types import GroupId, PeerId, SignedGroup
from swarm.wire.codec import group_id
from swarm.wire.identity import Identity
from swarm.wire.relay import MAX_OFFERS, Offer, Relayed, decode_wants, encode_offers, encode_relayed
from tests.adversaries.made import made


def offer_of(group: SignedGroup, hops: int = 1) -> Offer:
    return Offer(
        id=group.id,
        origin=group.group.origin,
        hops=hops,
        size=len(group.body),
        created_at=group.group.created_at,
        source=group.group.task.source,
    )


def relay(offers: Sequence[Offer], answer: Callable[[GroupId], bytes | None]) -> StreamHandler:
    """Makes these offers, and answers each wish with a frame, or not at all."""

    async def serve(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await read_frame(reader, 4096, 10)
            await write_frame(writer, encode_offers(offers))
            while True:
                for wanted in decode_wants(await read_frame(reader, 4096, 60)):
                    if (frame := answer(wanted)) is not None:
                        await write_frame(writer, frame)
        except NetworkError:
            return

    return serve


def of_many_hops(far: Sequence[SignedGroup], near: SignedGroup) -> StreamHandler:
    """Real groups, said to have come further than anything does, and one that has not."""
    bodies = {group.id: group for group in (*far, near)}

    def answer(wanted: GroupId) -> bytes:
        group = bodies[wanted]
        return encode_relayed(Relayed(id=wanted, body=group.body, signature=group.signature))

    return relay([*(offer_of(group, hops=200) for group in far), offer_of(near)], answer)


def of_other_bodies(groups: Sequence[SignedGroup]) -> StreamHandler:
    """Offers one group and sends another under its id."""

    def answer(wanted: GroupId) -> bytes:
        other = groups[-1]
        return encode_relayed(Relayed(id=wanted, body=other.body, signature=other.signature))

    return relay([offer_of(group) for group in groups[:-1]], answer)


def of_forgeries(groups: Sequence[SignedGroup]) -> StreamHandler:
    """The bodies are the real ones, and the signatures are not: so that the real ones are not asked for any more."""
    bodies = {group.id: group.body for group in groups}
    return relay(
        [offer_of(group) for group in groups],
        lambda wanted: encode_relayed(Relayed(id=wanted, body=bodies[wanted], signature=bytes(64))),
    )


def of_nothing(groups: Sequence[SignedGroup]) -> StreamHandler:
    """Offers what it has, and keeps it."""
    return relay([offer_of(group) for group in groups], lambda wanted: None)


def flood(author: Identity) -> StreamHandler:
    """Offers without end, as fast as they are taken, of groups that are nowhere."""
    template = offer_of(made(author))

    async def serve(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        try:
            while True:
                ids = [group_id(str(number + i).encode()) for i in range(MAX_OFFERS)]
                number += MAX_OFFERS
                await write_frame(
                    writer, encode_offers([replace(template, id=id, created_at=time.time()) for id in ids])
                )
                await asyncio.sleep(0)
        except NetworkError:
            return

    return serve
