"""Learner and engine that fail in a real node, again and again."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.chaos.record import record
from tests.chaos.swarm import findings, mortals
from tests.processes import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("part", ["learner", "engine"])
@pytest.mark.parametrize("faults", [6, pytest.param(50, marks=pytest.mark.chaos)])
async def test_a_part_that_fails_again_and_again_takes_nothing_else_with_it(
    tmp_path: Path, part: str, faults: int
) -> None:
    async with mortals(tmp_path, ["node"]) as (node,):
        child = await node.start(fault=f"fail-{part}:{faults}:{len(part)}")

        def over(status: object) -> bool:
            return status.counters[f"{part}_restarts"] >= faults  # pyright: ignore[reportAttributeAccessIssue]

        struck = await node.until(over)
        assert struck is not None, node.told()
        later = await node.until(lambda status: status.steps >= struck.steps + 6)
        assert later is not None, node.told()
        (state,) = [each for each in later.parts if each.name == part]
        assert (state.state, state.restarts) == ("up", faults)
        assert state.last_error.split(":")[0] in ("OutOfMemoryError", "RuntimeError", "ValueError")
        assert {each.restarts for each in later.parts if each.name != part} == {0}, "the others never noticed"
        child.send(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), PATIENCE_S) == 0
        found = findings(node)
        record(f"{part} failed", faults=faults, **found)
        for what in ("lost", "trained twice", "steps out of order", "trained, not journalled"):
            assert not found[what], (what, found)
