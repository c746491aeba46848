"""What a relay and its reader say to each other, between the vocabulary and bytes. Bounded as in `swarm.wire.codec`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.errors import WireError
from swarm.types import GroupId, PeerId
from swarm.wire import bounds
from swarm.wire.parsing import encoding, parse
from swarm.wire.v1 import exchange_pb2 as pb

MAX_OFFERS = 64
"""In a message."""
MAX_WANTS = 64
MAX_HOPS = 255
ID_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPull:
    """ "Tell me what you could pass on, and let me choose." """

    swarm: str
    membership: bytes = b""
    """The reader's."""
    deflate: bool = False
    """The reader can unpack frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A group that a relay could pass on. All but the id is the relay's word."""

    id: GroupId
    origin: PeerId
    hops: int
    """How many will have passed it on, the relay included; at least 1."""
    size: int
    """Bytes of the body."""
    created_at: float
    """Unix seconds by the origin's clock."""
    source: str
    """Of its task."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relayed:
    """A group that was wanted."""

    id: GroupId
    body: bytes
    """Empty where the relay has it no more. Whether it is what was wanted, and not too large, is for the reader."""
    signature: bytes


def encode_relay_request(asked: RelayPull) -> bytes:
    with encoding():
        request = pb.RelayRequest(swarm=asked.swarm, membership=asked.membership, deflate=asked.deflate)
        return request.SerializeToString()


def decode_relay_request(data: bytes) -> RelayPull:
    """Raises WireError unless everything is within bounds."""
    request = parse(pb.RelayRequest(), data)
    return RelayPull(
        swarm=bounds.label("swarm", request.swarm),
        membership=bounds.proof(request.membership),
        deflate=request.deflate,
    )


def encode_offers(offers: Sequence[Offer]) -> bytes:
    """Raises WireError for what the other side would refuse."""
    with encoding():
        messages = [
            pb.Offer(
                id=bytes.fromhex(offer.id),
                origin=offer.origin,
                hops=offer.hops,
                bytes=offer.size,
                created_at=offer.created_at,
                source=offer.source,
            )
            for offer in offers
        ]
        response = pb.RelayResponse(offers=messages)
    _read_offers(response)
    return response.SerializeToString()


def encode_relayed(relayed: Relayed) -> bytes:
    with encoding():
        group = pb.SignedGroup(body=relayed.body, signature=relayed.signature) if relayed.body else None
        message = pb.RelayedGroup(id=bytes.fromhex(relayed.id), group=group)
        return pb.RelayResponse(relayed=message).SerializeToString()


def decode_relay_response(data: bytes) -> tuple[Offer, ...] | Relayed:
    """Offers, or a group. Raises WireError (LimitError) unless everything but the body is within bounds."""
    response = parse(pb.RelayResponse(), data)
    if not response.HasField("relayed"):
        return _read_offers(response)
    if response.offers:
        raise WireError("offers and a group: must be one of them")
    relayed = response.relayed
    bounds.limit("signature bytes", len(relayed.group.signature), bounds.SIGNATURE_BYTES)
    return Relayed(id=_id(relayed.id), body=relayed.group.body, signature=relayed.group.signature)


def encode_wants(ids: Sequence[GroupId]) -> bytes:
    """Raises WireError for what the other side would refuse."""
    with encoding():
        wants = pb.RelayWants(ids=map(bytes.fromhex, ids))
    _read_wants(wants)
    return wants.SerializeToString()


def decode_wants(data: bytes) -> tuple[GroupId, ...]:
    """Raises WireError (LimitError)."""
    return _read_wants(parse(pb.RelayWants(), data))


def _read_offers(response: pb.RelayResponse) -> tuple[Offer, ...]:
    bounds.limit("offers", len(response.offers), MAX_OFFERS)
    return tuple(map(_read_offer, response.offers))


def _read_offer(message: pb.Offer) -> Offer:
    return Offer(
        id=_id(message.id),
        origin=PeerId(bounds.label("origin", message.origin)),
        hops=int(bounds.between("hops", message.hops, 1, MAX_HOPS)),
        size=int(bounds.between("bytes", message.bytes, 1, 2**32 - 1)),
        created_at=bounds.instant("created_at", message.created_at),
        source=bounds.label("source", message.source),
    )


def _read_wants(message: pb.RelayWants) -> tuple[GroupId, ...]:
    bounds.between("wants", len(message.ids), 1, MAX_WANTS)
    return tuple(map(_id, message.ids))


def _id(value: bytes) -> GroupId:
    if len(value) != ID_BYTES:
        raise WireError(f"id of {len(value)} bytes: must be {ID_BYTES}")
    return GroupId(value.hex())
