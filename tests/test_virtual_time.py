"""A loop whose clock jumps: real coroutines, hours in milliseconds, the same order every time."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from swarm.net.virtual_time import Deadlock, run


def test_a_sleeper_is_woken_at_its_time_and_at_once():
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    begin = time.perf_counter()
    assert run(main()) == 3600
    assert time.perf_counter() - begin < 60


def test_sleepers_wake_in_the_order_of_their_times():
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await asyncio.sleep(nap)
            woken.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(sleeper("slow", 5, 5), sleeper("fast", 2, 2, 2))

    run(main())
    assert woken == [("fast", 2), ("fast", 4), ("slow", 5), ("fast", 6), ("slow", 10)]


def test_time_stands_still_while_something_is_ready():
    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run(main()) == 0


def test_a_time_limit_ends_what_takes_longer():
    async def main() -> None:
        async with asyncio.timeout(10):
            await asyncio.sleep(11)

    with pytest.raises(TimeoutError):
        run(main())


def test_work_for_a_thread_is_done_at_once_and_here():
    async def main() -> tuple[str, float]:
        name = await asyncio.to_thread(lambda: threading.current_thread().name)
        return name, asyncio.get_running_loop().time()

    assert run(main()) == (threading.current_thread().name, 0)


def test_an_error_in_work_for_a_thread_is_raised_where_it_is_awaited():
    async def main() -> None:
        await asyncio.to_thread(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        run(main())


def test_a_loop_on_which_everybody_waits_says_so():
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(main())
