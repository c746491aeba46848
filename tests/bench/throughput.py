"""Groups per second between two processes on loopback, every limit on transfer lifted.

exchange    publisher's log -> `receive()`, compressed or not
pool        publisher's log -> `receive()` -> verdict -> journal -> pool: the node's own `gather` loop
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from node.experience import Experience
from node.loops import gather
from node.pool import RolloutPool
from swarm.net.frames import end, first_of
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
    publisher_ms: float
    """CPU time a group, mean of the rounds: of the two nodes' processes, and of their daemons together. What else the
    machine does changes it less than the rates."""
    reader_ms: float
    daemons_ms: float


class Counter:
    """Notes the time after every so many groups: the first lot is to warm up, and every other one a round."""

    def __init__(self, groups: int, rounds: int) -> None:
        self._groups, self._rounds = groups, rounds
        self._seen = 0
        self._marks: list[float] = []
        self.warm, self.over = asyncio.Event(), asyncio.Event()

    def count(self) -> None:
        self._seen += 1
        if self._seen % self._groups == 0:
            self._marks.append(time.perf_counter())
            self.warm.set()
            if len(self._marks) > self._rounds:
                self.over.set()

    def rates(self) -> tuple[float, ...]:
        return tuple(self._groups / (b - a) for a, b in pairwise(self._marks))[: self._rounds]


async def measure(
    *, through: str, rounds: int, groups: int, rollouts: int, tokens: int, compression: bool = True
) -> Rates:
    """`groups` in each round; `through`: "exchange" or "pool"; `compression`: whether the reader asks for it."""
    counter = Counter(groups, rounds)

    class CountingPool(RolloutPool):
        def put_foreign(self, experience: Experience) -> None:
            super().put_foreign(experience)
            counter.count()

    total = (rounds + 1) * groups + FIRST_CONTACT
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        parts = Parts(pool=CountingPool, settings={**UNLIMITED, "compression": compression})
        async with open_peer(Path(directory) / "reader", parts=parts) as reader:
            flood = {
                "mode": "flood",
                "directory": str(Path(directory) / "writer"),
                "peers": reader.exchange.addresses,
                "groups": total,
                "distinct": DISTINCT if through == "exchange" else total,
                "rollouts": rollouts,
                "tokens": tokens,
            }
            async with child("tests.bench.publisher", flood) as publisher:
                ready = await publisher.tell()
                await reader.exchange.announce(reader.announcement(0))
                if through == "pool":
                    reading = gather(reader.exchange, reader.intake, reader.journal, reader.pool)
                else:
                    reading = _receive(reader, counter)
                task = asyncio.create_task(reading)
                try:
                    await _until(counter.warm, task)
                    before = _spent(publisher.process.pid)
                    await _until(counter.over, task)
                    after = _spent(publisher.process.pid)
                finally:
                    await end(task)
    publisher_ms, reader_ms, daemons_ms = (
        1000 * (b - a) / (rounds * groups) for a, b in zip(before, after, strict=True)
    )
    return Rates(
        groups_per_s=counter.rates(),
        body_bytes=ready["body_bytes"],
        publisher_ms=publisher_ms,
        reader_ms=reader_ms,
        daemons_ms=daemons_ms,
    )


def _spent(publisher: int) -> tuple[float, float, float]:
    """CPU seconds so far of the publisher, of this process, and of both nodes' daemons."""
    nodes = [psutil.Process(publisher), psutil.Process(os.getpid())]
    daemons = [child for node in nodes for child in node.children() if child.name() == "p2pd"]
    first, second = map(_seconds, nodes)
    return first, second, sum(map(_seconds, daemons))


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _receive(reader: Peer, counter: Counter) -> None:
    async for _ in reader.exchange.receive():
        counter.count()


async def _until(event: asyncio.Event, reading: asyncio.Task[None]) -> None:
    """Raises TimeoutError, or what ended `reading`."""
    await first_of(event.wait(), until=reading, timeout=PATIENCE_S)
    if reading.done():
        reading.result()
    if not event.is_set():
        raise TimeoutError(f"not all groups came within {PATIENCE_S:g} s")
