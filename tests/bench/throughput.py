"""Groups per second between two processes on loopback, every limit on transfer lifted.

exchange    publisher's log -> `receive()`
pool        publisher's log -> `receive()` -> verdict -> journal -> pool: the node's own `gather` loop
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from node.experience import Experience
from node.loops import gather
from node.pool import RolloutPool
from tests.bench.child import child
from tests.bench.peer import UNLIMITED, Parts, Peer, open_peer
from tests.bench.publisher import DISTINCT

PATIENCE_S = 100.0
FIRST_CONTACT = 512
"""Groups of a log that a newcomer may skip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    groups_per_s: tuple[float, ...]
    """Of each round."""
    body_bytes: int


class Counter:
    """Notes the time after every so many groups: the first lot is to warm up, and every other one a round."""

    def __init__(self, groups: int, rounds: int) -> None:
        self._groups, self._rounds = groups, rounds
        self._seen = 0
        self._marks: list[float] = []
        self.over = asyncio.Event()

    def count(self) -> None:
        self._seen += 1
        if self._seen % self._groups == 0:
            self._marks.append(time.perf_counter())
            if len(self._marks) > self._rounds:
                self.over.set()

    def rates(self) -> tuple[float, ...]:
        return tuple(self._groups / (b - a) for a, b in pairwise(self._marks))[: self._rounds]


async def measure(*, through: str, rounds: int, groups: int, rollouts: int, tokens: int) -> Rates:
    """`groups` in each round; `through`: "exchange" or "pool"."""
    counter = Counter(groups, rounds)

    class CountingPool(RolloutPool):
        def put_foreign(self, experience: Experience) -> None:
            super().put_foreign(experience)
            counter.count()

    total = (rounds + 1) * groups + FIRST_CONTACT
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        async with open_peer(Path(directory) / "reader", parts=Parts(pool=CountingPool, settings=UNLIMITED)) as reader:
            task = {
                "mode": "flood",
                "directory": str(Path(directory) / "writer"),
                "peers": reader.exchange.addresses,
                "groups": total,
                "distinct": DISTINCT if through == "exchange" else total,
                "rollouts": rollouts,
                "tokens": tokens,
            }
            async with child("tests.bench.publisher", task) as publisher:
                ready = await publisher.tell()
                await reader.exchange.announce(reader.announcement(0))
                if through == "pool":
                    reading = gather(reader.exchange, reader.intake, reader.journal, reader.pool)
                else:
                    reading = _receive(reader, counter)
                await _until(counter.over, asyncio.create_task(reading))
    return Rates(groups_per_s=counter.rates(), body_bytes=ready["body_bytes"])


async def _receive(reader: Peer, counter: Counter) -> None:
    async for _ in reader.exchange.receive():
        counter.count()


async def _until(over: asyncio.Event, reading: asyncio.Task[None]) -> None:
    """Raises TimeoutError, or what ended `reading`."""
    waiting = asyncio.create_task(over.wait())
    try:
        done, _ = await asyncio.wait({waiting, reading}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if reading in done:
            reading.result()
        if not over.is_set():
            raise TimeoutError(f"not all groups came within {PATIENCE_S:g} s")
    finally:
        for task in (waiting, reading):
            task.cancel()
        await asyncio.wait({waiting, reading})
