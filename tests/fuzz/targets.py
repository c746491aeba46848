"""What is fed with hostile bytes. To add one: a function, a line in TARGETS.

A target takes any bytes and returns in a word what became of them. What the code under test may raise by its contract
is such a word too; everything else that is raised is a defect.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
from hivemind.dht.validation import DHTRecord
from hivemind.utils import MSGPackSerializer

from swarm.errors import LimitError, NetworkError, SignatureMismatch, WireError
from swarm.limits import Limits
from swarm.net.base import Received
from swarm.net.frames import read_frame
from swarm.net.packing import OFF_LOOP_BYTES
from swarm.net.records import RecordRules
from swarm.net.shards import shard_of
from swarm.net.streams import ENVELOPE_BYTES
from swarm.types import GroupId, Reason
from swarm.verify import UNSIGNED, Context, Findings, check, verify
from swarm.wire.codec import (
    MAX_ANNOUNCEMENT_BYTES,
    Pull,
    decode_announcement,
    decode_credit,
    decode_entry,
    decode_group,
    decode_pull,
    encode_announcement,
    encode_entry,
    encode_group,
    encode_pull,
)
from swarm.wire.deflate import MARK, Deflater, Inflater
from swarm.wire.identity import ANNOUNCEMENT_DOMAIN, GROUP_DOMAIN
from swarm.wire.relay import decode_relay_request, decode_relay_response, decode_wants
from tests.builders import MANIFEST, NOW, EchoJudge, identity
from tests.fuzz import seeds
from tests.fuzz.mutation import BYTES, Field, encode
from tests.fuzz.seeds import AUTHOR, FRAME_BYTES, MEMBERSHIP

T = TypeVar("T")

LIMITS = Limits()
ME = identity(2).peer_id
PACKED_BYTES = LIMITS.max_group_bytes + ENVELOPE_BYTES
SENDER = identity(3).peer_id


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    run: Callable[[bytes], str]
    """Raises for a defect only."""
    seeds: Callable[[], Sequence[bytes]]
    max_bytes: int
    """What it is fed with. The code under test may refuse less."""


# Groups ---------------------------------------------------------------------------------------------------------------


def group(data: bytes) -> str:
    try:
        decode_group(data, bytes(64), LIMITS)
    except WireError as error:
        return type(error).__name__
    return "decoded"


def group_again(data: bytes) -> str:
    """What was decoded can be encoded, and is then the same."""
    try:
        first = decode_group(data, bytes(64), LIMITS).group
    except WireError as error:
        return type(error).__name__
    body = encode_group(first)
    assert plain(decode_group(body, bytes(64), LIMITS).group) == plain(first)
    assert encode_group(decode_group(body, bytes(64), LIMITS).group) == body
    return "same"


def checked(data: bytes) -> str:
    """Nothing that can be decoded stops the checks, signed by its origin or not."""
    context = Context(me=ME, manifest=MANIFEST, membership=MEMBERSHIP, limits=LIMITS, now=NOW)
    try:
        check(decode_group(data, bytes(64), LIMITS), context)
        body = ours(data)
        return check(decode_group(body, AUTHOR.sign(GROUP_DOMAIN, body), LIMITS), context).reason
    except WireError as error:
        return type(error).__name__


def entry(data: bytes) -> str:
    try:
        epoch, decoded = decode_entry(data)
    except WireError as error:
        return type(error).__name__
    again, same = decode_entry(encode_entry(epoch, decoded))
    assert (again, plain(same)) == (epoch, plain(decoded))
    return "same"


def packed_frame(data: bytes) -> str:
    """A frame behind another one: nothing larger than what it may be comes out, and what comes out can be packed."""
    inflater, first = Inflater(), seeds.entries()[0]
    assert inflater.unpack(Deflater().pack(first), PACKED_BYTES) == first
    try:
        message = inflater.unpack(data, PACKED_BYTES)
    except WireError as error:
        return type(error).__name__
    if not data.startswith(MARK):
        assert message == data
        return "plain"
    assert 0 < len(message) <= PACKED_BYTES
    assert Inflater().unpack(Deflater().pack(message), len(message)) == message
    return "unpacked"


def entry_verdict(data: bytes) -> str:
    """From a publisher's frame to the verdict; nearly nothing damaged has a good signature."""
    try:
        _, decoded = decode_entry(data)
    except WireError as error:
        return type(error).__name__
    return verdict(decoded.body, decoded.signature)


def signed_verdict(data: bytes) -> str:
    """A damaged group that its origin signed all the same: all checks and the judge."""
    body = ours(data)
    return verdict(body, AUTHOR.sign(GROUP_DOMAIN, body))


def verdict(body: bytes, signature: bytes) -> str:
    findings = done(
        verify(
            Received(sender=SENDER, body=body, signature=signature),
            me=ME,
            judge=EchoJudge(),
            manifest=MANIFEST,
            membership=MEMBERSHIP,
            limits=LIMITS,
            known=_unknown,
            now=NOW,
        )
    )
    _check_findings(findings)
    return findings.verdict.reason


def _check_findings(findings: Findings) -> None:
    """Whom it is held against, and that what was admitted is complete."""
    reason, signed = findings.verdict.reason, findings.signed
    if signed is None or reason in UNSIGNED:
        assert findings.origin == SENDER
    else:
        assert findings.origin == signed.group.origin == AUTHOR.peer_id
    if reason is Reason.ADMITTED:
        assert signed is not None
        assert findings.task is not None
        assert len(findings.scores) == len(signed.group.rollouts) > 0


