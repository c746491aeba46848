"""Messages without end, of a size that is only said, or of which nothing can be seen until they are unpacked."""

from __future__ import annotations

import asyncio

from swarm.limits import Limits
from swarm.net.base import LogEntry
from swarm.net.frames import write_frame
from swarm.types import PeerId
from swarm.wire.codec import encode_entry
from swarm.wire.deflate import MARK, Deflater

CHUNK = bytes(1 << 16)
LIMIT = Limits().max_group_bytes
BOMB = Deflater().pack(bytes(1 << 26))
"""64 MiB of zeros in 64 kB."""


async def endless(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A frame of 4 GiB less one byte, and as much of it as the other side takes."""
    writer.write(b"\xff\xff\xff\xff")
    for _ in range(1 << 12):  # 256 MiB, if anybody wanted them
        writer.write(CHUNK)
        await writer.drain()


async def too_large(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A group one byte over the limit, in a frame that is none too many."""
    entry = LogEntry(cursor=1, body=bytes(LIMIT + 1), signature=bytes(64))
    await write_frame(writer, encode_entry(bytes(16), entry))


async def bomb(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One that says how large it is."""
    await write_frame(writer, BOMB)


async def disguised_bomb(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One that says that it is small."""
    header = len(MARK) + 4
    await write_frame(writer, MARK + (1000).to_bytes(4, "big") + BOMB[header:])
