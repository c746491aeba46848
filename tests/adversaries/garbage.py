"""Bytes that mean nothing: instead of frames, of messages, of groups."""

from __future__ import annotations

import asyncio
import random

from swarm.net.frames import write_frame
from swarm.types import PeerId, SignedGroup
from swarm.wire.identity import Identity
from tests.adversaries.made import raw, signed_by


def bodies(author: Identity, count: int = 40) -> list[SignedGroup]:
    """Random ones, and well-signed."""
    rng = random.Random(0)
    return [signed_by(author, rng.randbytes(rng.randint(1, 2000))) for _ in range(count)]


def unsigned(count: int = 40) -> list[SignedGroup]:
    rng = random.Random(1)
    return [raw(rng.randbytes(rng.randint(1, 2000)), rng.randbytes(64)) for _ in range(count)]


async def messages(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Frames of noise, as a stream's handler."""
    rng = random.Random(2)
    for _ in range(8):
        await write_frame(writer, rng.randbytes(rng.randint(1, 2000)))


async def noise(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Not even frames."""
    writer.write(random.Random(3).randbytes(1 << 16))
    await writer.drain()
