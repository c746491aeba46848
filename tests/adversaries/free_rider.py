"""Takes all that it can get, as fast as it can, on as many streams as it can, and gives nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from swarm.errors import SwarmError
from swarm.limits import Limits
from swarm.net.base import LogEntry
from swarm.net.stack import Stack
from swarm.net.streams import PULL, pull
from swarm.types import PeerId
from swarm.wire.codec import MAX_PULL_GROUPS, Pull
from tests.builders import MEMBERSHIP


async def take(
    stack: Stack, victim: PeerId, addresses: Sequence[str], streams: int, until: int
) -> Sequence[list[LogEntry]]:
    """What each stream brought, until the first has `until` groups."""
    await stack.connect(victim, addresses)
    enough = asyncio.Event()
    brought = [list[LogEntry]() for _ in range(streams)]

    async def read(entries: list[LogEntry]) -> None:
        reader, writer = await stack.open_stream(victim, PULL)
        wanted = Pull(swarm=MEMBERSHIP.swarm, epoch=b"", cursor=0, max_groups=MAX_PULL_GROUPS)
        try:
            async with aclosing(pull(reader, writer, wanted, Limits())) as groups:
                async for _, entry in groups:
                    entries.append(entry)
                    if len(entries) == until:
                        enough.set()
        except SwarmError:
            pass  # a stream too many
        finally:
            writer.transport.abort()

    readers = [asyncio.create_task(read(entries)) for entries in brought]
    await asyncio.wait_for(enough.wait(), 20)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    return brought
