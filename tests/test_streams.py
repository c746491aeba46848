"""Frames, pulling and publishing over real sockets; no daemon."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import swarm.net.frames as frames
from swarm.errors import LimitError, NetworkError, WireError
from swarm.limits import Limits
from swarm.net.base import LogEntry
from swarm.net.frames import hold_little, read_frame, write_frame, write_frames
from swarm.net.memory import MemoryLog
from swarm.net.packing import OFF_LOOP_BYTES, Packing
from swarm.net.rates import Meter, Rate, Shares
from swarm.net.streams import CATCH_UP, FIRST_CONTACT, MAX_STREAMS, MAX_STREAMS_PER_PEER, Publisher, pull
from swarm.types import PeerId, SignedGroup
from swarm.wire.codec import (
    MAX_PULL_GROUPS,
    Pull,
    decode_entry,
    decode_pull,
    encode_credit,
    encode_entry,
    encode_pull,
)
from swarm.wire.deflate import MARK, Deflater
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


async def pulled(
    stream: Stream, epoch: bytes, cursor: int, count: int = 1000, deflate: bool = False
) -> list[tuple[bytes, LogEntry]]:
    """What comes until the publisher ends the stream."""
    request = Pull(swarm=MANIFEST.id, epoch=epoch, cursor=cursor, max_groups=count, deflate=deflate)
    async with asyncio.timeout(10):
        return [entry async for entry in pull(*stream, request, LIMITS)]


def meter(groups: float = 1e6, size: float = 1e9) -> Meter:
    """Of so many groups and bytes per second."""
    return Meter(Shares(Rate(groups=groups, bytes=size), 1.0, time.monotonic()), time.monotonic)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the other ends set no events
            await asyncio.sleep(0.01)


def publisher(
    log: MemoryLog,
    stream_s: float = 60.0,
    limits: Limits = LIMITS,
    upload: Meter | None = None,
    packing: Packing | None = None,
) -> Publisher:
    return Publisher(MEMBERSHIP, log, limits, upload or meter(), stream_s=stream_s, packing=packing)


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
    monkeypatch.setattr(frames, "GRACE_S", 0.05)
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
            return list(await super().read(max(cursor, 6), limit))

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


async def test_only_this_swarm_is_served(tmp_path: Path) -> None:
    async with served(tmp_path, publisher(filled(1))) as (reader, writer):
        await write_frame(writer, encode_pull(Pull(swarm="another", epoch=b"", cursor=0, max_groups=1)))
        assert await reader.read() == b""


@pytest.mark.parametrize("request_bytes", [b"", b"\xff" * 50, b"x" * 2000])
async def test_a_request_of_junk_ends_its_stream_only(tmp_path: Path, request_bytes: bytes) -> None:
    shared = publisher(filled(1))
    async with served(tmp_path, shared) as (reader, writer):
        await write_frame(writer, request_bytes)
        assert await reader.read() == b""
    assert not len(shared._streams)


async def answered(tmp_path: Path, *frames: bytes, deflate: bool = False) -> None:
    """Reads what a publisher that sends `frames` says."""
    async with connected(tmp_path) as (near, (reader, writer)):
        request = Pull(swarm=MANIFEST.id, epoch=b"", cursor=0, max_groups=10, deflate=deflate)
        pulling = asyncio.ensure_future(pulled(near, b"", 0, 10, deflate))
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


# Packing --------------------------------------------------------------------------------------------------------------


async def sent(tmp_path: Path, log: MemoryLog, deflate: bool, packing: Packing | None = None) -> list[bytes]:
    """The frames of three groups."""
    async with served(tmp_path, publisher(log, packing=packing)) as (reader, writer):
        request = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=3, deflate=deflate)
        await write_frame(writer, encode_pull(request))
        return [await read_frame(reader, 20_000, 5) for _ in range(3)]


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
async def test_frames_are_packed_where_both_ends_want_it(tmp_path: Path, asked: bool, wanted: bool) -> None:
    log = filled(3, size=5000)
    frames = await sent(tmp_path, log, asked, Packing(1.0 if wanted else 0.0))
    assert [frame.startswith(MARK) for frame in frames] == [asked and wanted] * 3
    assert sum(map(len, frames)) < 500 or not (asked and wanted)
    (tmp_path / "again").mkdir()
    async with served(tmp_path / "again", publisher(log, packing=Packing(1.0 if wanted else 0.0))) as stream:
        got = await pulled(stream, log.epoch, 0, 3, deflate=asked)
    assert [(e.cursor, e.body) for _, e in got] == [(e.cursor, e.body) for e in await log.read(0, 3)]


async def test_no_more_is_packed_than_there_is_time_for(tmp_path: Path) -> None:
    now = 0.0
    packing = Packing(0.25, clock=lambda: now)
    packing.spent(0.15)
    assert [frame.startswith(MARK) for frame in await sent(tmp_path, filled(3), True, packing)] == [True] * 3
    packing.spent(0.2)
    (tmp_path / "later").mkdir()
    assert [frame.startswith(MARK) for frame in await sent(tmp_path / "later", filled(3), True, packing)] == [False] * 3
    now = 1.0
    (tmp_path / "again").mkdir()
    assert [frame.startswith(MARK) for frame in await sent(tmp_path / "again", filled(3), True, packing)] == [True] * 3


async def test_what_takes_long_is_packed_and_unpacked_elsewhere(tmp_path: Path) -> None:
    log, limits = MemoryLog(), Limits(max_group_bytes=400_000)
    bodies = [random.Random(n).randbytes(OFF_LOOP_BYTES * (n + 1)) for n in range(3)]
    for body in bodies:
        append(log, body)
    async with served(tmp_path, publisher(log, limits=limits)) as stream:
        request = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=3, deflate=True)
        assert [entry.body async for _, entry in pull(*stream, request, limits)] == bodies


async def test_a_reader_that_unpacks_understands_a_publisher_that_does_not_pack(tmp_path: Path) -> None:
    await answered(tmp_path, response(1), response(2), b"", deflate=True)


@pytest.mark.parametrize(
    ("frame", "asked", "error"),
    [
        (Deflater().pack(response(1)), False, WireError),  # not asked for
        (Deflater().pack(bytes(1 << 20)), True, LimitError),
        (MARK + (1000).to_bytes(4, "big") + Deflater().pack(bytes(1 << 20))[5:], True, WireError),
        (Deflater().pack(response(1))[:-8], True, WireError),
    ],
)
async def test_packed_frames_that_no_publisher_may_send(
    tmp_path: Path, frame: bytes, asked: bool, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        await answered(tmp_path, frame, b"", deflate=asked)
    assert type(raised.value) is error


# Credit and backlog ---------------------------------------------------------------------------------------------------


async def test_a_publisher_sends_no_more_than_there_is_credit_for(tmp_path: Path) -> None:
    log = filled(100)
    async with served(tmp_path, publisher(log)) as (reader, writer):

        async def cursors() -> list[int]:
            """Until nothing more comes."""
            got = []
            while True:
                try:
                    got.append(decode_entry(await read_frame(reader, 20_000, 0.1))[1].cursor)
                except NetworkError:
                    return got

        await write_frame(writer, encode_pull(Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=3)))
        assert await cursors() == [1, 2, 3]
        await write_frame(writer, encode_credit(2))
        assert await cursors() == [4, 5]
        await write_frame(writer, encode_credit(40))
        assert await cursors() == list(range(6, 46))


async def test_a_reader_keeps_as_much_credit_given_as_it_is_allowed(tmp_path: Path) -> None:
    """Eight at first; four more once four were taken, and never while none are."""
    log, given = filled(100), []

    async def allowed(groups: int) -> None:
        given.append(groups)

    async with served(tmp_path, publisher(log)) as stream:
        request = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=8)
        responses = pull(*stream, request, LIMITS, allowed)
        cursors = [(await anext(responses))[1].cursor for _ in range(4)]
        await asyncio.sleep(0.05)
        assert given == []
        cursors += [(await anext(responses))[1].cursor for _ in range(20)]
        await responses.aclose()
    assert cursors == list(range(1, 25))
    assert 12 <= sum(given) <= 24
    assert all(groups >= 4 for groups in given)


async def test_nothing_is_pulled_that_is_not_allowed(tmp_path: Path) -> None:
    async def never(groups: int) -> None:
        await asyncio.Event().wait()

    log = filled(100)
    async with served(tmp_path, publisher(log, stream_s=0.3)) as stream:
        request = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=8)
        assert [entry.cursor async for _, entry in pull(*stream, request, LIMITS, never)] == list(range(1, 9))


async def test_a_publisher_that_sends_more_than_it_may_is_no_honest_one(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, (_, writer)):
        for cursor in (1, 2, 3):
            await write_frame(writer, response(cursor))

        async def later(groups: int) -> None:
            await asyncio.Event().wait()

        request = Pull(swarm=MANIFEST.id, epoch=b"", cursor=0, max_groups=2)
        with pytest.raises(WireError, match="credit"):
            async for _ in pull(*near, request, LIMITS, later):
                pass


@pytest.mark.parametrize("credit", [b"", encode_credit(MAX_PULL_GROUPS), b"\xff" * 20])
async def test_a_reader_that_says_nonsense_is_left(tmp_path: Path, credit: bytes) -> None:
    log = filled(1)
    async with served(tmp_path, publisher(log)) as (reader, writer):
        await write_frame(writer, encode_pull(Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=9)))
        await read_frame(reader, 20_000, 5)
        await write_frame(writer, credit)
        async with asyncio.timeout(5):
            assert await reader.read() == bytes(4)


async def test_who_falls_behind_goes_on_from_where_it_wants_to(tmp_path: Path) -> None:
    """Ten groups back, be it at first or on the way: a log is a stream."""
    log = filled(100)
    async with served(tmp_path, publisher(log)) as (reader, writer):
        request = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=5, max_groups=2, max_backlog=10)
        await write_frame(writer, encode_pull(request))

        async def cursors(count: int) -> list[int]:
            return [decode_entry(await read_frame(reader, 20_000, 5))[1].cursor for _ in range(count)]

        assert await cursors(2) == [91, 92]
        for number in range(50):
            append(log, number.to_bytes(4, "big"))
        await write_frame(writer, encode_credit(12))
        assert await cursors(10) == list(range(141, 151))


async def test_a_cut_stream_is_resumed_after_the_last_group_that_was_taken(tmp_path: Path) -> None:
    log = filled(30)
    shared = publisher(log)
    cursor, got = 0, []
    for part in range(3):
        (tmp_path / str(part)).mkdir()
        async with served(tmp_path / str(part), shared) as (reader, writer):
            request = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=cursor, max_groups=30)
            async for _, entry in pull(reader, writer, request, LIMITS):
                cursor = entry.cursor
                got.append(cursor)
                if len(got) in (7, 20, 30):
                    writer.transport.abort()
                    break
    assert got == list(range(1, 31))


# Limits ---------------------------------------------------------------------------------------------------------------


async def test_a_publisher_sends_no_faster_than_its_meter_allows(tmp_path: Path) -> None:
    """200 groups a second, of which 200 are saved up: 300 take half a second."""
    log, loop = filled(300), asyncio.get_running_loop()
    async with served(tmp_path, publisher(log, upload=meter(groups=200))) as stream:
        started = loop.time()
        assert len(await pulled(stream, log.epoch, 0, 300)) == 300
        assert 0.45 <= loop.time() - started < 3


async def test_a_reader_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "GRACE_S", 0.05)
    monkeypatch.setattr(frames, "MIN_BYTES_S", 10_000_000)
    limits = Limits(max_group_bytes=2_000_000)
    log = filled(20, size=1_000_000)
    async with connected(tmp_path) as ((_, near), (reader, writer)):
        await write_frame(near, encode_pull(Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=20)))
        async with asyncio.timeout(5):
            await publisher(log, limits=limits).serve(READER, reader, writer)
        assert writer.transport.is_closing()
        assert writer.transport.get_write_buffer_size() == 0


async def test_a_large_frame_has_the_time_that_it_takes_at_the_least_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "GRACE_S", 0.2)
    monkeypatch.setattr(frames, "MIN_BYTES_S", 1000)
    async with connected(tmp_path) as ((reader, _), (_, writer)):

        async def drip(parts: int) -> None:
            writer.write((500).to_bytes(4, "big"))
            for _ in range(parts):
                await asyncio.sleep(0.1)
                writer.write(bytes(125))

        dripping = asyncio.create_task(drip(4))
        assert await read_frame(reader, 1000, 1) == bytes(500)
        await dripping
        dripping = asyncio.create_task(drip(2))
        with pytest.raises(NetworkError, match="in time"):
            await read_frame(reader, 1000, 1)
        await dripping


async def test_what_is_written_is_in_the_kernel_or_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "GRACE_S", 0.05)
    async with connected(tmp_path) as (_, (_, writer)):
        hold_little(writer)

        async def write_on() -> None:
            while True:
                await write_frames(writer, [bytes(100)] * 10)

        with pytest.raises(NetworkError, match="not read"):
            await write_on()
        assert writer.transport.is_closing()
        assert writer.transport.get_write_buffer_size() == 0


# Places ---------------------------------------------------------------------------------------------------------------


class Crowd:
    """Readers of one publisher, over sockets of its own."""

    def __init__(self, publisher: Publisher, path: Path) -> None:
        self.publisher, self.path = publisher, path
        self.count = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Crowd]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.count += 1
            await self.publisher.serve(PeerId(f"peer {self.count}"), reader, writer)
            writer.close()

        async with await asyncio.start_unix_server(serve, self.path):
            yield self


@pytest.mark.parametrize("habit", ["silent", "dripping", "not reading", "takes no more"])
async def test_500_slow_streams_keep_nobody_waiting(tmp_path: Path, habit: str) -> None:
    log = filled(20, size=100_000)
    limits = Limits(max_group_bytes=200_000)
    count = 1 if habit == "takes no more" else 100
    request = encode_pull(Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=count))
    begins = {"silent": b"", "dripping": bytes(2)}.get(habit, len(request).to_bytes(4, "big") + request)
    loop = asyncio.get_running_loop()
    async with Crowd(publisher(log, limits=limits), tmp_path / "socket").open() as crowd:
        streams: list[Stream] = []
        try:
            for _ in range(500):
                stream = await asyncio.open_unix_connection(crowd.path)
                stream[1].write(begins)
                streams.append(stream)
            await until(lambda: crowd.count == 500)
            started = loop.time()
            streams.append(await asyncio.open_unix_connection(crowd.path))
            wanted = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=20)
            assert len([entry async for _, entry in pull(*streams[-1], wanted, limits)]) == 20
            assert loop.time() - started < 1
            assert len(crowd.publisher._streams) <= MAX_STREAMS
        finally:
            for _, end in streams:
                end.transport.abort()
            await until(lambda: not len(crowd.publisher._streams))


async def test_a_newcomer_displaces_nobody_who_is_being_served(tmp_path: Path) -> None:
    """All places are taken by readers with credit who wait for news: they keep them. So do two of one peer."""
    log = filled(1)
    shared = publisher(log)
    request = Pull(swarm=MANIFEST.id, epoch=log.epoch, cursor=0, max_groups=9)
    async with Crowd(shared, tmp_path / "socket").open() as crowd:
        streams = [await asyncio.open_unix_connection(crowd.path) for _ in range(MAX_STREAMS)]
        readings = [pull(*stream, request, LIMITS) for stream in streams]
        for reading in readings:
            assert (await anext(reading))[1].cursor == 1
        reader, writer = await asyncio.open_unix_connection(crowd.path)
        assert await reader.read() == b""
        append(log, b"news")
        for reading in readings:
            assert (await anext(reading))[1].body == b"news"
            await reading.aclose()
        for _, end in [*streams, (reader, writer)]:
            end.transport.abort()
        await until(lambda: not len(shared._streams))


async def test_one_peer_has_so_many_streams(tmp_path: Path) -> None:
    shared = publisher(filled(1))
    readers = [asyncio.StreamReader() for _ in range(MAX_STREAMS_PER_PEER + 1)]
    async with connected(tmp_path) as (_, (_, writer)), asyncio.timeout(5), asyncio.TaskGroup() as group:
        tasks = [group.create_task(shared.serve(READER, reader, writer)) for reader in readers]
        await asyncio.sleep(0.01)
        assert [task.done() for task in tasks] == [False] * MAX_STREAMS_PER_PEER + [True]
        for reader in readers:
            reader.feed_eof()
    assert not len(shared._streams)
