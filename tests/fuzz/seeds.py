"""Where mutations begin: valid messages with every feature of the format, made by code, and those that cost most."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from swarm.membership import Membership
from swarm.net.base import LogEntry
from swarm.types import (
    Announcement,
    FinishReason,
    PolicyVersion,
    Role,
    Rollout,
    RolloutGroup,
    SampledTokens,
    SamplingParams,
    Turn,
    VersionSpan,
)
from swarm.wire.codec import (
    Pull,
    encode_announcement,
    encode_credit,
    encode_entry,
    encode_group,
    encode_pull,
    seal,
)
from swarm.wire.deflate import MARK, Deflater
from swarm.wire.relay import (
    Offer,
    Relayed,
    RelayPull,
    encode_offers,
    encode_relay_request,
    encode_relayed,
    encode_wants,
)
from tests.builders import MANIFEST, NOW, announcement, cell_value, group, identity, rollout, task_ref, tokens, turn
from tests.fuzz.mutation import BYTES, VARINT, Field, encode, parse

AUTHOR = identity()
EPOCH = bytes(range(16))
MEMBERSHIP = Membership(swarm=MANIFEST.id, key=bytes(range(32)))
PROOF = MEMBERSHIP.proof(AUTHOR.peer_id)
FRAME_BYTES = 512
"""Largest frame that is taken in tests: small, so that there are larger ones."""

# Groups ---------------------------------------------------------------------------------------------------------------


def _mixed(text: str) -> SampledTokens:
    """Two policy versions, tokens of no byte and of several, the least and the greatest log-probability, no ids."""
    total = len(text.encode())
    return SampledTokens(
        logprobs=np.array([0.0, -0.7, -31.9], np.float32),
        byte_lengths=np.array([0, total - 1, 1], np.int32),
        versions=(
            VersionSpan(version=PolicyVersion(7), length=1),
            VersionSpan(version=PolicyVersion(2**63 - 1), length=2),
        ),
    )


def groups() -> Iterator[RolloutGroup]:
    """All of them are admitted, but the one with no rollouts."""
    base = replace(group(), membership=PROOF)
    yield base
    yield replace(
        base, task=task_ref(1), rollouts=(rollout("1"), rollout("?"), rollout("0")), sampling=SamplingParams()
    )
    talk = Rollout(
        turns=(
            turn("<call>7</call>", FinishReason.STOP_STRING, _mixed("<call>7</call>")),
            Turn(role=Role.TOOL, text="7\n" * 20),
            Turn(role=Role.USER, text="żółw 🐢"),
            turn("0", FinishReason.LENGTH),
            Turn(role=Role.USER, text=""),
            turn("ende", FinishReason.ERROR, tokens("ende", FinishReason.ERROR, logprob=-32.0, version=0)),
        )
    )
    stopping = SamplingParams(temperature=0.7, top_p=0.95, max_new_tokens=100, stop=("</call>", "é", "\n\n"))
    yield replace(base, rollouts=(talk, rollout("0")), sampling=stopping)
    yield replace(base, rollouts=tuple(rollout(str(i)) for i in range(12)))
    yield replace(base, rollouts=())


def group_bodies() -> list[bytes]:
    return [encode_group(each) for each in groups()]


def entries() -> list[bytes]:
    """As a publisher sends them: signed, and one whose signature is another's."""
    sealed = [seal(each, AUTHOR) for each in groups()]
    entries = [LogEntry(cursor=i + 1, body=each.body, signature=each.signature) for i, each in enumerate(sealed)]
    entries.append(replace(entries[0], cursor=2**63 - 1, signature=sealed[1].signature))
    return [encode_entry(EPOCH, entry) for entry in entries]


def packed_frames() -> list[bytes]:
    """The messages of a stream, each as its first and as its next frame; a plain one; bombs that say what they are, and
    that do not; one that takes long to read for what there is in it."""
    first = [Deflater().pack(message) for message in entries()]
    stream = Deflater()
    later = [stream.pack(message) for message in entries()]
    bomb = Deflater().pack(bytes(1 << 20))
    return [*first, *later, entries()[0], bomb, bomb[:1] + (100).to_bytes(4, "big") + bomb[5:], tables(60_000)]


