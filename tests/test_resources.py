"""What a process uses and does not give back: when it is an alarm, and that peers and streams leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from node.alarms import Alarm
from node.ledger import Ledger
from node.resources import SLACK, WINDOW_S, WINDOWS, Growth, Resources, Slack, gauges
from swarm.errors import NetworkError
from swarm.net.streams import PULL, write_frame
from swarm.wire.v1 import node_pb2
from tests.test_exchange import DEADLINE_S, node


def grown(lowest: Sequence[float], slack: Slack = Slack(most=5.0)) -> float:  # noqa: B008 - frozen
    """After windows with these lowest readings, each with a higher one before and after it, and a last one that has
    just begun."""
    growth = Growth(slack, window_s=10.0, windows=4)
    for number, value in enumerate(lowest):
        for second, above in ((0.0, 7.0), (3.0, 0.0), (9.0, 100.0)):
            growth.observe(10.0 * number + second, value + above)
    growth.observe(10.0 * len(lowest), 1e9)
    return growth.grown


@pytest.mark.parametrize(
    ("lowest", "expected"),
    [
        ([10, 12, 14, 16], 6.0),
        ([10, 10, 10, 16], 6.0),
        ([10, 12, 14, 15], 0.0),  # within the slack
        ([10, 30, 20, 40], 0.0),  # something was given back
        ([10, 20, 30], 0.0),  # too early
        ([90, 10, 12, 14, 16], 6.0),  # only the last windows count
        ([16, 14, 12, 10], 0.0),
    ],
)
def test_growth_is_what_no_window_gave_back(lowest: Sequence[float], expected: float) -> None:
    assert grown(lowest) == expected


def test_a_share_of_what_there_was_is_no_growth() -> None:
    assert grown([1000, 1050, 1100, 1250], Slack(most=100.0, share=0.25)) == 0.0
    assert grown([1000, 1050, 1100, 1251], Slack(most=100.0, share=0.25)) == 251.0


def test_a_leak_becomes_an_alarm_that_ends_when_it_is_given_back() -> None:
    now, ledger = 0.0, Ledger()
    heard = list[tuple[list[str], list[str]]]()

    def changed(alarms: Sequence[Alarm], new: Sequence[Alarm]) -> None:
        heard.append(([alarm.name for alarm in alarms], [alarm.name for alarm in new]))
        ledger.grows(alarms, new)

    resources = Resources(lambda: 7, changed, lambda: now)
    for number in range(WINDOWS + 2):
        now = number * WINDOW_S
        resources.look({"open_files": 100.0 + 20.0 * number, "threads": 30.0})
    assert heard == [(["growing_open_files"], ["growing_open_files"]), (["growing_open_files"], [])]
    assert resources.gauges() == {"open_files": 260.0, "threads": 30.0}
    status = node_pb2.NodeStatus()
    ledger.fill(status)
    (alarm,) = status.alarms
    assert (alarm.name, alarm.since_step, alarm.value, alarm.threshold) == (
        "growing_open_files",
        7,
        120.0,
        SLACK["open_files"].most,
    )
    assert alarm.text.startswith("open_files has risen by 120 in 60 minutes")
    for number in range(WINDOWS + 2, WINDOWS + 4):
        now = number * WINDOW_S
        resources.look({"open_files": 100.0, "threads": 30.0})
    assert heard[-1] == ([], [])
    assert ledger.counters["alarms"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="what /proc says")
def test_the_gauges_are_of_this_process() -> None:
    before = gauges()
    assert before.keys() == SLACK.keys()
    assert before["rss_mib"] > 10
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(3)]
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    child = subprocess.Popen(["sh", "-c", "sleep 60 & read line"], stdin=subprocess.PIPE)
    try:
        for thread in threads:
            thread.start()
        while (after := gauges())["children"] < before["children"] + 2:
            pass  # the shell takes a moment to start its own
        assert after["threads"] == before["threads"] + 3
        assert after["open_files"] == before["open_files"] + 5 + 1  # and the child's stdin
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for file in files:
            os.close(file)
        subprocess.run(["pkill", "-P", str(child.pid)], check=False)
        child.kill()
        assert child.stdin
        child.stdin.close()
        child.wait()
    after = gauges()
    assert {name: after[name] for name in ("threads", "open_files", "children")} == {
        name: before[name] for name in ("threads", "open_files", "children")
    }


# Real peers, real streams ---------------------------------------------------------------------------------------------


def held() -> dict[str, float]:
    """What a leak would let grow, rid of what waits to be collected."""
    gc.collect()
    return {name: value for name, value in gauges().items() if name != "rss_mib"}


async def all_threads() -> None:
    """Makes every thread that the loop's pool will ever have: it starts them one by one, as they are needed."""
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(64)))


async def settles(most: dict[str, float]) -> None:
    """Returns once no gauge is above `most`; fails showing those that stay there."""
    loop = asyncio.get_running_loop()
    until = loop.time() + DEADLINE_S
    while above := {name: (value, most[name]) for name, value in held().items() if value > most[name]}:
        assert loop.time() < until, above
        await asyncio.sleep(0.1)


@pytest.mark.network
async def test_peers_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    await all_threads()
    async with node(tmp_path / "staying") as staying:

        async def visit(number: int) -> None:
            async with node(tmp_path / f"guest-{number}", *staying.exchange.addresses) as guest:
                guest.publish(number)
                staying.publish(100 + number)
                await asyncio.gather(staying.receive(1), guest.receive(1))

        await visit(0)  # what is made once: pools of threads, tables
        before = held()
        for number in range(1, 5):
            await visit(number)
        await settles(before)


@pytest.mark.network
async def test_hundreds_of_streams_leave_nothing_behind(tmp_path: Path) -> None:
    async with node(tmp_path / "a") as a, node(tmp_path / "b", *a.exchange.addresses) as b:
        await all_threads()
        await b.see(a)
        stack = b.exchange._stack
        assert stack is not None

        async def use(broken: bool) -> None:
            # the other side closes those over its limits unread, at any moment: this test asks what is left of them
            with contextlib.suppress(NetworkError, ConnectionError):
                reader, writer = await stack.open_stream(a.peer, PULL)
                try:
                    if broken:
                        await write_frame(writer, b"no request")
                finally:
                    writer.close()
                assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""

        await use(broken=True)
        before = held()
        for number in range(150):
            await use(broken=number % 2 == 0)
        await settles({name: value + 8 for name, value in before.items()})  # what the nodes do between themselves
