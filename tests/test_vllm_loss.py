"""An engine that dies, hangs, does not start or is not wanted any more: who notices, who goes on, what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from node.config import VllmEngine
from node.supervision import SupervisionConfig
from swarm.errors import CrashLoop, EngineError
from tests.policies import save_tiny_policy
from tests.vllm_rig import (
    EXACT,
    LONG,
    MARKS,
    PROMPT,
    SLOTS,
    Rig,
    engine_processes,
    none_alive,
    rig,
    spec_of,
    until,
)

pytestmark = [*MARKS, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[1]
START_S = 120.0
"""Most that an engine's start takes, on a machine that is busy."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"), head_dim=32)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(policy: Path) -> AsyncIterator[Rig]:
    async with rig(policy, VllmEngine(stall_timeout_s=4.0, update_timeout_s=8.0)) as up:
        yield up


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Stopped ones would outlive a failed test."""
    yield
    for process in engine_processes():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def core_and_worker() -> tuple[psutil.Process, psutil.Process]:
    core, worker = engine_processes()
    assert (core.name(), worker.name()) == ("VLLM::EngineCore", "VLLM::Worker")
    return core, worker


async def replaced(up: Rig, engines: int) -> None:
    """Returns when there is another engine than the first `engines`, which samples with the newest weights."""
    await until(lambda: len(up.engines) > engines and up.generator.gauges()["engine_version"] == up.learner.version)
    (completion,) = await up.whole(1, 20)
    assert up.learner.error(PROMPT, completion) < EXACT


async def test_requests_go_on_when_the_engine_dies(up: Rig) -> None:
    old = core_and_worker()
    before = up.counters.copy()
    sampling = asyncio.create_task(up.whole(2 * SLOTS, LONG))
    await until(lambda: up.unfinished == SLOTS)
    longest = 0.0  # that something kept the event loop for itself, in seconds

    async def watch() -> None:
        nonlocal longest
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - started - 0.01)

    watching = asyncio.create_task(watch())
    old[0].kill()
    await up.generator.load(up.learner.learn())
    for completion in await asyncio.wait_for(sampling, START_S):
        assert up.learner.error(PROMPT, completion) < EXACT
    watching.cancel()
    counted = up.counters - before
    assert (counted["engine_restarts"], counted["resampled"]) == (1, SLOTS)
    assert len([c for c in sampling.result() if c.versions[-1].version == up.learner.version]) > SLOTS
    assert none_alive(old)
    assert up.warnings == ["the engine is started again: vLLM's processes are dead"]
    assert longest < 1.0
    assert up.generator.gauges()["engine_in_flight"] == 0


async def test_an_idle_engine_that_dies_is_replaced(up: Rig) -> None:
    core, worker = core_and_worker()
    engines = len(up.engines)
    worker.kill()
    await until(lambda: len(up.engines) > engines, START_S)
    await replaced(up, engines)
    assert none_alive([core, worker])


async def test_requests_go_on_when_the_engine_hangs(up: Rig) -> None:
    old, before = core_and_worker(), up.counters.copy()
    sampling = asyncio.create_task(up.whole(SLOTS, LONG))
    await up.under_way(SLOTS)
    old[1].suspend()
    for completion in await asyncio.wait_for(sampling, START_S):
        assert up.learner.error(PROMPT, completion) < EXACT
    assert up.warnings[-1] == "the engine is started again: no token for 4 s (engine.stall_timeout_s)"
    assert (up.counters - before)["engine_restarts"] == 1
    assert none_alive(old)


async def test_an_update_that_hangs_costs_the_engine(up: Rig) -> None:
    old, engines = core_and_worker(), len(up.engines)
    old[1].suspend()
    await up.generator.load(up.learner.learn())
    await until(lambda: len(up.engines) > engines, START_S)
    await replaced(up, engines)
    assert up.warnings[-1] == "the engine is started again: vLLM did not answer within 8 s"
    assert none_alive(old)


async def test_nothing_is_left_when_it_is_closed_under_requests(up: Rig) -> None:
    """The last test of this engine. Whoever still waits is told, even if vLLM ends the task that would tell them before
    it ends the one that has the news, as its shutdown may."""
    old = core_and_worker()
    sampling = asyncio.create_task(up.whole(2 * SLOTS, LONG))
    await until(lambda: up.unfinished == SLOTS)
    assert up.engine.llm.output_handler is not None
    up.engine.llm.output_handler.cancel()
    await up.generator.__aexit__(None, None, None)
    await until(lambda: none_alive(old) and not engine_processes())  # the kernel takes its time with the killed
    with pytest.raises(EngineError, match="closed"):
        await asyncio.wait_for(sampling, 5.0)


async def test_a_node_may_do_without_another_engine(policy: Path) -> None:
    async with rig(policy, supervision=SupervisionConfig(max_restarts=0)) as up:
        core, worker = core_and_worker()
        sampling = asyncio.create_task(up.whole(SLOTS, LONG))
        await up.under_way(SLOTS)
        worker.kill()
        for call in (sampling, asyncio.create_task(up.sample(1, 1))):
            with pytest.raises(CrashLoop, match=r"failed 1 times .*restarts = 0\): vLLM's processes are dead"):
                await asyncio.wait_for(call, 30.0)
        assert none_alive([core, worker])
        await up.generator.load(up.learner.learn())
        async with up.generator.make_room():
            pass
    assert len(up.engines) == 1


async def test_nothing_is_left_when_it_is_closed_while_it_starts(policy: Path) -> None:
    """As a node does that is stopped soon after its start."""

    async def start() -> None:
        async with rig(policy):
            pytest.fail("it started")

    seen: set[psutil.Process] = set()

    def started(processes: int) -> bool:
        seen.update(engine_processes())
        return len(seen) >= processes

    starting = asyncio.create_task(start())
    await until(lambda: started(1), START_S)
    starting.cancel()
    await until(lambda: started(2) and starting.done(), START_S)  # a start under way cannot be stopped, only undone
    assert starting.cancelled()
    await until(lambda: none_alive(seen))


OWNER = """\
import asyncio, sys
from pathlib import Path
from tests.vllm_rig import engine_processes, rig

