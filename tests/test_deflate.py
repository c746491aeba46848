"""Packed frames: what is saved, and what is refused before it costs anything."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import LimitError, WireError
from swarm.wire.deflate import MARK, Deflater, Inflater, largest_frame
from tests.fuzz.seeds import entries, tables

LIMIT = 1_000_000


def unpacked(*frames: bytes) -> list[bytes]:
    inflater = Inflater()
    return [inflater.unpack(frame, LIMIT) for frame in frames]


@given(st.lists(st.binary(min_size=1, max_size=300) | st.integers(1, 40_000).map(bytes), max_size=8))
def test_messages_come_out_as_they_went_in(messages: list[bytes]) -> None:
    stream = Deflater()
    assert unpacked(*map(stream.pack, messages)) == messages


def test_plain_frames_may_come_between() -> None:
    stream, (first, second, third) = Deflater(), entries()[:3]
    assert unpacked(stream.pack(first), second, b"", stream.pack(third)) == [first, second, b"", third]


def test_what_came_before_is_what_saves_most() -> None:
    stream = Deflater()
    first, second = (len(stream.pack(message)) for message in entries()[:2])
    assert second < first / 2 < len(entries()[0]) / 2


@pytest.mark.parametrize("size", [1, 16_383, 16_384, 65_535, 1_000_000])
def test_what_cannot_be_packed_is_hardly_larger(size: int) -> None:
    message = random.Random(size).randbytes(size)
    frame = Deflater().pack(message)
    assert len(frame) <= largest_frame(size)
    assert unpacked(frame) == [message]


def test_the_format_is_pinned() -> None:
    """Python's zlib may pack otherwise one day, and what has been packed so is still read."""
    frames = bytes.fromhex("000000000f4a5428cacfc9c92f2d51482fca2f2d0000"), bytes.fromhex("000000000f4a44e50200")
    assert unpacked(*frames) == [b"a rollout group"] * 2


# What is refused ------------------------------------------------------------------------------------------------------


def bomb(inside: int, said: int) -> bytes:
    """A frame of `inside` zeros which says that they are `said`."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = coder.compress(bytes(1 << 20)) + coder.flush(zlib.Z_FULL_FLUSH)
    return MARK + said.to_bytes(4, "big") + piece * (inside >> 20)


@pytest.mark.parametrize("said", [1 << 30, LIMIT + 1, LIMIT, 1])
def test_a_gigabyte_in_a_megabyte_is_refused_before_it_takes_memory(said: int) -> None:
    frame, inflater = bomb(1 << 30, said), Inflater()
    assert len(frame) < 1_100_000
    tracemalloc.start()
    try:
        with pytest.raises(WireError) as raised:
            inflater.unpack(frame, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(raised.value, LimitError) == (said > LIMIT)
    assert peak < 2 * len(frame) + (2 * LIMIT if said == LIMIT else 0) + 100_000


def last(message: bytes) -> bytes:
    """Packed as if nothing came after it."""
    coder = zlib.compressobj(6, zlib.DEFLATED, -15)
    return MARK + len(message).to_bytes(4, "big") + coder.compress(message) + coder.flush()


GOOD = Deflater().pack(b"message")


@pytest.mark.parametrize(
    "frame",
    [
        MARK,
        MARK + bytes(4),
        MARK + bytes(4) + GOOD[5:],
        GOOD[:4] + b"\x06" + GOOD[5:],
        GOOD[:4] + b"\x08" + GOOD[5:],
        GOOD[:-4],
        GOOD + GOOD[5:],
        MARK + (7).to_bytes(4, "big") + b"\xff" * 20,
        MARK + (7).to_bytes(4, "big"),
        last(b"message"),
        tables(1000),
    ],
    ids=["mark", "nothing", "none", "less", "more", "cut", "twice", "noise", "empty", "the last", "tables"],
)
def test_what_is_no_packed_message(frame: bytes) -> None:
    with pytest.raises(WireError):
        unpacked(frame)
