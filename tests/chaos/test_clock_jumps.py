"""A wall clock that is a day off, in two nodes over the in-process exchange: learning does not care, and it is said."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from node.daemon import open_node
from node.operated import RunningNode
from swarm.net.memory import Hub
from tests.policies import save_tiny_policy
from tests.test_node import PATIENCE_S, config_of, until

DAY_S = 86_400.0


class WallClock:
    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jump", "reason"), [(DAY_S, "from_future"), (-DAY_S, "stale")], ids=["a day ahead", "a day behind"]
)
async def test_a_clock_that_jumps_stops_no_learning_and_is_said(tmp_path: Path, jump: float, reason: str) -> None:
    hub, clock, policy = Hub(), WallClock(), save_tiny_policy(tmp_path / "policy")

    def join(identity: Any, membership: Any, journal: Any) -> Any:
        return hub.join(identity.peer_id, journal)

    def admitted(node: RunningNode) -> int:
        return node.ledger.admitted.total()

    async with AsyncExitStack() as stack:
        stopping = asyncio.Event()
        jumping = await open_node(config_of(policy, tmp_path / "jumping"), stack, stopping, join, clock)
        steady = await open_node(config_of(policy, tmp_path / "steady"), stack, stopping, join)
        lives = [asyncio.create_task(node.run()) for node in (jumping, steady)]
        await until(lambda: admitted(jumping) > 0, jumping)
        await until(lambda: admitted(steady) > 0, steady)
        clock.offset = jump
        await until(lambda: any("the clock jumped" in warning for warning in jumping.status().warnings), jumping)
        await until(lambda: steady.status().refused[reason] > 0, steady)
        steps = jumping.learning.steps
        await until(lambda: jumping.learning.steps >= steps + 5, jumping)
        assert not any(part.restarts for part in jumping.status().parts)
        clock.offset = 0.0
        before = admitted(steady)
        await until(lambda: admitted(steady) > before, steady)
        stopping.set()
        await asyncio.wait_for(asyncio.gather(*lives), PATIENCE_S)
