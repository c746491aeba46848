"""Two of our nodes that share in rounds, as GenRL's do, so that the two can be compared: each publishes so many groups
and goes on when it has as many of the other's in its pool - sealed, journalled, streamed, judged, journalled. No node
of ours would wait for another one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.experience import Experience
from node.loops import gather
from node.pool import RolloutPool
from swarm.types import SignedGroup
from swarm.wire.codec import seal
from tests.bench.child import report, run_child, told
from tests.bench.peer import UNLIMITED, Parts, Peer, open_peer

ROLLOUTS = 8
TOKENS = 130
"""Of four bytes: a group of 8 rollouts is then 8 kB."""
ROUND_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    began: float
    """Unix seconds."""
    ended: float
    groups: int
    """Of the other node."""


@dataclass(slots=True, eq=False)
class Arrivals:
    count: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def reach(self, count: int) -> None:
        while self.count < count:
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def player(directory: Path, *peers: str) -> AsyncIterator[tuple[Peer, Arrivals]]:
    arrivals = Arrivals()

    class CountingPool(RolloutPool):
        def put_foreign(self, experience: Experience) -> None:
            super().put_foreign(experience)
            arrivals.count += 1
            arrivals.changed.set()

    async with open_peer(directory, *peers, parts=Parts(pool=CountingPool, settings=UNLIMITED)) as peer:
        await peer.exchange.announce(peer.announcement(0))
        gathering = asyncio.create_task(gather(peer.exchange, peer.intake, peer.journal, peer.pool))
        try:
            yield peer, arrivals
        finally:
            gathering.cancel()
            await asyncio.wait({gathering})


async def make(peer: Peer, seed: int, rounds: Sequence[int]) -> list[list[SignedGroup]]:
    """For each round so many groups, all of them different."""
    rng, made, refs = random.Random(seed), list[list[SignedGroup]](), peer.refs(seed)
    for count in rounds:
        groups = [peer.group(rng, await anext(refs), ROLLOUTS, TOKENS) for _ in range(count)]
        made.append([seal(group, peer.identity) for group in groups])
    return made


async def play(peer: Peer, arrivals: Arrivals, rounds: Sequence[Sequence[SignedGroup]]) -> AsyncIterator[Round]:
    """Both sides have the same number of groups in every round. Raises TimeoutError."""
    expected = 0
    for groups in rounds:
        began = time.time()
        expected += len(groups)
        await asyncio.gather(*(peer.journal.append(signed, [None] * ROLLOUTS, own=True) for signed in groups))
        async with asyncio.timeout(ROUND_S):
            await arrivals.reach(expected)
        yield Round(began=began, ended=time.time(), groups=len(groups))


async def _side(task: dict[str, Any]) -> None:
    async with player(Path(task["directory"]), *task["peers"]) as (peer, arrivals):
        rounds = await make(peer, 2, task["rounds"])
        report({})
        await told()
        async for _ in play(peer, arrivals, rounds):
            pass
        await told()


if __name__ == "__main__":
    run_child(_side)