_EMPTY_BLOCK: tuple[tuple[int, int], ...] = (
    *((0b100, 3), (0, 5), (0, 5), (14, 4)),  # not the last block, with codes of its own: 257 literals, 1 distance
    *((1 if symbol in (2, 17) else 0, 3) for symbol in range(18)),  # lengths are written as "18" and "1", a bit each
    *((0b1, 1), (127, 7), (0b1, 1), (107, 7)),  # 138 and 118 literals that there are not
    *((0b0, 1), (0b0, 1), (0b0, 1)),  # the end of the block has a code, the distance has one; the end of the block
)
"""(value, bits) of a DEFLATE block in which there is nothing but its Huffman codes (RFC 1951, 3.2.7): 11 bytes."""


def tables(size: int) -> bytes:
    """A frame of so many bytes that makes its reader build Huffman tables all the time, and says nothing in them."""
    block = bits = 0
    for value, width in _EMPTY_BLOCK * 8:
        block |= value << bits
        bits += width
    blocks = block.to_bytes(bits // 8, "little")
    return MARK + (1000).to_bytes(4, "big") + blocks * (size // len(blocks))


# The others -----------------------------------------------------------------------------------------------------------


def announcements() -> Iterator[Announcement]:
    base = replace(announcement(), membership=PROOF)
    yield base
    values = tuple(cell_value(f"test/{i}", i / 20, mass=10.0**i, difficulty=f'{{"n":{i}}}') for i in range(12))
    yield replace(base, name="", addresses=(), head=2**63 - 1, values=values)
    yield replace(base, addresses=tuple(f"/ip6/::1/udp/{port}/quic-v1" for port in range(8)), epoch=EPOCH)


def signed_announcements() -> list[bytes]:
    return [encode_announcement(each, AUTHOR) for each in announcements()]


def announcement_bodies() -> list[bytes]:
    return [fields[0].payload for each in signed_announcements() if (fields := parse(each))]


def records() -> list[bytes]:
    """8 bytes of expiration time, and a value as hivemind stores it."""
    return [expiring(NOW + 60, packed(data)) for data in signed_announcements()] + [
        expiring(float("nan"), packed(b"")),
        expiring(NOW - 1, b"\xc4\x02{}"),
    ]


def expiring(at: float, value: bytes) -> bytes:
    return struct.pack("<d", at) + value


def packed(data: bytes) -> bytes:
    """In MessagePack, as the longer kind of byte string."""
    return b"\xc5" + len(data).to_bytes(2, "big") + data


def pulls() -> list[bytes]:
    first = Pull(swarm=MANIFEST.id, epoch=b"", cursor=0, max_groups=1024, membership=PROOF)
    return [
        encode_pull(first),
        encode_pull(replace(first, epoch=EPOCH, cursor=2**63 - 1, max_groups=1, membership=b"")),
    ]


def credits() -> list[bytes]:
    return [encode_credit(1), encode_credit(1024)]


def relay_requests() -> list[bytes]:
    asked = RelayPull(swarm=MANIFEST.id, membership=PROOF)
    return [encode_relay_request(each) for each in (asked, replace(asked, membership=b"", deflate=True))]


def relay_responses() -> list[bytes]:
    sealed = seal(next(groups()), AUTHOR)
    offers = [
        Offer(id=sealed.id, origin=AUTHOR.peer_id, hops=hops, size=1000, created_at=NOW, source="test/echo")
        for hops in (1, 2, 3)
    ]
    gone = Relayed(id=sealed.id, body=b"", signature=b"")
    there = replace(gone, body=sealed.body, signature=sealed.signature)
    return [encode_offers(()), encode_offers(offers), encode_relayed(there), encode_relayed(gone)]


def wants() -> list[bytes]:
    return [encode_wants([seal(each, AUTHOR).id for each in groups()])]


def frames() -> list[bytes]:
    def framed(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    return [
        b"".join(map(framed, pulls())) + framed(b""),
        framed(bytes(300)) + framed(b"12345")[:-1],
        framed(bytes(FRAME_BYTES)) + framed(bytes(FRAME_BYTES + 1)),
        b"\0\0\0\1a" + b"\xff" * 8,
        b"\0\0",
    ]


# Costly ones ----------------------------------------------------------------------------------------------------------


def bombs(size: int) -> dict[str, bytes]:
    """Bodies of groups of about `size` bytes in which one thing is there as often as possible, by what that is."""
    body = encode_group(replace(group(), membership=PROOF))

    def holding(path: Sequence[int], unit: bytes) -> bytes:
        """`unit` again and again, in a field in a field ... by the numbers of `path`."""
        data = unit * ((size - len(body) - 8 * len(path)) // len(unit))
        for number in reversed(path):
            data = Field(number, BYTES, data).encoded()
        return body + data

    def empty(number: int) -> bytes:
        return Field(number, BYTES, b"").encoded()

    return {
        "rollouts": holding((), empty(5)),
        "turns": holding((5,), empty(1)),
        "version spans": holding((5, 1, 4), empty(3)),
        "byte lengths, packed": holding((5, 1, 4, 2), b"\1"),
        "byte lengths, one by one": holding((5, 1, 4), Field(2, VARINT, b"\1").encoded()),
        "stop strings": holding((8,), empty(4)),
        "tasks to merge": holding((), empty(4)),
        "unknown fields": holding((), Field(99, VARINT, b"\1").encoded()),
        "groups in groups": body + b"\x9b\x06" * ((size - len(body)) // 2),
        "text": holding((5, 1, 2), "é".encode()),
        "stop strings to look for": encode_group(stop_strings_to_look_for(size)),
        "many turns": encode_group(many_turns(size)),
        "many tokens": encode_group(many_tokens(size)),
    }


def many_turns(size: int) -> RolloutGroup:
    """As many turns as there may be, a few versions in each."""
    text = "a" * 120
    spans = [VersionSpan(version=PolicyVersion(i), length=1) for i in range(3)]
    rest = VersionSpan(version=PolicyVersion(3), length=len(text) + 1 - len(spans))
    sampled = replace(tokens(text), versions=(*spans, rest))
    return _enough(Rollout(turns=(turn(text, sampled=sampled),) * 16), 64 * size // 1_000_000)


def many_tokens(size: int) -> RolloutGroup:
    """With ids, in 64 rollouts."""
    return _enough(rollout("a" * max(8, size // (64 * 6))), 64)


def stop_strings_to_look_for(size: int) -> RolloutGroup:
    """Seven that nearly occur at every byte of every turn, and one that ends it."""
    text = "a" * 2400 + "z"
    one_token = SampledTokens(
        logprobs=np.array([-0.5], np.float32),
        byte_lengths=np.array([len(text)], np.int32),
        versions=(VersionSpan(version=PolicyVersion(1), length=1),),
    )
    stop = ("z", *("a" * 48 + odd + "a" * 15 for odd in "bcdefgh"))
    each = Rollout(turns=(turn(text, FinishReason.STOP_STRING, one_token),) * 16)
    rollouts = (each,) * max(1, size // (16 * (len(text) + 32)))
    return replace(group(*rollouts, sampling=SamplingParams(stop=stop)), membership=PROOF)


def _enough(each: Rollout, times: int) -> RolloutGroup:
    sampling = SamplingParams(max_new_tokens=65_536)
    return replace(group(*[each] * times, sampling=sampling), membership=PROOF)


# What makes damaged messages pass the first checks --------------------------------------------------------------------


def group_repair() -> bytes:
    """What, put behind a group's body, makes it one of ours: the last of a field counts (swarm, origin, task, time and
    membership)."""
    return _fields_of(group_bodies()[0], (2, 3, 4, 9, 10))


def announcement_repair() -> bytes:
    """The same for an announcement's body (swarm, peer, time and membership)."""
    return _fields_of(announcement_bodies()[0], (2, 3, 10, 12))


def _fields_of(data: bytes, numbers: Sequence[int]) -> bytes:
    return encode([field for field in parse(data) or () if field.number in numbers])
