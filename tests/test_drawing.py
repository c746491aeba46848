"""Batches drawn when they are wanted, or one ahead: for which version, of which groups, and what a pause does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, cast

from node.drawing import Drawing
from node.learning import Learning
from node.pool import RolloutPool
from swarm.types import PolicyVersion


class Drawn:
    """A `Learning` as far as drawing goes: groups are numbers, two a batch, and come when they are put in."""

    def __init__(self) -> None:
        self.version = PolicyVersion(0)
        self.groups: asyncio.Queue[int] = asyncio.Queue()
        self.running = asyncio.Event()
        self.running.set()
        self.versions: list[int] = []

    async def draw(self, pool: object, version: PolicyVersion | None = None) -> list[int]:
        await self.running.wait()
        self.versions.append(self.version if version is None else version)
        return [await self.groups.get(), await self.groups.get()]

    async def prepare(self, groups: Sequence[int], version: PolicyVersion) -> str:
        return f"{list(groups)} for {version}"

    async def waiting_for(self, drawn: Awaitable[Any]) -> Any:
        result = await drawn
        await self.running.wait()
        return result


def drawing(learning: Drawn, *, ahead: bool) -> Drawing:
    return Drawing(cast(Learning, learning), cast(RolloutPool, None), ahead=ahead)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_by_default_nothing_is_drawn_before_it_is_wanted() -> None:
    learning = Drawn()
    for number in range(6):
        learning.groups.put_nowait(number)
    async with drawing(learning, ahead=False) as batches:
        first = await batches.next()
        await settle()
        assert learning.groups.qsize() == 4
        learning.version = PolicyVersion(1)
        second = await batches.next()
    assert (first.groups, second.groups) == ([0, 1], [2, 3])
    assert first.prepared is second.prepared is None
    assert learning.versions == [0, 1]


async def test_the_next_batch_is_drawn_and_prepared_during_a_step_for_the_version_after_it() -> None:
    learning = Drawn()
    for number in range(4):
        learning.groups.put_nowait(number)
    async with drawing(learning, ahead=True) as batches:
        first = await batches.next()
        await settle()
        assert learning.groups.qsize() == 0
        learning.version = PolicyVersion(1)
        second = await batches.next()
    assert (first.groups, first.prepared) == ([0, 1], None)
    assert (second.groups, second.prepared) == ([2, 3], "[2, 3] for 1")
    assert learning.versions == [0, 1]


async def test_a_node_that_is_paused_gets_no_batch_even_if_it_was_drawn_before() -> None:
    learning = Drawn()
    for number in range(4):
        learning.groups.put_nowait(number)
    async with drawing(learning, ahead=True) as batches:
        await batches.next()
        await settle()
        learning.running.clear()
        second = asyncio.create_task(batches.next())
        await settle()
        assert not second.done()
        learning.running.set()
        assert (await second).groups == [2, 3]


async def test_what_was_drawn_before_the_learner_went_back_is_not_trained_on() -> None:
    learning = Drawn()
    for number in range(6):
        learning.groups.put_nowait(number)
    async with drawing(learning, ahead=True) as batches:
        await batches.next()
        await settle()
        learning.version = PolicyVersion(2)  # after a step, and back as a version of its own
        assert (await batches.next()).groups == [4, 5]


async def test_leaving_gives_up_what_is_being_drawn() -> None:
    learning = Drawn()
    learning.groups.put_nowait(0)
    learning.groups.put_nowait(1)
    async with drawing(learning, ahead=True) as batches:
        await batches.next()
        await settle()
    assert learning.versions == [0, 1]
    assert len(asyncio.all_tasks()) == 1
