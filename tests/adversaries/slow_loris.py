"""Slow on purpose: streams that are opened and not used, frames of which a byte comes now and then."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from swarm.errors import NetworkError
from swarm.net.stack import Stack
from swarm.types import PeerId

PAUSE_S = 0.05


async def drip(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says that 1000 bytes come, and sends one now and then; as a stream's handler."""
    writer.write((1000).to_bytes(4, "big"))
    with suppress(OSError):
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(PAUSE_S)


async def say_nothing(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def besiege(stack: Stack, victim: PeerId, protocol: str, streams: int) -> list[asyncio.StreamWriter]:
    """Opens so many streams, and begins a request on each. Whoever asked aborts them."""
    writers = list[asyncio.StreamWriter]()
    for _ in range(streams):
        with suppress(NetworkError, OSError):
            _, writer = await stack.open_stream(victim, protocol)
            writer.write(b"\x00\x00")
            writers.append(writer)
    return writers
