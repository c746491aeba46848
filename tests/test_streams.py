"""Frames, pulling and publishing over real sockets; no daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import swarm.net.streams as streams
from swarm.errors import LimitError, NetworkError, WireError
from swarm.limits import Limits
from swarm.net.base import LogEntry
from swarm.net.memory import MemoryLog
from swarm.net.streams import (
    CATCH_UP,
    FIRST_CONTACT,
    MAX_STREAMS,
    MAX_STREAMS_PER_PEER,
    Publisher,
    pull,
    read_frame,
    write_frame,
)
from swarm.types import PeerId, SignedGroup
from swarm.wire.codec import Pull, decode_pull, encode_entry, encode_pull
from tests.builders import MANIFEST, MEMBERSHIP, identity, signed

LIMITS = Limits(max_group_bytes=10_000)
READER = identity(9).peer_id
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
TEMPLATE = signed(0)


def filled(count: int, size: int = 10) -> MemoryLog:
    log = MemoryLog(capacity=4096)
    for number in range(1, count + 1):
        append(log, number.to_bytes(4, "big") + bytes(size))
    return log


def append(log: MemoryLog, body: bytes) -> None:
    log.append(SignedGroup(id=TEMPLATE.id, group=TEMPLATE.group, body=body, signature=bytes(64)))


@asynccontextmanager
async def connected(tmp_path: Path) -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a stream."""
    arrived: asyncio.Queue[Stream] = asyncio.Queue()
    path = tmp_path / "socket"
    server = await asyncio.start_unix_server(lambda *stream: arrived.put_nowait(stream), path)
    async with server:
        near = await asyncio.open_unix_connection(path)
        far = await arrived.get()
        try:
            yield near, far
        finally:
            for _, writer in (near, far):
                writer.close()


@asynccontextmanager
async def served(tmp_path: Path, publisher: Publisher, peer: PeerId = READER) -> AsyncIterator[Stream]:
    """A stream whose other end `publisher` has."""
    async with connected(tmp_path) as (near, (reader, writer)):

        async def serve() -> None:
            await publisher.serve(peer, reader, writer)
            writer.close()

        task = asyncio.create_task(serve())
        try:
            yield near
        finally:
            near[1].close()
            async with asyncio.timeout(5):
                await task


async def pulled(stream: Stream, epoch: bytes, cursor: int, count: int = 1000) -> list[tuple[bytes, LogEntry]]:
    """What comes until the publisher ends the stream."""
    request = Pull(swarm=MANIFEST.id, epoch=epoch, cursor=cursor, max_groups=count)
    async with asyncio.timeout(10):
        return [entry async for entry in pull(*stream, request, LIMITS)]


def publisher(log: MemoryLog, stream_s: float = 60.0, limits: Limits = LIMITS) -> Publisher:
    return Publisher(MEMBERSHIP, log, limits, stream_s=stream_s)


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    async with connected(tmp_path) as ((reader, _), (_, writer)):
        for data in (b"", b"x", bytes(range(256)) * 1000):
            writing = asyncio.create_task(write_frame(writer, data))
            assert await read_frame(reader, 300_000, 5) == data
            await writing


async def test_a_frame_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    async with connected(tmp_path) as ((reader, _), (_, writer)):
        writer.write((101).to_bytes(4, "big"))
        with pytest.raises(LimitError, match=r"101 bytes.*100"):
            await read_frame(reader, 100, 5)


async def test_a_frame_must_come_whole_and_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FRAME_S", 0.05)
    async with connected(tmp_path) as ((reader, _), (_, writer)):
        with pytest.raises(NetworkError, match="in time"):
            await read_frame(reader, 100, 0.05)
        writer.write((100).to_bytes(4, "big") + b"dripping")
        with pytest.raises(NetworkError, match="in time"):
            await read_frame(reader, 100, 5)


async def test_a_frame_that_breaks_off_is_a_broken_stream(tmp_path: Path) -> None:
    async with connected(tmp_path) as ((reader, _), (_, writer)):
        writer.write((100).to_bytes(4, "big") + b"half of it")
        writer.close()
        with pytest.raises(NetworkError):
            await read_frame(reader, 100, 5)


async def test_a_reader_gets_what_came_after_its_cursor_and_then_the_news(tmp_path: Path) -> None:
    log = filled(20)
    async with served(tmp_path, publisher(log)) as stream:
        responses = pull(*stream, Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=15, max_groups=7), LIMITS)
        for cursor in range(16, 21):
            epoch, entry = await anext(responses)
            assert (epoch, entry.cursor, entry.body[:4]) == (log.epoch, cursor, cursor.to_bytes(4, "big"))
        news = asyncio.ensure_future(anext(responses))
        append(log, b"news")
        assert (await news)[1].body == b"news"
        append(log, b"last of seven")
        assert (await anext(responses))[1].cursor == 22
        with pytest.raises(StopAsyncIteration):
            await anext(responses)


