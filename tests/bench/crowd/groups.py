"""What is shared, how large it is on the wire, and what the receivers make of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from swarm.limits import Limits
from swarm.net.base import LogEntry, Received
from swarm.types import GroupId, PeerId, Reason, SignedGroup
from swarm.verify import CHECKS, Context
from swarm.wire.codec import Pull, encode_announcement, encode_credit, encode_entry, encode_group, encode_pull
from swarm.wire.relay import (
    Offer,
    Relayed,
    RelayPull,
    encode_offers,
    encode_relay_request,
    encode_relayed,
    encode_wants,
)
from tests.builders import MANIFEST, MEMBERSHIP, announcement, cell_value, group, identity, rollout

LIMITS = Limits()
FRAME = 4
ID_BYTES = 38
"""A peer id, and where it sits is not sent."""

#: What of a verdict depends on who asks and when; everything else is the same for everybody.
PERSONAL = frozenset({Reason.WRONG_ORIGIN, Reason.BANNED, Reason.STALE, Reason.FROM_FUTURE})

_AUTHOR = identity()
_CONTENT = group(rollout("7" * 60), rollout("8" * 60))
_OFFER = Offer(
    id=GroupId("ab" * 32),
    origin=_AUTHOR.peer_id,
    hops=1,
    size=1200,
    created_at=_CONTENT.created_at,
    source="reasoning_gym/spell_backward",
)


class Sizes:
    """Bytes of the real messages, made once."""

    pull = FRAME + len(
        encode_pull(Pull(swarm=MANIFEST.id, epoch=bytes(16), cursor=99, max_groups=1, membership=b"", max_backlog=12))
    )
    credit = FRAME + len(encode_credit(1))
    entry = FRAME + len(encode_entry(bytes(16), LogEntry(cursor=99, body=bytes(1200), signature=bytes(64)))) - 1200
    relay_request = FRAME + len(encode_relay_request(RelayPull(swarm=MANIFEST.id)))
    offer = len(encode_offers([_OFFER]))
    want = len(encode_wants([_OFFER.id]))
    relayed = FRAME + len(encode_relayed(Relayed(id=_OFFER.id, body=bytes(1200), signature=bytes(64)))) - 1200
    announcement = len(
        encode_announcement(
            announcement(values=tuple(cell_value("reasoning_gym/spell_backward", 0.5) for _ in range(8))), _AUTHOR
        )
    )
    find = 160
    """Our own id, place and one key."""
    found = 20 * (ID_BYTES + 24)
    """Twenty peers and their places; the records come on top."""
    record = announcement + 60
    """Author, expiry and envelope."""
    store = record + 160


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made(SignedGroup):
    """A group of a simulated node."""

    use: float
    """To whoever has most to learn from it."""
    hostile: bool
    """Who made it."""
    valid: bool = True
    """False for bytes that cannot be decoded."""
    rare: bool = False
    """Wanted by everybody."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Carried(Received):
    """As it came, with the group that the bytes stand for."""

    group: Made


def make(number: int, origin: PeerId, wall: float, body: bytes, use: float, hostile: bool, rare: bool = False) -> Made:
    content = replace(_CONTENT, origin=origin, created_at=wall)
    return Made(
        id=GroupId(f"{number:064x}"), group=content, body=body, signature=b"good", use=use, hostile=hostile, rare=rare
    )


class Verdicts:
    """`swarm.verify.check`, of which what cannot differ between receivers is found once: all groups of a crowd have the
    same content and a good signature."""

    def __init__(self) -> None:
        body = encode_group(_CONTENT)
        signed = SignedGroup(id=GroupId("00" * 32), group=_CONTENT, body=body, signature=_AUTHOR.sign(b"", body))
        context = Context(
            me=identity(2).peer_id,
            manifest=MANIFEST,
            membership=MEMBERSHIP,
            limits=LIMITS,
            now=_CONTENT.created_at,
        )
        for reason, complaint in CHECKS:
            if reason not in PERSONAL | {Reason.BAD_SIGNATURE}:
                assert complaint(signed, context) is None, reason
        self._personal = [
            (reason, complaint) for reason, complaint in CHECKS if reason in PERSONAL - {Reason.WRONG_ORIGIN}
        ]

    def of(self, it: Made, context: Context) -> Reason:
        if not it.valid:
            return Reason.MALFORMED
        if it.group.origin == context.me:  # All origins are keys.
            return Reason.WRONG_ORIGIN
        for reason, complaint in self._personal:
            if complaint(it, context) is not None:
                return reason
        return Reason.ADMITTED
