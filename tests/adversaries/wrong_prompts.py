"""Questions of one's own: a source that the swarm does not have, another config, a task that is not there, an answer
to something else, a prompt and a truth that one would like to be believed."""

from __future__ import annotations

import struct
from dataclasses import replace

from swarm.types import SignedGroup
from swarm.wire.codec import encode_group
from swarm.wire.identity import Identity
from tests.adversaries.made import made, signed_by
from tests.builders import task_ref


def another_source(author: Identity, count: int = 12) -> list[SignedGroup]:
    return [made(author, index, ref=task_ref(index, source="test/mine")) for index in range(count)]


def another_config(author: Identity, count: int = 12) -> list[SignedGroup]:
    return [made(author, index, ref=replace(task_ref(index), config='{"easy":1}')) for index in range(count)]


def no_such_task(author: Identity, count: int = 12) -> list[SignedGroup]:
    return [made(author, 1_000_000 + index) for index in range(count)]


def its_own_truth(author: Identity, index: int) -> SignedGroup:
    """A wrong answer, in a message that also has a question, a ground truth and rewards, in fields of its own."""
    body = encode_group(made(author, index, "wrong").group)
    return signed_by(author, body + _text(40, "Say wrong.") + _text(41, "wrong") + _float(42, 1.0))


def _text(number: int, text: str) -> bytes:
    key = number << 3 | 2
    return bytes([key & 0x7F | 0x80, key >> 7, len(text)]) + text.encode()


def _float(number: int, value: float) -> bytes:
    key = number << 3 | 5
    return bytes([key & 0x7F | 0x80, key >> 7]) + struct.pack("<f", value)