@pytest.mark.parametrize(
    ("epoch", "cursor", "first"),
    [
        ("ours", 2999, 3000),
        ("ours", 3000, None),
        ("ours", 4000, None),
        ("ours", 10, 3000 - CATCH_UP + 1),
        ("none", 0, 3000 - FIRST_CONTACT + 1),
        ("another", 2999, 3000 - FIRST_CONTACT + 1),
    ],
)
async def test_where_a_reader_starts(tmp_path: Path, epoch: str, cursor: int, first: int | None) -> None:
    log = filled(3000)
    epochs = {"ours": log.epoch, "none": b"", "another": bytes(16)}
    async with served(tmp_path, publisher(log, stream_s=0.05 if first is None else 60)) as stream:
        got = await pulled(stream, epochs[epoch], cursor, 1)
    assert [entry.cursor for _, entry in got] == ([] if first is None else [first])


async def test_a_stream_ends_in_time_and_says_so(tmp_path: Path) -> None:
    log = filled(3)
    async with served(tmp_path, publisher(log, stream_s=0.1)) as stream:
        assert [entry.cursor for _, entry in await pulled(stream, log.epoch, 0)] == [1, 2, 3]


async def test_pruned_and_oversized_groups_are_passed_over(tmp_path: Path) -> None:
    class PrunedLog(MemoryLog):
        reads = 0

        async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
            self.reads += 1
            return [entry for entry in await super().read(cursor, limit) if entry.cursor > 6]

    log = PrunedLog()
    for _ in range(6):
        append(log, b"pruned")
    async with served(tmp_path, publisher(log, stream_s=0.3)) as stream:
        request = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=10)
        responses = pull(*stream, request, LIMITS)
        news = asyncio.ensure_future(anext(responses))
        await asyncio.sleep(0)
        append(log, bytes(LIMITS.max_group_bytes + 1))
        append(log, b"news")
        assert (await news)[1].body == b"news"
        assert [entry async for entry in responses] == []
    assert log.reads < 10


async def test_only_this_swarm_and_only_so_many_streams(tmp_path: Path) -> None:
    shared = publisher(filled(1))
    (tmp_path / "0").mkdir()
    async with served(tmp_path / "0", shared) as (reader, writer):
        await write_frame(writer, encode_pull(Pull(swarm="another", epoch=b"", cursor=0, max_groups=1)))
        assert await reader.read() == b""
    for allowed, peer_of in ((MAX_STREAMS_PER_PEER, lambda _: READER), (MAX_STREAMS, lambda n: PeerId(f"peer {n}"))):
        open_streams = []
        async with asyncio.timeout(10):
            async with asyncio.TaskGroup() as group:
                ends = []
                for number in range(allowed + 1):
                    reader, writer = asyncio.StreamReader(), _Sink()
                    task = group.create_task(shared.serve(peer_of(number), reader, writer))  # type: ignore[arg-type]
                    open_streams.append(task)
                    ends.append(reader)
                    await asyncio.sleep(0)
                assert [task.done() for task in open_streams] == [False] * allowed + [True]
                for reader in ends:
                    reader.feed_eof()
        assert not shared._streams


class _Sink:
    def write(self, data: bytes) -> None:
        raise AssertionError("nothing was asked for")


@pytest.mark.parametrize("request_bytes", [b"", b"\xff" * 50, b"x" * 2000])
async def test_a_request_of_junk_ends_its_stream_only(tmp_path: Path, request_bytes: bytes) -> None:
    shared = publisher(filled(1))
    async with served(tmp_path, shared) as (reader, writer):
        await write_frame(writer, request_bytes)
        assert await reader.read() == b""
    assert not shared._streams


async def answered(tmp_path: Path, *frames: bytes) -> None:
    """Reads what a publisher that sends `frames` says."""
    async with connected(tmp_path) as (near, (reader, writer)):
        request = Pull(swarm=MANIFEST.id, epoch=b"", cursor=0, max_groups=10)
        pulling = asyncio.ensure_future(pulled(near, b"", 0, 10))
        assert decode_pull(await read_frame(reader, 1024, 5)) == request
        for frame in frames:
            await write_frame(writer, frame)
        writer.close()
        await pulling


def response(cursor: int, body: bytes = b"group", epoch: bytes = bytes(16)) -> bytes:
    entry = LogEntry(cursor=cursor, body=body, signature=bytes(64))
    return encode_entry(epoch, entry)


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([b"\xff" * 30], WireError),
        ([response(1), response(1)], WireError),
        ([response(2), response(1)], WireError),
        ([response(1, bytes(LIMITS.max_group_bytes + 1))], LimitError),
        ([bytes(20_000)], LimitError),
        ([response(1)], NetworkError),
        ([], NetworkError),
    ],
)
async def test_what_no_publisher_may_say(tmp_path: Path, frames: list[bytes], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        await answered(tmp_path, *frames)
    assert type(raised.value) is error


async def test_a_new_epoch_starts_its_cursors_again(tmp_path: Path) -> None:
    await answered(tmp_path, response(7), response(1, epoch=b"another epoch..."), b"")
