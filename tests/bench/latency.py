"""From a group's completion to a peer's pool, between two processes on loopback.

The publisher stamps a group when its rollouts are complete (`created_at`), seals it and appends it to its journal. The
reader runs the node's own `gather` loop. Both read the same machine's clock.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from node.experience import Experience, Judged
from node.intake import Intake
from node.loops import gather
from node.pool import RolloutPool
from swarm.net.base import Received
from swarm.types import GroupId
from swarm.verify import Findings
from swarm.wire.codec import group_id
from tests.bench.child import Child, child
from tests.bench.peer import Parts, open_peer
from tests.bench.statistics import Spread, spread

WARM_UP = 20
"""Groups that are not counted: connections, imports and caches of the judge's process."""
PATIENCE_S = 60.0

STAGES = ("seal", "journal", "stream", "verdict", "keep", "all")
"""seal: the publisher encodes and signs. journal: its commit. stream: the reader has the bytes. verdict: decoded,
checked and scored. keep: the reader's own commit, and the pool."""


@dataclass(slots=True, eq=False)
class Times:
    """Unix seconds, by group."""

    received: dict[GroupId, float] = field(default_factory=dict)
    judged: dict[GroupId, float] = field(default_factory=dict)
    pooled: dict[GroupId, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)


def timed_parts(times: Times) -> Parts:
    class TimedIntake(Intake):
        async def judge(self, received: Received) -> tuple[Findings, Judged | None]:
            now = time.time()
            findings, judged = await super().judge(received)
            id = group_id(received.body)
            times.received[id], times.judged[id] = now, time.time()
            if judged is None:
                times.refused.append(f"{findings.verdict.reason}: {findings.verdict.detail}")
                times.news.set()
            return findings, judged

    class TimedPool(RolloutPool):
        def put_foreign(self, experience: Experience) -> None:
            super().put_foreign(experience)
            times.pooled[experience.id] = time.time()
            times.news.set()

    return Parts(intake=TimedIntake, pool=TimedPool)


async def measure(groups: int, rate: float, rollouts: int, tokens: int) -> dict[str, Spread]:
    """Milliseconds by stage."""
    times = Times()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        async with open_peer(Path(directory) / "reader", parts=timed_parts(times)) as reader:
            await reader.exchange.announce(reader.announcement(0))
            gathering = asyncio.create_task(gather(reader.exchange, reader.intake, reader.journal, reader.pool))
            try:
                task = {
                    "mode": "steady",
                    "directory": str(Path(directory) / "writer"),
                    "peers": reader.exchange.addresses,
                    "groups": groups + WARM_UP,
                    "rate": rate,
                    "rollouts": rollouts,
                    "tokens": tokens,
                }
                async with child("tests.bench.publisher", task) as publisher:
                    return await _watch(publisher, times, groups)
            finally:
                gathering.cancel()
                await asyncio.wait({gathering})


async def _watch(publisher: Child, times: Times, groups: int) -> dict[str, Spread]:
    published = (await publisher.tell())["groups"][WARM_UP:]
    async with asyncio.timeout(PATIENCE_S):
        while not times.refused and not all(GroupId(id) in times.pooled for id, *_ in published):
            times.news.clear()
            await times.news.wait()
    if times.refused:
        raise RuntimeError(f"refused: {times.refused[0]}")
    rows: list[list[float]] = []
    for id, complete, sealed, journalled in published:
        at = [complete, sealed, journalled, times.received[id], times.judged[id], times.pooled[id]]
        rows.append([1000 * (b - a) for a, b in zip(at, [*at[1:], at[0]], strict=True)])
        rows[-1][-1] *= -1
    assert len(rows) == groups
    return {stage: spread(column) for stage, column in zip(STAGES, zip(*rows, strict=True), strict=True)}
