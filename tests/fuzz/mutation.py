"""Damages bytes: as the protobuf message that they are, without knowing its schema, or as mere bytes.

Pure: the same generator state makes the same damage. A message is a list of fields; a field's payload may be a message
again, and where one is chosen to be changed, everything around it keeps its right length, so that the damage is met by
the code that reads values and not by the parser.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)

INTEGERS = (0, 1, 2, 64, 65, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
DOUBLES = (*FLOATS, 5e-324, 1e308, 1.7e9)
STRINGS = (
    b"",
    b"\0",
    b"\xff",
    b"\xc0\x80",  # NUL, too long for UTF-8
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xf4\x90\x80\x80",  # beyond the last code point
    b"\xe2\x80\xae",  # right-to-left override
    b"\x1b[2J",
    "\U0010ffff".encode(),
    "é".encode() * 64,
    b"12D3KooW" + b"1" * 44,
    b"{}",
    b"../../etc/passwd",
)
MAX_DEPTH = 120
"""Of a message in a message; protobuf's own limit is 100."""
MAX_PARSED = 4096
"""Fields of one message that are told apart. What has more is bytes."""


def varint(value: int, padding: int = 0) -> bytes:
    """`padding`: so many bytes more than needed."""
    if value < 128 and not padding:
        return bytes((value,))
    groups = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)] + [0] * padding
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


class Field(NamedTuple):
    number: int
    wire: int
    payload: bytes
    """Without its length."""
    lie: int = 0
    """How much more than the payload has its length says."""

    def encoded(self) -> bytes:
        tag = varint(self.number << 3 | self.wire)
        length = varint(max(0, len(self.payload) + self.lie)) if self.wire == BYTES else b""
        return tag + length + self.payload


def encode(fields: Sequence[Field]) -> bytes:
    return b"".join([field.encoded() for field in fields])


def parse(data: bytes) -> list[Field] | None:
    """None for what is no message, or has groups, or too many fields."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _varint_at(data, at)
        number, wire = tag >> 3, tag & 7
        start, end = at, _end(data, at, wire)
        if wire == BYTES and end is not None:
            start, end = end, end + _varint_at(data, at)[0]
        if number == 0 or end is None or end > len(data) or len(fields) == MAX_PARSED:
            return None
        fields.append(Field(number, wire, data[start:end]))
        at = end
    return fields


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends; past the data's end if it does not."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    return 0, len(data) + 1


def _end(data: bytes, at: int, wire: int) -> int | None:
    """Of a number, or of a length."""
    if wire in (VARINT, BYTES):
        return _varint_at(data, at)[1]
    return {FIXED64: at + 8, FIXED32: at + 4}.get(wire)


# Fields: what is written in place of one ------------------------------------------------------------------------------


def _deleted(field: Field, rng: random.Random, room: int) -> bytes:
    return b""


def _repeated(field: Field, rng: random.Random, room: int) -> bytes:
    return _many(field, rng, room) + field.encoded()


def _emptied(field: Field, rng: random.Random, room: int) -> bytes:
    """Nothing, many times: the most objects per byte."""
    return _many(Field(field.number, BYTES, b""), rng, room) + field.encoded()


def _many(field: Field, rng: random.Random, room: int) -> bytes:
    """Rarely as many as there is room for, which is slow."""
    once = field.encoded()
    return once * (min(2 ** rng.randrange(20), room // len(once)) if rng.random() < 0.05 else 1)


def _renumbered(field: Field, rng: random.Random, room: int) -> bytes:
    return field._replace(number=rng.choice((rng.randrange(1, 20), 0, 19_000, 2**29 - 1))).encoded()


def _retyped(field: Field, rng: random.Random, room: int) -> bytes:
    """Another wire type, groups and those that do not exist among them, over the same payload."""
    return field._replace(wire=rng.randrange(8)).encoded()


def _lying(field: Field, rng: random.Random, room: int) -> bytes:
    return field._replace(wire=BYTES, lie=rng.choice((-1, 1, 127, 2**31, 2**32, 2**63))).encoded()


def _nested(field: Field, rng: random.Random, room: int) -> bytes:
    """In itself, a few times or deeper than any parser follows."""
    for _ in range(rng.choice((1, 2, MAX_DEPTH))):
        field = Field(field.number, BYTES, field.encoded())
    return field.encoded()


def _revalued(field: Field, rng: random.Random, room: int) -> bytes:
    if field.wire == VARINT:
        number = rng.choice((*INTEGERS, rng.randrange(256)))
        payload = varint(number, padding=rng.choice((0, 0, 0, 1, 9)))
    elif field.wire == FIXED64:
        payload = struct.pack("<d", rng.choice(DOUBLES))
    elif field.wire == FIXED32:
        payload = struct.pack("<f", rng.choice(FLOATS))
    else:
        payload = rng.choice((*STRINGS, field.payload * 2, field.payload[: len(field.payload) // 2]))
    return field._replace(payload=payload).encoded()


def _damaged(field: Field, rng: random.Random, room: int) -> bytes:
    return field._replace(payload=mutate_bytes(field.payload, rng, room)).encoded()


_CHANGES: tuple[Callable[[Field, random.Random, int], bytes], ...] = (
    _deleted,
    _repeated,
    _emptied,
    _renumbered,
    _retyped,
    _lying,
    _nested,
    _revalued,
    _revalued,
    _damaged,
    _damaged,
)


def mutate_fields(data: bytes, rng: random.Random, donor: bytes, room: int) -> bytes:
    """One change somewhere in the message `data`, at most about `room` bytes added; bytes that are no message change as
    such. Sometimes a field comes from `donor`, or another place."""
    fields = parse(data)
    if not fields:
        return mutate_bytes(data, rng, room)
    field = fields.pop(at := rng.randrange(len(fields)))
    if field.wire == BYTES and rng.random() < 0.7 and parse(field.payload):
        inner = mutate_fields(field.payload, rng, _payload_of(donor, field.number, rng), room)
        written = field._replace(payload=inner).encoded()
    elif rng.random() < 0.1 and (spares := parse(donor)):
        written = rng.choice(spares).encoded() + field.encoded() * rng.randrange(2)
    elif rng.random() < 0.1:
        at, written = rng.randrange(len(fields) + 1), field.encoded()
    else:
        written = rng.choice(_CHANGES)(field, rng, room)
    return encode(fields[:at]) + written + encode(fields[at:])


def _payload_of(data: bytes, number: int, rng: random.Random) -> bytes:
    """That of one of the fields `number` of a message; nothing if it has none."""
    payloads = [field.payload for field in parse(data) or () if field.number == number]
    return rng.choice(payloads) if payloads else b""


# Bytes ----------------------------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: random.Random, room: int) -> bytes:
    """One change; at most `room` bytes are added."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + 2 ** rng.randrange(8))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:end] + data[at:end][:room] + data[end:]
    if kind == 3:
        return data[:at] + rng.choice(STRINGS)[:room] + data[at:]
    if kind == 4:
        return data[:at] + varint(rng.choice(INTEGERS))[:room] + data[at:]
    fresh = rng.randbytes(rng.choice((1, 1, 1, 4)))
    return (data[:at] + fresh + data[at + len(fresh) :])[: len(data) + room]
