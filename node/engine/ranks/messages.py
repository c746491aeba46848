"""What goes through the pipes between a node and its ranks: a JSON object, and bytes where there are arrays.

A frame is two lengths (big-endian: 4 bytes for the JSON, 8 for the rest) and what they are the lengths of.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">IQ")
MAX_HEAD_BYTES = 64 << 20
MAX_BODY_BYTES = 4 << 30


class BrokenMessage(Exception):
    """The other end has gone in the middle of a frame, or does not keep to the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Message:
    head: dict[str, Any]
    body: bytes = field(default=b"", repr=False)

    def frame(self) -> bytes:
        head = json.dumps(self.head).encode()
        return LENGTHS.pack(len(head), len(self.body)) + head + self.body


def frame_length(start: bytes | bytearray) -> int | None:
    """Of the frame that begins with `start`, in bytes; None as long as that cannot be told. Raises BrokenMessage."""
    if len(start) < LENGTHS.size:
        return None
    head, body = LENGTHS.unpack(start[: LENGTHS.size])
    if head > MAX_HEAD_BYTES or body > MAX_BODY_BYTES:
        raise BrokenMessage(f"a message of {head + body:,} bytes")
    return LENGTHS.size + head + body


def parsed(frame: bytes | bytearray) -> Message:
    """A whole frame's message. Raises BrokenMessage."""
    end = LENGTHS.size + LENGTHS.unpack(frame[: LENGTHS.size])[0]
    try:
        head = json.loads(frame[LENGTHS.size : end])
    except ValueError as error:
        raise BrokenMessage(f"a message that is no JSON: {error}") from error
    if not isinstance(head, dict):
        raise BrokenMessage("a message that is no JSON object")
    return Message(head=head, body=bytes(frame[end:]))


def read(stream: BinaryIO) -> Message | None:
    """The next message, waited for; None at the end. Raises BrokenMessage."""
    start = stream.read(LENGTHS.size)
    if not start:
        return None
    length = frame_length(start)
    frame = start + stream.read(length - LENGTHS.size) if length is not None else b""
    if length is None or len(frame) < length:
        raise BrokenMessage("the other end has gone in the middle of a message")
    return parsed(frame)
