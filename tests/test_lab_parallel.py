"""Real child processes, one of which dies on purpose."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from pyarrow import parquet
from rich.console import Console

from node.lab.live import Progress
from node.lab.parallel import Event, run_all
from node.lab.plan import Choice, Plan, Run, plan
from node.lab.results import ResultStore, RunKey
from tests.fake_experiment import EXPERIMENT, outcome

ROOT = Path(__file__).parents[1]
FAKE = "tests.fake_experiment"


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def runs_of(store: ResultStore, *arms: str, seeds: tuple[int, ...] = (1,)) -> list[Run]:
    return list(plan([Choice(FAKE, EXPERIMENT, [EXPERIMENT.arm(arm) for arm in arms], seeds)], store).missing)


async def test_runs_are_made_once_by_two_invocations_at_a_time(store: ResultStore, tmp_path: Path) -> None:
    runs = runs_of(store, "plain", "gain=0.2", seeds=(1, 2))
    events: list[Event] = []
    records = tmp_path / "records"
    await asyncio.gather(
        run_all(runs, store, processes=2, heard=events.append, records=records),
        run_all(runs, store, processes=1, heard=events.append, records=records),
    )
    for kind in ("started", "done", "elsewhere"):
        assert Counter(event.run.key for event in events if event.kind == kind) == {run.key: 1 for run in runs}, kind
    assert runs_of(store, "plain", "gain=0.2", seeds=(1, 2)) == []
    result = store.get(runs[1].key, runs[1].digest)
    assert result is not None
    assert result.summary == outcome(0.2, 1).summary
    assert parquet.read_table(records / "fake/plain/seed-2.parquet").to_pylist() == outcome(0.0, 2).records
    assert {path.suffix for path in store.root.rglob("*") if path.is_file()} == {".json"}


async def test_runs_that_fail_say_why_and_do_not_stop_the_others(store: ResultStore) -> None:
    runs = runs_of(store, "raises", "dies", "forgets", "plain")
    events: list[Event] = []
    await run_all(runs, store, processes=2, heard=events.append)
    ends = {event.run.key.arm: event for event in events if event.kind != "started"}
    assert {arm: event.kind for arm, event in ends.items()} == {
        "raises": "failed", "dies": "failed", "forgets": "failed", "plain": "done"
    }  # fmt: skip
    assert ends["raises"].detail.endswith("ZeroDivisionError: nothing divides by seed 1 - 1")
    assert "exit code -9" in ends["dies"].detail
    assert ends["forgets"].detail.endswith("ValueError: fake: summary of a run lacks loss; it has pass")
    assert runs_of(store, "raises", "dies", "forgets", "plain") == runs[:3]


async def test_a_run_that_was_finished_since_the_plan_is_not_made_again(store: ResultStore) -> None:
    run = runs_of(store, "raises")[0]
    store.put(run.key, run.digest, outcome(0.0, 1), wall_s=1.0)
    events: list[Event] = []
    await run_all([run], store, processes=1, heard=events.append)
    assert events == [Event(run, "elsewhere")]


async def test_a_run_that_makes_something_else_than_was_asked_for_has_failed(store: ResultStore) -> None:
    """Its settings were changed between the plan and the run."""
    run = Run(FAKE, RunKey("fake", "plain", 1), "another digest")
    events: list[Event] = []
    await run_all([run], store, processes=1, heard=events.append)
    assert events[-1] == Event(run, "failed", "it ended without a result: made with other settings")


async def test_runs_start_in_their_order_and_so_many_at_a_time(store: ResultStore) -> None:
    runs = runs_of(store, "plain", "gain=0.2", seeds=(1, 2))
    running: list[int] = []
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        kinds = Counter(event.kind for event in events)
        running.append(kinds["started"] - kinds["done"])

    await run_all(runs, store, processes=2, heard=hear)
    assert [event.run for event in events if event.kind == "started"] == runs
    assert max(running) == 2


async def test_a_cancelled_batch_leaves_no_child_and_no_lock(store: ResultStore) -> None:
    started = asyncio.Event()
    runs = runs_of(store, "never/ends")
    task = asyncio.create_task(run_all(runs, store, processes=1, heard=lambda event: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert psutil.Process().children(recursive=True) == []
    assert list(store.path(runs[0].key).parent.iterdir()) == []


def test_ctrl_c_stops_the_children_and_keeps_what_is_finished(store: ResultStore) -> None:
    command = [sys.executable, "-m", "node.cli", "bench", "learn", FAKE, "--seeds", "1", "--processes", "2"]
    command += ["--arms", "[np][el][va][ei][rn]*", "--results", str(store.root)]  # plain, never/ends
    pipe = subprocess.PIPE
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs us in the background may ignore it
    try:
        started = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with started as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("1/2 fake/plain seed 1 ")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 1
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith("interrupted: 1 of 2 runs")
    assert errors.endswith("; what is finished is kept\n")
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert [run.key.arm for run in runs_of(store, "plain", "never/ends")] == ["never/ends"]


def test_the_line_that_moves_and_the_lines_that_stay() -> None:
    keys = [RunKey("lag", "a", 1), RunKey("lag", "b", 1), RunKey("lag", "a", 2), RunKey("lag", "b", 2)]
    runs = [Run("lag", key, "") for key in keys]
    console, now = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w")), [0.0]  # noqa: SIM115
    with console.file:
        progress = Progress(Plan(runs, {}, {}), processes=2, console=console, clock=lambda: now[0])
        assert (progress.remaining_s(), progress.line()) == (None, "0 of 4 runs")
        progress.heard(Event(runs[0], "started"))
        progress.heard(Event(runs[1], "started"))
        now[0] = 60.0
        progress.heard(Event(runs[0], "done"))
        progress.heard(Event(runs[2], "started"))
        now[0] = 80.0  # a: 60 s a run; b, of which nothing is known, the same
        assert progress.remaining_s() == max((40 + 0 + 60) / 2, 40)
        assert progress.line() == "1 of 4 runs; about 50 s left; now lag/b seed 1, lag/a seed 2"
        progress.heard(Event(runs[1], "failed", "exit code 1\n[boom]"))
        progress.heard(Event(runs[3], "elsewhere"))
        assert progress.line() == "3 of 4 runs, 1 failed; about 40 s left; now lag/a seed 2"
        assert console.export_text().splitlines() == [
            "1/4 lag/a seed 1 1 min 00 s",
            "2/4 lag/b seed 1 failed after 1 min 20 s",
            "exit code 1",
            "[boom]",
            "3/4 lag/b seed 2 is made by another process",
        ]
    assert progress.counts == {"done": 1, "failed": 1, "elsewhere": 1}
