"""A libp2p daemon that is killed or stopped, a process that is stopped and goes on, a network that is cut."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from swarm.wire.v1 import node_pb2
from tests.bench.partition import split, unavailable
from tests.chaos.record import record
from tests.chaos.swarm import Mortal, mortals
from tests.processes import PATIENCE_S, gone

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(3600)]


def daemons(mortal: Mortal) -> list[psutil.Process]:
    assert mortal.child is not None
    return [each for each in psutil.Process(mortal.child.pid).children(recursive=True) if "p2pd" in each.name()]


async def two(first: Mortal, second: Mortal) -> None:
    """Returns when they have each other's groups."""
    await first.start()
    there = await first.until(lambda status: bool(status.addresses))
    assert there is not None, first.told()
    await second.start(list(there.addresses))
    for each in (first, second):
        met = await each.until(lambda status: bool(status.admitted))
        assert met is not None, each.told()
        each.peer = met.peer


async def exchanging(reader: Mortal, author: Mortal) -> None:
    """Returns when `reader` has a group of `author`'s that it had not when this was asked."""
    before = await reader.until(lambda status: True)
    assert before is not None
    seen = before.admitted[author.peer]
    assert await reader.until(lambda status: status.admitted[author.peer] > seen) is not None, reader.told()


async def stopped(mortal: Mortal) -> None:
    assert mortal.child is not None
    mortal.child.send(signal.SIGTERM)
    assert await asyncio.wait_for(mortal.child.wait(), PATIENCE_S) == 0, mortal.told()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.chaos)])
async def test_a_daemon_that_is_killed_is_replaced_and_none_is_left(tmp_path: Path, kills: int) -> None:
    async with mortals(tmp_path, ["first", "second"]) as (first, second):
        await two(first, second)
        back, dead = list[float](), list[psutil.Process]()
        for number in range(1, kills + 1):
            (daemon,) = daemons(first)
            daemon.kill()
            began = time.monotonic()

            def replaced(status: node_pb2.NodeStatus, killed: psutil.Process = daemon) -> bool:
                # A status may be from before the kill, and a restart may fail once more: its port is not free yet.
                others = [each for each in daemons(first) if each != killed]
                return status.network == "up" and len(others) == len(daemons(first)) == 1

            up = await first.until(replaced)
            assert up is not None, first.told()
            assert up.counters["network_restarts"] >= number
            back.append(time.monotonic() - began)
            dead.append(daemon)
        await exchanging(first, second)
        await exchanging(second, first)
        left = daemons(first) + daemons(second)
        for each in (first, second):
            await stopped(each)
        assert gone([*left, *dead])
        record("p2pd killed", kills=kills, slowest_back_s=max(back), mean_back_s=sum(back) / len(back))


@pytest.mark.parametrize("seconds", [30, pytest.param(180, marks=pytest.mark.chaos)])
async def test_a_node_whose_daemon_is_stopped_learns_on_and_gets_another(tmp_path: Path, seconds: int) -> None:
    """Stopped again as often as it is replaced: for so long there is no network."""
    async with mortals(tmp_path, ["first", "second"]) as (first, second):
        await two(first, second)
        before = await first.until(lambda status: True)
        assert before is not None
        end = time.monotonic() + seconds
        frozen = dict[int, psutil.Process]()
        while time.monotonic() < end:
            for daemon in daemons(first):
                if daemon.pid not in frozen:
                    daemon.suspend()
                    frozen[daemon.pid] = daemon
            await asyncio.sleep(0.5)
        after = await first.until(lambda status: True)
        assert after is not None, first.told()
        assert after.steps >= before.steps + 10, "no step waits for the network"
        for daemon in frozen.values():
            if daemon.is_running():
                daemon.resume()
        await exchanging(first, second)
        for each in (first, second):
            await stopped(each)
        assert gone(list(frozen.values()))
        record("p2pd stopped", seconds=seconds, daemons=len(frozen), steps=after.steps - before.steps)


@pytest.mark.parametrize("seconds", [10, pytest.param(120, marks=pytest.mark.chaos)])
async def test_a_process_that_was_stopped_says_so_and_goes_on(tmp_path: Path, seconds: int) -> None:
    async with mortals(tmp_path, ["first", "second"]) as (first, second):
        await two(first, second)
        assert first.child is not None
        os.kill(first.child.pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(first.child.pid, signal.SIGCONT)
        said = await first.until(lambda status: any("stood still" in warning for warning in status.warnings))
        assert said is not None, first.told()
        on = await first.until(lambda status: status.steps >= said.steps + 6)
        assert on is not None
        await exchanging(first, second)
        await exchanging(second, first)
        for each in (first, second):
            await stopped(each)
        (warning,) = [warning for warning in said.warnings if "stood still" in warning]
        record("SIGSTOP", seconds=seconds, warning=warning)


@pytest.mark.chaos
async def test_a_swarm_that_is_cut_in_two_for_minutes_heals(tmp_path: Path) -> None:
    """The short one is tests/test_partition.py."""
    if why := unavailable():
        pytest.skip(why)
    healed = await split(tmp_path, 120.0, each=2, every_s=0.5)
    assert healed.complete
    record("partition", seconds=120, merged_s=healed.merged_s)