def ours(body: bytes) -> bytes:
    """Three bodies in four with what sends a group away before anybody looks into it made good."""
    return body + _group_repair() if zlib.crc32(body) % 4 else body


_group_repair = cache(seeds.group_repair)
_announcement_repair = cache(seeds.announcement_repair)


async def _unknown(group: GroupId) -> bool:
    return False


# The others -----------------------------------------------------------------------------------------------------------


def announcement(data: bytes) -> str:
    try:
        decode_announcement(data)
    except (WireError, SignatureMismatch) as error:
        return type(error).__name__
    return "decoded"


def signed_announcement(data: bytes) -> str:
    """A damaged announcement that its author signed all the same: again the same, and believed if it may be."""
    body = data + _announcement_repair() if zlib.crc32(data) % 4 else data
    signed = encode([Field(1, BYTES, body), Field(2, BYTES, AUTHOR.sign(ANNOUNCEMENT_DOMAIN, body))])
    value = seeds.packed(signed) if len(signed) < 2**16 else signed
    believed = record(seeds.expiring(NOW + 60, value)) == "believed"
    try:
        first = decode_announcement(signed)
    except (WireError, SignatureMismatch) as error:
        assert not believed
        return type(error).__name__
    assert first.peer == AUTHOR.peer_id
    assert plain(decode_announcement(encode_announcement(first, AUTHOR))) == plain(first)
    return "believed" if believed else "same"


def record(data: bytes) -> str:
    """A value in the directory's shard of AUTHOR, and when it says that it expires."""
    rules = RecordRules(MEMBERSHIP, clock=lambda: NOW)
    key = rules.key(0, shard_of(AUTHOR.peer_id, 0)).to_bytes()
    (expires_at,) = struct.unpack("<d", data[:8].ljust(8, b"\0"))
    found = rules.read(DHTRecord(key, MSGPackSerializer.dumps(AUTHOR.peer_id), data[8:], expires_at))
    if found is None:
        return "refused"
    assert (found.peer, found.swarm) == (AUTHOR.peer_id, MANIFEST.id)
    return "believed"


def decoding(decode: Callable[[bytes], object]) -> Callable[[bytes], str]:
    """For messages that need no more than that."""

    def run(data: bytes) -> str:
        try:
            decode(data)
        except WireError as error:
            return type(error).__name__
        return "decoded"

    return run


def pull(data: bytes) -> str:
    try:
        asked: Pull = decode_pull(data)
    except WireError as error:
        return type(error).__name__
    assert decode_pull(encode_pull(asked)) == asked
    return "same"


def frame(data: bytes) -> str:
    """A stream of frames that comes in two pieces and ends: all whole frames, and the error that the rest deserves."""
    return asyncio.run(_frames(data))


async def _frames(data: bytes) -> str:
    reader = asyncio.StreamReader()
    half = len(data) // 2
    reader.feed_data(data[:half])

    def rest() -> None:
        reader.feed_data(data[half:])
        reader.feed_eof()

    asyncio.get_running_loop().call_soon(rest)
    at = 0
    while True:
        length = int.from_bytes(data[at : at + 4], "big")
        try:
            read = await read_frame(reader, FRAME_BYTES, idle_s=60)
        except LimitError:
            assert length > FRAME_BYTES
            assert await reader.read() == data[at + 4 :]
            return "LimitError"
        except NetworkError:
            assert len(data) < at + 4 + length or len(data) < at + 4
            return "NetworkError"
        assert read == data[at + 4 : at + 4 + length]
        assert len(read) == length
        at += 4 + length


# What is common -------------------------------------------------------------------------------------------------------


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def plain(value: Any) -> Any:
    """Something that `==` compares: dataclasses by field, arrays by type and bytes, numbers by how they are written:
    NaN equals NaN."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if is_dataclass(value):
        return tuple(plain(getattr(value, each.name)) for each in fields(value))
    return repr(value) if isinstance(value, float) else value


_MORE = 4096
"""What is fed beyond a limit, so that the limit is met."""
_SMALL = 65_536
"""Of what does its work several times over."""

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("group", group, seeds.group_bodies, LIMITS.max_group_bytes + _MORE),
        Target("group-again", group_again, seeds.group_bodies, _SMALL),
        Target("check", checked, seeds.group_bodies, _SMALL),
        Target("entry", entry, seeds.entries, LIMITS.max_group_bytes + ENVELOPE_BYTES),
        Target("packed", packed_frame, seeds.packed_frames, OFF_LOOP_BYTES),
        Target("entry-verdict", entry_verdict, seeds.entries, LIMITS.max_group_bytes + ENVELOPE_BYTES),
        Target("signed-verdict", signed_verdict, seeds.group_bodies, LIMITS.max_group_bytes),
        Target("announcement", announcement, seeds.signed_announcements, MAX_ANNOUNCEMENT_BYTES + _MORE),
        Target("signed-announcement", signed_announcement, seeds.announcement_bodies, MAX_ANNOUNCEMENT_BYTES + _MORE),
        Target("record", record, seeds.records, MAX_ANNOUNCEMENT_BYTES + _MORE),
        Target("pull", pull, seeds.pulls, _MORE),
        Target("credit", decoding(decode_credit), seeds.credits, _MORE),
        Target("relay-request", decoding(decode_relay_request), seeds.relay_requests, _MORE),
        Target("relay-response", decoding(decode_relay_response), seeds.relay_responses, _SMALL),
        Target("wants", decoding(decode_wants), seeds.wants, _SMALL),
        Target("frame", frame, seeds.frames, _MORE),
    )
}
