from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from node.metrics import LoopDelay, MetricsLog


def test_delay_gauges_are_the_maximum_and_the_nearest_rank_p99_of_the_window() -> None:
    now = 0.0
    delay = LoopDelay(window_s=60.0, clock=lambda: now)
    assert delay.gauges() == {"loop_delay_max_ms": 0.0, "loop_delay_p99_ms": 0.0}
    delay.record(0.0, 9.0)  # falls out of the window below
    for i in range(200):
        delay.record(30.0, i / 1000)
    now = 61.0
    assert delay.gauges() == pytest.approx({"loop_delay_max_ms": 199.0, "loop_delay_p99_ms": 197.0})
    now = 91.0
    assert delay.gauges() == {"loop_delay_max_ms": 0.0, "loop_delay_p99_ms": 0.0}


async def test_a_call_that_blocks_the_loop_shows() -> None:
    delay = LoopDelay(tick_s=0.001)
    task = asyncio.create_task(delay.run())
    await asyncio.sleep(0)  # until it sleeps
    time.sleep(0.05)  # noqa: ASYNC251  # the very thing that is measured
    await asyncio.sleep(0.002)  # due after the tick, so the tick comes first
    task.cancel()
    assert delay.gauges()["loop_delay_max_ms"] >= 45


async def written(log: MetricsLog) -> None:
    """Runs the log until it has written what it was given."""
    task = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_json_object_a_line_in_order(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(3):
        log.append({"step": step, "loss": 0.5, "kl": float("nan"), "arm": "spo"})
    await written(log)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "loss": 0.5, "kl": None, "arm": "spo"} for step in range(3)
    ]


async def test_it_writes_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    task = asyncio.create_task(log.run())
    for step in range(2):
        log.append({"step": step})
        async with asyncio.timeout(10):
            while not path.exists() or path.read_text().count("\n") <= step:  # noqa: ASYNC110  # a file has no event
                await asyncio.sleep(0.001)
    task.cancel()


async def test_it_goes_on_where_an_earlier_run_ended(tmp_path: Path) -> None:
    for step in range(2):
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log.append({"step": step})
        await written(log)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'


async def test_it_takes_no_more_than_twice_its_bound(tmp_path: Path) -> None:
    line = len('{"step": 0}\n')
    for step in range(8):
        log = MetricsLog(tmp_path / "metrics.jsonl", max_bytes=3 * line)
        log.append({"step": step})
        await written(log)
    assert (tmp_path / "metrics.jsonl.1").read_text() == '{"step": 3}\n{"step": 4}\n{"step": 5}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 6}\n{"step": 7}\n'
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "metrics.jsonl.1"]


async def test_a_disk_that_fails_is_a_warning(tmp_path: Path) -> None:
    warned: asyncio.Future[str] = asyncio.Future()
    log = MetricsLog(tmp_path / "no" / "such" / "metrics.jsonl", warn=warned.set_result)
    log.append({"step": 0})
    task = asyncio.create_task(log.run())
    async with asyncio.timeout(10):
        assert await warned == "metrics.jsonl: lines lost: No such file or directory"
    task.cancel()


async def test_what_waits_is_bounded(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", max_waiting=2)
    for step in range(5):
        log.append({"step": step})
    await written(log)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3}\n{"step": 4}\n'


async def test_what_waits_is_bounded_in_bytes(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", max_waiting_bytes=100)
    for step in range(5):
        log.append({"step": step, "text": "x" * 20})  # 38 bytes a line
    await written(log)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [3, 4]
