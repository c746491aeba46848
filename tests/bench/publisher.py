"""The other side of `latency` and `throughput`: a peer that publishes, in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swarm.net.base import GroupLog, LogEntry
from swarm.types import SignedGroup, TaskRef
from swarm.wire.codec import seal
from tests.bench.child import report, run_child, told
from tests.bench.peer import UNLIMITED, Parts, Peer, open_peer

DISTINCT = 512
"""Groups of a flood that differ in their texts; more of them only say that they were made at another time."""
AHEAD = 512
"""Groups that a flooded log is ahead of its reader, who would be made to skip what is older."""


async def publish(task: dict[str, Any]) -> None:
    await (steady if task["mode"] == "steady" else flood)(task)


async def steady(task: dict[str, Any]) -> None:
    """One group after the other, `rate` per second, at random times. Reports for each: id, and the unix seconds at
    which it was complete, sealed and journalled."""
    rng = random.Random(1)
    async with open_peer(Path(task["directory"]), *task["peers"]) as peer:
        refs = await _refs(peer, task["groups"])
        await _followed(peer)
        rows = []
        for ref in refs:
            await asyncio.sleep(rng.expovariate(task["rate"]))
            group = peer.group(rng, ref, task["rollouts"], task["tokens"])
            signed = seal(group, peer.identity)
            sealed = time.time()
            await peer.journal.append(signed, [None] * len(group.rollouts), own=True)
            rows.append((signed.id, group.created_at, sealed, time.time()))
        report({"groups": rows})
        await told()


async def flood(task: dict[str, Any]) -> None:
    """As many as the reader takes. Reports when they are ready, and what one has on the wire."""
    parts = Parts(settings=UNLIMITED, log=Ahead, max_groups=task["groups"])
    async with open_peer(Path(task["directory"]), *task["peers"], parts=parts) as peer:
        rng = random.Random(1)
        refs = await _refs(peer, min(task["groups"], task["distinct"]))
        made = [peer.group(rng, ref, task["rollouts"], task["tokens"]) for ref in refs]
        now = time.time()
        size = 0
        appends = []
        for number, group in zip(range(task["groups"]), itertools.cycle(made), strict=False):
            signed = seal(replace(group, created_at=now + number * 1e-3), peer.identity)
            size = len(signed.body)
            appends.append(asyncio.create_task(_append(peer, signed)))
        await asyncio.gather(*appends)
        await _announced(peer)
        report({"body_bytes": size})
        await told()


class Ahead:
    """A log that is always a little ahead of its reader, and then all there is."""

    def __init__(self, inner: GroupLog) -> None:
        self._inner = inner
        self._read = 0

    @property
    def epoch(self) -> bytes:
        return self._inner.epoch

    @property
    def head(self) -> int:
        return min(self._inner.head, self._read + AHEAD)

    async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
        entries = await self._inner.read(cursor, min(limit, self.head - cursor))
        if entries:
            self._read = max(self._read, entries[-1].cursor)
        return entries

    async def wait(self, cursor: int) -> int:
        return self.head if self.head > cursor else await self._inner.wait(cursor)


async def _append(peer: Peer, signed: SignedGroup) -> None:
    await peer.journal.append(signed, [None] * len(signed.group.rollouts), own=True)


async def _refs(peer: Peer, count: int) -> list[TaskRef]:
    refs = []
    async for ref in peer.refs(seed=1):
        refs.append(ref)
        if len(refs) == count:
            break
    return refs


async def _announced(peer: Peer) -> None:
    await peer.exchange.announce(peer.announcement(peer.journal.head))


async def _followed(peer: Peer) -> None:
    """Returns when somebody is there."""
    await _announced(peer)
    while not peer.exchange.peers():  # noqa: ASYNC110 - the directory has no event for it
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    run_child(publish)
