"""A disk that fills up: the last of it is the checkpoint's, and what was held goes on when there is room again."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.config import DiskConfig
from node.disk import MIB, DiskWatch, largest_checkpoint, next_checkpoint, size_of
from node.holds import Holds
from node.journal import Journal
from node.operated import RunningNode
from swarm.wire.v1 import node_pb2
from tests.builders import signed
from tests.policies import save_tiny_policy
from tests.test_node import config_of, running, until

CONFIG = DiskConfig(checkpoints=2.0, margin_mib=10.0, clearance=0.1)
CHECKPOINT = 45 * MIB  # so that 100 MiB are to stay free, and 110 let things go on


@dataclass(frozen=True)
class Free:
    free: int


def watch_of(directory: Path, free: Sequence[float]) -> tuple[DiskWatch, list[str]]:
    """Which finds so many MiB free, one after the other."""
    warnings, found = list[str](), iter(free)
    watch = DiskWatch(
        CONFIG, directory, Holds(), lambda: CHECKPOINT, warnings.append, lambda _: Free(int(next(found) * MIB))
    )
    return watch, warnings


# The rule -------------------------------------------------------------------------------------------------------------


async def test_the_last_of_the_disk_is_held_back_and_given_again_with_some_clearance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "node.disk")
    watch, warnings = watch_of(tmp_path, [500, 100, 99.9, 50, 100, 109.9, 110.1, 105, 99])
    seen = []
    for _ in range(9):
        await watch.look()
        seen.append(watch.room.open)
    assert seen == [True, True, False, False, False, False, True, True, False]
    assert len(warnings) == 2, "once each time that it begins"
    assert watch.gauges() == {"disk_free_mib": 99.0, "disk_reserve_mib": 100.0}
    assert watch.room.reasons == [
        f"disk: 99 MiB are free where {tmp_path} is, and the last 100 MiB are kept for checkpoints: no sampling and no"
        " journalling until there is room (make some, or lower journal.max_groups)"
    ]
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.INFO, logging.WARNING]


async def test_a_disk_that_cannot_be_asked_holds_nothing(tmp_path: Path) -> None:
    def fails(path: Path) -> Free:
        raise PermissionError(1, "Operation not permitted")

    warnings = list[str]()
    watch = DiskWatch(CONFIG, tmp_path, Holds(), lambda: 0, warnings.append, fails)
    await watch.look()
    assert watch.room.open
    assert warnings == [f"disk: free space of {tmp_path} cannot be told: Operation not permitted"]


def test_what_the_next_checkpoint_needs(tmp_path: Path) -> None:
    assert next_checkpoint(tmp_path, 1000) == 12_000, "weights and two moments, before there is one"
    for name, size in (("step-00000001", 20_000), ("step-00000002", 30_000)):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "weights").write_bytes(bytes(size))
        (tmp_path / name / "state.json").write_bytes(bytes(500))
    assert size_of(tmp_path / "step-00000001") == 20_500
    assert largest_checkpoint(tmp_path) == next_checkpoint(tmp_path, 1000) == 30_500
    assert largest_checkpoint(tmp_path / "nowhere") == 0


async def test_holders_are_independent() -> None:
    holds = Holds()
    await asyncio.wait_for(holds.wait(), 1)
    holds.hold("a", "first")
    holds.hold("b", "second")
    holds.hold("a", "first, again")
    waiting = asyncio.create_task(holds.wait())
    holds.release("a")
    holds.release("c")
    await asyncio.sleep(0)
    assert not waiting.done()
    assert (holds.open, holds.reasons) == (False, ["second"])
    holds.release("b")
    await asyncio.wait_for(waiting, 1)
    assert holds.open


@pytest.mark.parametrize("own", [True, False])
async def test_nobody_is_journalled_while_there_is_no_room(tmp_path: Path, own: bool) -> None:
    room = Holds()
    async with Journal.open(tmp_path / "journal.db", 100, room) as journal:
        room.hold("disk", "full")
        size = size_of(tmp_path)
        append = asyncio.create_task(journal.append(signed(0), [1.0], own=own))
        done, _ = await asyncio.wait({append}, timeout=0.2)
        assert not done
        assert size_of(tmp_path) == size
        room.release("disk")
        assert await asyncio.wait_for(append, 10)
        assert await journal.known(signed(0).id)


# Whole nodes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


async def at_a_standstill(node: RunningNode) -> int:
    """The journal's head, once its room is held and the learner has used up what was in the pool."""
    async with asyncio.timeout(60):
        while node.disk.room.open:  # noqa: ASYNC110 - the disk has no event
            await asyncio.sleep(0.02)
        await node.journal.read(0, 1)  # after what was on its way
        head = node.journal.head
        while node.pool.level.own >= node.config.pool.own_groups:  # noqa: ASYNC110 - nor has the pool
            await asyncio.sleep(0.02)
    return head


async def goes_on(node: RunningNode, head: int) -> None:
    steps = node.learning.steps
    await until(lambda: node.learning.steps > steps + 1 and node.journal.head > head, node)
    assert node.status().state == node_pb2.NODE_STATE_RUNNING
    assert not node.status().holds


async def test_a_node_on_a_full_disk_keeps_its_checkpoint_and_goes_on(policy: Path, tmp_path: Path) -> None:
    config = config_of(policy, tmp_path / "node", disk={"check_s": 0.02, "margin_mib": 10})
    async with running(config) as node:
        await until(lambda: node.learning.steps >= 2, node)
        assert node.status().metrics["disk_free_mib"] > 0
        node.disk._usage = lambda _: Free(9 * MIB)
        head = await at_a_standstill(node)
        status = node.status()
        assert status.state == node_pb2.NODE_STATE_PAUSED
        assert status.holds[0].startswith("disk: 9 MiB are free")
        path, step = await node.checkpoint()
        assert path.endswith(f"step-{step:08d}")
        assert step == node.learning.steps
        assert node.journal.head == head, "nothing was journalled meanwhile"
        node.disk._usage = lambda _: Free(1 << 40)
        await goes_on(node, head)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_a_node_on_a_small_file_system(policy: Path, small_disk: Path) -> None:
    config = config_of(policy, small_disk / "node", disk={"check_s": 0.02, "margin_mib": 4})
    async with running(config) as node:
        await until(lambda: node.learning.steps >= 2, node)
        reserve = int(node.disk.gauges()["disk_reserve_mib"] * MIB)
        free = os.statvfs(small_disk)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - reserve + MIB))
        head = await at_a_standstill(node)
        for _ in range(3):  # three times: the one before goes only when the next is there
            await node.checkpoint()
        assert node.journal.head == head
        assert node.status().state == node_pb2.NODE_STATE_PAUSED
        ballast.unlink()
        await goes_on(node, head)
    assert largest_checkpoint(small_disk / "node" / "checkpoints") > 0