async def main():
    async with rig(Path(sys.argv[1])):
        print(*[process.pid for process in engine_processes()], flush=True)
        await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_an_engine_dies_with_the_node_that_started_it(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "owner.py").write_text(OWNER)
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, str(tmp_path / "owner.py"), str(policy)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert owner.stdout is not None
    engine: list[psutil.Process] = []
    try:
        line = await asyncio.wait_for(owner.stdout.readline(), START_S)
        engine += [psutil.Process(int(pid)) for pid in line.split()]
        assert len(engine) == 2
        owner.kill()
        await until(lambda: none_alive(engine))
    finally:
        for process in (owner, *engine):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        await owner.communicate()  # until nobody has its output open any more


async def test_an_engine_that_does_not_start_says_why(policy: Path) -> None:
    with pytest.raises(
        EngineError, match=r"^vLLM does not start: ValueError: No available memory for the cache blocks"
    ):
        async with asyncio.timeout(START_S), rig(policy, spec=spec_of(policy, kv_cache_bytes=1)):
            pytest.fail("it started")
    await until(lambda: engine_processes() == [])


async def test_an_engine_that_never_samples_says_why(tmp_path: Path) -> None:
    """vLLM notices only when it is to compute something. Another one would be no better."""
    policy = save_tiny_policy(tmp_path, head_dim=16)
    with pytest.raises(EngineError, match=r"^vLLM's processes are dead: RuntimeError: Unsupported .* head_dim=16"):
        async with asyncio.timeout(START_S), rig(policy):
            pytest.fail("it started")
    await until(lambda: engine_processes() == [])
