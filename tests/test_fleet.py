"""The demo's processes: started, watched, stopped, and never left behind. Real processes and real gRPC; no learning."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import fake_swarm_node
import psutil
import pytest

from node.demo import fleet as fleet_module
from node.demo import meeting
from node.demo.fleet import Fleet
from node.demo.meeting import meetings
from node.demo.models import Programs, evaluate, evaluation_size, make_seed_models
from node.demo.plan import DemoOptions, Family, Meeting, NodePlan, node_settings, plan_nodes
from node.demo.processes import ChildFailed, Children, last_line
from node.demo.state import FleetView, NodeView
from swarm.wire.identity import Identity

FAMILIES = [Family(name=name, config={}) for name in fake_swarm_node.FAMILIES]
PROGRAM = fake_swarm_node.PROGRAM
DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Kills what a failed test has left, and makes it a failure."""
    before = {process.pid for process in psutil.process_iter()}
    yield
    left = [process for process in psutil.process_iter() if process.pid not in before and _is_ours(process)]
    for process in left:
        process.kill()
    assert not left


def _is_ours(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        words = process.cmdline()
        return words == fake_swarm_node.GRANDCHILD or fake_swarm_node.PROGRAM[1] in words
    return False


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    async with asyncio.timeout(60), Children() as children:
        yield children


def build(children: Children, root: Path, *, nodes: int = 3, steps: int = 50) -> Fleet:
    options = DemoOptions(nodes=nodes, steps=steps)
    plans = plan_nodes(options, FAMILIES, root)
    view = FleetView(
        title="",
        families=[family.name for family in FAMILIES],
        nodes=[NodeView(name=plan.name, target_steps=plan.steps) for plan in plans],
        budget_s=60,
    )

    def settings(plan: NodePlan) -> dict[str, object]:
        return node_settings(plan, options, FAMILIES, model=root, swarm="demo-test", meeting=Meeting())

    return Fleet(
        plans,
        view,
        children,
        settings=settings,
        command=lambda config: [*PROGRAM, "run", str(config)],
        interval_s=0.1,
    )


async def test_nodes_are_started_watched_and_stopped(children: Children, tmp_path: Path) -> None:
    fleet = build(children, tmp_path)
    async with fleet.running():
        await fleet.until_done(DEADLINE_S)
        assert [node.phase for node in fleet.view.nodes] == ["done"] * 3

    nodes = fleet.view.nodes
    assert [(node.phase, node.exit_code) for node in nodes] == [("stopped", 0)] * 3
    assert [node.status.steps for node in nodes] == [50] * 3
    assert nodes[0].readings[-1].pass_at_1 == pytest.approx({"spell_backward": 0.3, "rotate_matrix": 0.3})
    assert fleet.view.admitted(nodes[1])["alder"] == 51  # by name, not by peer id
    assert last_line(tmp_path / "node-1" / "log") == "alder starts"
    assert fleet.view.elapsed_s(0.0) > 0


async def test_the_budget_ends_a_run(children: Children, tmp_path: Path) -> None:
    fleet = build(children, tmp_path, nodes=1, steps=1_000_000)
    async with fleet.running():
        await fleet.until_done(1.0)
    assert fleet.view.nodes[0].phase == "stopped"
    assert fleet.view.elapsed_s(0.0) < 10


async def test_one_dies_and_the_others_go_on(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BIRCH", "crash")
    async with Children() as children:  # with that environment
        fleet = build(children, tmp_path)
        async with fleet.running():
            await fleet.until_done(DEADLINE_S)

    alder, birch, cedar = fleet.view.nodes
    assert (birch.phase, birch.exit_code) == ("died", 1)
    assert birch.last_words == "RuntimeError: the [bold]crash[/bold] that was asked for"
    assert (alder.phase, cedar.phase) == ("stopped", "stopped")
    assert (alder.status.steps, cedar.status.steps) == (50, 50)


async def test_one_cannot_start_and_the_others_go_on(children: Children, tmp_path: Path) -> None:
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1" / "node.lock").mkdir()  # its data directory cannot be locked
    fleet = build(children, tmp_path)
    async with fleet.running():
        await fleet.until_done(DEADLINE_S)

    assert [node.phase for node in fleet.view.nodes] == ["died", "stopped", "stopped"]
    assert "cannot be used" in fleet.view.nodes[0].last_words


def test_nodes_meet_where_they_were_told_to(tmp_path: Path) -> None:
    plans = plan_nodes(DemoOptions(nodes=4), FAMILIES, tmp_path)
    alder, birch, cedar, dogwood = (met := meetings(plans)).values()
    assert list(met) == ["alder", "birch", "cedar", "dogwood"]
    assert len({each.listen for each in met.values()}) == 4
    keys = [Identity.load_or_create(plan.directory / "identity.key") for plan in plans]
    at = [f"{meeting.listen}/p2p/{key.peer_id}" for meeting, key in zip(met.values(), keys, strict=True)]
    assert [alder.initial_peers, birch.initial_peers] == [at[1:2], at[:1]]
    assert [cedar.initial_peers, dogwood.initial_peers] == [at[:2], at[:2]]
    (single,) = meetings(plans[:1]).values()
    assert single.initial_peers == []


def test_no_node_is_told_to_listen_where_another_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = plan_nodes(DemoOptions(nodes=1), FAMILIES, tmp_path)
    (free,) = meeting._free_ports(1)
    monkeypatch.setattr(meeting, "PORTS", range(free, free + 1))
    assert meetings(plans)["alder"].listen == f"/ip4/127.0.0.1/tcp/{free}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free))
        with pytest.raises(OSError, match=f"of the ports {free} to {free} of 127.0.0.1 only 0 are free"):
            meetings(plans)


async def test_a_deaf_node_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ALDER", "deaf")
    monkeypatch.setattr(fleet_module, "STOP_GRACE_S", 0.3)
    monkeypatch.setattr(fleet_module, "TERM_GRACE_S", 0.3)
    async with Children() as children:
        fleet = build(children, tmp_path, nodes=1)
        async with fleet.running():
            await fleet.until_done(DEADLINE_S)
            grandchildren = psutil.Process().children(recursive=True)

    assert (fleet.view.nodes[0].phase, fleet.view.nodes[0].exit_code) == ("died", -signal.SIGKILL)
    assert len(grandchildren) == 2  # the node and its own child
    gone(grandchildren)


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_cancelled_while_processes_are_on_their_way(tmp_path: Path, turns: int) -> None:
    async def run(children: Children) -> None:
        fleet = build(children, tmp_path)
        async with fleet.running():
            await fleet.until_done(DEADLINE_S)

    async with Children() as children:
        task = asyncio.create_task(run(children))
        for _ in range(turns):  # of the event loop: it has begun, and no more
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert psutil.Process().children() == []


async def test_models_are_made_and_judged(children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SEEDS", str(tmp_path / "seeds"))
    plans = plan_nodes(DemoOptions(nodes=2), FAMILIES, tmp_path)
    programs = Programs(swarm_node=PROGRAM, seed=(*PROGRAM, "seed"))
    shares: list[float] = []
    heard: list[str] = []
    async with Children() as children:
        models = await make_seed_models(plans, children, programs, shares.append, heard.append)
        scores = await evaluate(models, evaluation_size(2), children, programs, shares.append)

    assert models == dict.fromkeys(["alder", "birch"], tmp_path / "seeds" / "seed-model")
    assert scores["birch"]["rotate_matrix"].pass_at_1 == 0.3
    assert shares == [0.0, 0.5, 1.0] * 2
    assert sorted(heard) == ["alder: step 1, 0.1 s", "birch: step 1, 0.1 s"]


async def test_a_program_that_fails_says_why(children: Children) -> None:
    with pytest.raises(ChildFailed, match=r"exit code 1\nunknown words: \['nonsense'\]"):
        await children.output([*PROGRAM, "nonsense"])


async def test_output_is_killed_when_it_is_not_waited_for(children: Children) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await children.output(["sleep", "600"])
    assert psutil.Process().children() == []


# The whole command, in a process of its own ---------------------------------------------------------------------------


class Command:
    """`swarm-node demo` with the fake programs."""

    def __init__(self, root: Path, *arguments: str, **environment: str) -> None:
        self.root = root
        with (root.parent / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [*PROGRAM, "demo", str(root), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    @property
    def output(self) -> str:
        return (self.root.parent / "output").read_text()

    def nodes_running(self, count: int) -> list[psutil.Process]:
        """Waits until so many nodes serve, and returns every process below the command."""
        limit = time.monotonic() + DEADLINE_S
        while len(list(self.root.glob("node-*/rpc"))) < count:
            assert time.monotonic() < limit, self.output
            assert self.process.poll() is None, self.output
            time.sleep(0.05)
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()


@pytest.mark.slow
def test_the_live_screen_in_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = [*PROGRAM, "demo", str(tmp_path / "demo"), "--nodes", "2", "--steps", "150"]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm-256color"}
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # Linux says EIO when the other end is closed
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)

    assert process.wait(30) == 0
    text = shown.decode(errors="replace")
    screen, _, after = text.partition("\x1b[?1049l")  # leaves the alternate screen
    assert "\x1b[?1049h" in screen
    assert "who learns from whom" in screen
    assert "pass@1 on held-out questions" in screen
    assert "mean pass@1 30 % → 60 %" in after
    assert "Traceback" not in text


def gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path, commands: list[Command]) -> None:
    summary = tmp_path / "summary.json"
    commands.append(Command(tmp_path / "demo", "--nodes", "2", "--steps", "60", "--compare", "--summary", str(summary)))

    assert commands[0].process.wait(60) == 0, commands[0].output
    document = json.loads(summary.read_text())
    assert [set(node) for node in document["nodes"]] == [
        {"name", "before", "after", "admitted", "refused", "steps", "target_steps", "own_tokens", "foreign_tokens"}
    ] * 2
    assert document["nodes"][0]["before"] == {"spell_backward": 0.3, "rotate_matrix": 0.3}
    assert document["nodes"][1]["after"] == {"spell_backward": 0.6, "rotate_matrix": 0.6}
    assert document["compare"]["difference"] == pytest.approx(0.0)
    assert (tmp_path / "demo" / "learning-curve.png").stat().st_size > 20_000
    config = tomllib.loads((tmp_path / "demo" / "alone" / "node-1" / "node.toml").read_text())
    assert config["exchange"] == {"type": "none"}
    exchanges = [tomllib.loads((tmp_path / "demo" / f"node-{i}" / "node.toml").read_text())["exchange"] for i in (1, 2)]
    for one, other in (exchanges, exchanges[::-1]):  # told of each other
        (address,) = one["initial_peers"]
        assert address.startswith(f"{other['listen'][0]}/p2p/")
    assert "2 nodes, mean pass@1 30 % → 60 %" in commands[0].output
    assert "gRPC" not in commands[0].output  # nothing that would spoil the screen


@pytest.mark.slow
def test_a_node_that_dies_is_exit_code_1(tmp_path: Path, commands: list[Command]) -> None:
    commands.append(Command(tmp_path / "demo", "--nodes", "2", "--steps", "60", FAKE_BIRCH="crash"))

    assert commands[0].process.wait(60) == 1, commands[0].output
    assert "birch died (exit code 1): RuntimeError: the [bold]crash[/bold]" in commands[0].output


@pytest.mark.slow
def test_ctrl_c_stops_everything_in_order(tmp_path: Path, commands: list[Command]) -> None:
    commands.append(Command(tmp_path / "demo", "--nodes", "2", "--steps", "1000000"))
    below = commands[0].nodes_running(2)
    commands[0].process.send_signal(signal.SIGINT)

    assert commands[0].process.wait(30) == 130, commands[0].output
    assert "interrupted: everything is stopped" in commands[0].output
    assert len(list((tmp_path / "demo").glob("node-*/checkpoints/step-*"))) == 2  # they were asked, not killed
    gone(below)


@pytest.mark.slow
def test_the_second_ctrl_c_kills_at_once(tmp_path: Path, commands: list[Command]) -> None:
    commands.append(Command(tmp_path / "demo", "--nodes", "1", "--steps", "1000000", FAKE_ALDER="deaf"))
    below = commands[0].nodes_running(1)
    commands[0].process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        commands[0].process.wait(1.5)  # it is being patient with the deaf node
    commands[0].process.send_signal(signal.SIGINT)

    assert commands[0].process.wait(10) == 130, commands[0].output
    gone(below)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_no_node_outlives_a_demo_that_is_killed(tmp_path: Path, commands: list[Command]) -> None:
    commands.append(Command(tmp_path / "demo", "--nodes", "2", "--steps", "1000000"))
    below = commands[0].nodes_running(2)
    commands[0].process.kill()
    commands[0].process.wait()

    assert len(below) == 2
    gone(below)


def test_a_directory_with_a_demo_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from node.cli import main

    (tmp_path / "node-1").mkdir()
    assert main(["demo", "--dir", str(tmp_path)]) == 2
    assert "an earlier demo is there" in capsys.readouterr().err


def test_a_wrong_setting_is_refused_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from node.cli import main

    assert main(["demo", "--dir", str(tmp_path / "new"), "--set", "learner.rl=1"]) == 2
    assert "learner.rl" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("words", [["--nodes", "0"], ["--steps", "-3"], ["--minutes", "nan"], ["--seed", "x"]])
def test_wrong_numbers_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from node.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["demo", *words])
    assert stopped.value.code == 2
    assert f"{words[0]}: " in capsys.readouterr().err
