"""kill -9 at random moments, in start-up, in a step, in a commit, in a checkpoint; over nodes that really exchange."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.record import record
from tests.chaos.swarm import Mortal, findings, mortals
from tests.processes import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(5400)]

#: Checkpoints every 5 steps, which take a fraction of a second: many kills hit one that is being written.
LIFE_S = 4.0
LIMIT_S = float(os.environ.get("CHAOS_LIMIT_S", "inf"))
"""After which nobody is killed any more; a busy machine takes a minute for each."""
STILLBORN = 0.3
"""Share of the lives that end before the node is up."""


async def kill_again_and_again(mortal: Mortal, kills: int, peers: list[str], seed: int) -> int:
    """How many lives ended while it was up. Every start must succeed, unless it is killed meanwhile."""
    rng, while_up, end = random.Random(seed), 0, time.monotonic() + LIMIT_S
    for _ in range(kills):
        if time.monotonic() > end:
            break
        child = await mortal.start(peers)
        if rng.random() < STILLBORN:
            await asyncio.sleep(rng.uniform(0.0, 2.0))
        else:
            status = await mortal.until(lambda status: True)
            assert status is not None, mortal.told()
            while_up += 1
            await asyncio.sleep(rng.uniform(0.0, LIFE_S))
        assert child.alive, f"it ended by itself: {mortal.told()}"
        child.send(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
    return while_up


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.chaos)])
async def test_nothing_is_lost_and_nothing_is_trained_on_twice(tmp_path: Path, kills: int) -> None:
    """`kills` of each of two nodes that exchange with each other and with a third, which lives."""
    began = time.monotonic()
    async with mortals(tmp_path, ["calm", "first", "second"]) as (calm, first, second):
        await calm.start()
        there = await calm.until(lambda status: bool(status.addresses))
        assert there is not None, calm.told()
        peers = list(there.addresses)
        while_up = await asyncio.gather(
            *(kill_again_and_again(each, kills, peers, seed) for seed, each in enumerate((first, second)))
        )
        for each in (first, second):  # one more life, for as long as it takes to learn and to be heard of
            await each.start(peers)
            up = await each.until(lambda status: True)
            assert up is not None, each.told()
            each.peer = up.peer
            on = await each.until(lambda status, up=up: status.steps >= up.steps + 6)
            assert on is not None, each.told()
        heard = await calm.until(lambda status: {first.peer, second.peer} <= set(status.admitted))
        assert heard is not None
        for each in (calm, first, second):
            assert each.child is not None
            each.child.send(signal.SIGTERM)
            assert await asyncio.wait_for(each.child.wait(), PATIENCE_S) == 0, each.told()
        for each in (calm, first, second):
            found = findings(each)
            record(f"kill -9, {each.node.directory.name}", **found, seconds=round(time.monotonic() - began))
            for what in ("lost", "trained twice", "steps out of order", "trained, not journalled", "set aside"):
                assert not found[what], (each.node.directory.name, what, found)
            assert found["steps"] >= 6
        # What a peer has of a node, the node has itself: nothing was shared that a kill could take back.
        for author in (first, second):
            own = author.journal()
            for reader in {calm, first, second} - {author}:
                taken = {group for group, origin in reader.journal().items() if origin == author.peer}
                assert taken <= own.keys()
        done = first.lives + second.lives - 2
        record("kill -9", kills=done, while_up=sum(while_up), seconds=round(time.monotonic() - began))
