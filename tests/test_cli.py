from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from node import cli, exit_codes
from node.commands import evaluate, evaluate_policy, status, version
from node.config import NodeConfig, RpcConfig, TransformersEngine, VllmEngine
from node.engine.available import EngineStatus
from node.evaluate import Estimate, Report, Result
from node.rpc import RpcServer
from node.settings import load_config
from swarm.errors import CheckpointError, CrashLoop, JournalError, NetworkError, PolicyError
from swarm.toml import toml_lines
from swarm.types import SamplingParams
from swarm.wire.v1 import node_pb2

ROOT = Path(__file__).parents[1]
SOLO = ROOT / "configs/solo.toml"


def swarm_node(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


# In a process of its own ----------------------------------------------------------------------------------------------


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = swarm_node("--help")
    assert done.returncode == cli.OK
    assert all(line in done.stdout.replace("\n", " \n") for line in [f"    {name} " for name in cli.COMMANDS])
    codes = {
        int(line.split()[0].removesuffix("+n"))
        for line in done.stdout.split("exit codes:")[1].splitlines()
        if line[2:3].isdigit()
    }
    assert codes == {value for name, value in vars(exit_codes).items() if name.isupper()} - {cli.INTERRUPTED} | {128}


def test_a_wrong_config_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[learner]\nlrr = 1\n")
    done = swarm_node("run", path)
    assert done.returncode == cli.USAGE
    assert done.stdout == ""
    assert done.stderr == (
        f"swarm-node: {path}: tasks is missing; {path}: learner.lrr is not a key; did you mean learner.lr?\n"
    )


def test_what_answers_at_once_imports_nothing_heavy() -> None:
    program = (
        "import sys; from node import cli\n"
        "for words in ('version', 'status nowhere', 'config nowhere', 'export nowhere out'): cli.main(words.split())\n"
        "heavy = {'torch', 'transformers', 'hivemind', 'reasoning_gym', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = f"{sys.executable} -m node.cli config {SOLO} | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


# In this one ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [[], ["bogus"], ["run"], ["status", "--watch", "0"], ["eval", "d", "--tasks", "0"], ["export", "d"], ["bench"]],
)
def test_wrong_usage(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == cli.USAGE
    assert capsys.readouterr().err.startswith("usage: swarm-node")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: swarm-node {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (NetworkError("no node there"), cli.FAILED, "swarm-node: no node there\n"),
        (PolicyError("no such model"), cli.FAILED, "swarm-node: no such model\n"),
        (CrashLoop("the engine failed 11 times"), 69, "swarm-node: the engine failed 11 times\n"),
        (JournalError("no room"), 74, "swarm-node: no room\n"),
        (CheckpointError("no room"), 74, "swarm-node: no room\n"),
        (KeyboardInterrupt(), cli.INTERRUPTED, ""),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr(version, "main", fail)
    assert cli.main(["version"]) == code
    assert capsys.readouterr() == ("", said)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(version, "main", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["version"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "--json"]) == cli.OK
    versions = json.loads(capsys.readouterr().out)
    assert {"swarm-node", "python", "protocol", "torch", "hivemind"} <= versions.keys()
    assert versions["engines"].keys() == {"transformers", "vllm"}
    assert versions["engines"]["transformers"] == {
        "usable": True,
        "version": versions["transformers"],
        "build": "",
        "reason": "",
    }
    assert cli.main(["version"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["swarm-node", versions["swarm-node"]]
    assert lines[-3:-1] == ["", "engine transformers  usable"]
    assert lines[-1].startswith("engine vllm          ")


def test_version_says_why_an_engine_is_not_usable() -> None:
    missing = EngineStatus(name="vllm", version="", build="", usable=False, reason="it is not installed; install it")
    broken = EngineStatus(name="vllm", version="0.32.0", build="CPU", usable=False, reason="it is broken")
    good = EngineStatus(name="vllm", version="0.32.0", build="CPU", usable=True, reason="")
    assert list(version.engine_lines({"vllm": missing})) == ["engine vllm  not usable: it is not installed; install it"]
    assert list(version.engine_lines({"vllm": broken})) == ["engine vllm  0.32.0 (CPU)  not usable: it is broken"]
    assert list(version.engine_lines({"vllm": good})) == ["engine vllm  0.32.0 (CPU)  usable"]


def test_the_printed_config_loads_to_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ['name="a \\" b\\\\ \u00e9 \\u007f"', 'exchange={type="p2p", listen=["/ip4/1.2.3.4/tcp/1"]}']
    flags = [word for override in overrides for word in ("--set", override)]
    assert cli.main(["config", str(SOLO), *flags]) == cli.OK
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed) == load_config(SOLO, overrides)


def test_tables_in_toml() -> None:
    table = {"t": {"u": {"x": 1}, "strange key": [1.5, True]}, "a": "b", "l": [{"c": {}}, {"d": [[1], [{"e": 2}]]}]}
    assert "\n".join(toml_lines(table)) == (
        'a = "b"\n\n[t]\n"strange key" = [1.5, true]\n\n[t.u]\nx = 1\n\n[[l]]\n\n[l.c]\n\n[[l]]\nd = [[1], [{e = 2}]]'
    )


def test_config_refuses_a_dataset_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", str(SOLO), "--set", "tasks.0.name=spell_forward"]) == cli.USAGE
    assert capsys.readouterr().err.startswith("swarm-node: reasoning_gym has no dataset 'spell_forward'")


# Status ---------------------------------------------------------------------------------------------------------------

STATUS = node_pb2.NodeStatus(
    name="alder",
    version="0.1.0",
    state=node_pb2.NODE_STATE_PAUSED,
    uptime_s=3725.9,
    policy_version=12,
    steps=6,
    swarm="0123456789abcdef0123",
    peers=2,
    network="up",
    admitted={f"12D3KooWpeer{i:02}": i for i in range(1, 11)},
    refused={"stale": 3, "bad_signature": 0},
    counters={"own_tokens": 1234567, "failed_rollouts": 0},
    metrics={"loss": 0.123456},
    held_out={"sudoku": 0.25},
    held_out_step=5,
    warnings=["[red]not markup[/red]"],
)


def printed(renderable: object) -> list[str]:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable)
        return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_status_table() -> None:
    assert [" ".join(line.split()) for line in printed(status.render(STATUS))] == [
        "alder paused, up 1:02:05, swarm-node 0.1.0",
        "policy version 12 after 6 steps",
        "network up, 2 peers alive, swarm 0123456789abcdef",
        "admitted oWpeer10 10 oWpeer09 9 oWpeer08 8 oWpeer07 7 oWpeer06 6 oWpeer05 5 oWpeer04 4 oWpeer03 3 2 others 3",
        "refused stale 3",
        "held out, step 5 sudoku 25.0%",
        "counted own_tokens 1,234,567",
        "newest step loss 0.1235",
        "warnings [red]not markup[/red]",
    ]


def test_the_status_table_says_which_part_was_started_again_and_why() -> None:
    engine = node_pb2.Part(
        name="engine",
        state="restarting",
        restarts=7,
        recent_failures=3,
        allowed_failures=10,
        last_error="no token for 60 s",
        last_error_s=3.0,
    )
    shown = node_pb2.NodeStatus(name="alder", parts=[node_pb2.Part(name="learner", state="up"), engine])
    (line,) = [" ".join(line.split()) for line in printed(status.render(shown)) if line.startswith("parts")]
    assert line == (
        "parts engine restarting, started again 7 times (3 of 10 failures that it may have in the window); "
        "0:00:03 ago: no token for 60 s"
    )


@pytest.mark.parametrize(
    ("state", "parts", "code", "said"),
    [
        (node_pb2.NODE_STATE_RUNNING, {}, cli.OK, "running, step 6"),
        (node_pb2.NODE_STATE_PAUSED, {}, cli.OK, "paused, step 6"),
        (node_pb2.NODE_STATE_STOPPING, {}, cli.FAILED, "stopping, step 6"),
        (node_pb2.NODE_STATE_RUNNING, {"network": "restarting"}, cli.OK, "running, step 6; network restarting: why"),
        (node_pb2.NODE_STATE_RUNNING, {"engine": "restarting"}, cli.FAILED, "running, step 6; engine restarting: why"),
    ],
)
async def test_a_health_check(
    state: node_pb2.NodeState, parts: dict[str, str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Checked(Asked):
        def status(self) -> node_pb2.NodeStatus:
            named = [node_pb2.Part(name=name, state=how, last_error="why") for name, how in parts.items()]
            return node_pb2.NodeStatus(name="alder", steps=6, state=state, parts=named)

    async with RpcServer(RpcConfig(), Checked()) as server:
        words = ["status", "--check", "--address", server.address]
        assert await asyncio.to_thread(cli.main, words) == code
    assert capsys.readouterr().out == f"{said}\n"


class Asked:
    """An `Operated` whose status is STATUS."""

    state = node_pb2.NODE_STATE_RUNNING

    def __init__(self) -> None:
        self.stopping = asyncio.Event()

    def status(self) -> node_pb2.NodeStatus:
        return STATUS

    def peers(self) -> Sequence[node_pb2.Peer]:
        return []

    def verdicts(self, limit: int) -> Sequence[node_pb2.VerdictRecord]:
        return []

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def checkpoint(self) -> tuple[str, int]:
        return "", 0

    def stop(self) -> None: ...


async def test_status_of_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with RpcServer(RpcConfig(), Asked()) as server:
        (tmp_path / "rpc").write_text(json.dumps({"address": server.address, "pid": 1}))
        for where in ([str(tmp_path)], ["--address", server.address]):
            assert await asyncio.to_thread(cli.main, ["status", "--json", *where]) == cli.OK
            answer = json.loads(capsys.readouterr().out)
            assert (answer["state"], answer["policy_version"]) == ("NODE_STATE_PAUSED", "12")
            assert answer["values"] == {}
        assert await asyncio.to_thread(cli.main, ["status", str(tmp_path)]) == cli.OK
        assert "paused, up 1:02:05" in capsys.readouterr().out


async def test_a_watch_ends_with_the_node(capsys: pytest.CaptureFixture[str]) -> None:
    async with RpcServer(RpcConfig(), Asked()) as server:
        words = ["status", "--address", server.address, "--json", "--watch", "0.1"]
        watching = asyncio.create_task(asyncio.to_thread(cli.main, words))
        seen = ""
        async with asyncio.timeout(20):
            while seen.count("\n") < 2:
                await asyncio.sleep(0.01)
                seen += capsys.readouterr().out
        await server.stop()
        assert await watching == cli.OK
    assert all(json.loads(line)["name"] == "alder" for line in seen.splitlines())


def test_status_without_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == cli.FAILED
    assert capsys.readouterr().err == (
        f"swarm-node: no node is running in {tmp_path}: start one there, or name another directory\n"
    )
    missing = tmp_path / "token"
    assert cli.main(["status", "--address", "127.0.0.1:1", "--token-file", str(missing)]) == cli.USAGE
    assert capsys.readouterr().err.startswith(f"swarm-node: --token-file {missing}: cannot be read")


# Evaluation -----------------------------------------------------------------------------------------------------------


def result(value: float, tasks: int, unscored: int = 0) -> Result:
    """`value` is pass@1 and pass@4, majority@4 a tenth less, and each is known to 0.05."""
    passed, agreed = (Estimate(value=v, interval=(v - 0.05, v + 0.05)) for v in (value, value - 0.1))
    return Result(
        tasks=tasks, samples=4, pass_at_k={1: passed, 4: passed}, majority_at_k={4: agreed}, unscored=unscored
    )


REPORT = Report(
    model="model",
    fingerprint="f00d",
    engine="transformers",
    questions=128,
    samples=4,
    digest="abcdef",
    system_prompt="",
    sampling=SamplingParams(temperature=0.7),
    overall=result(0.5, 128, unscored=3),
    families={"sudoku": result(0.25, 64), "chain_sum": result(0.75, 64, unscored=3)},
)


def cells(report: Report) -> list[str]:
    """Of the table, a line each."""
    rows = [line.strip("│┃ ") for line in printed(evaluate.render(report)) if line[:1] in "│┃"]
    return [" ".join(row.replace("│", " ").replace("┃", " ").split()) for row in rows]


def test_the_table_of_an_evaluation() -> None:
    assert cells(REPORT) == [
        "held out k pass@k, % majority@k, %",
        "chain_sum 1 75.0 (70.0 to 80.0)",
        "4 75.0 (70.0 to 80.0) 65.0 (60.0 to 70.0)",
        "sudoku 1 25.0 (20.0 to 30.0)",
        "4 25.0 (20.0 to 30.0) 15.0 (10.0 to 20.0)",
        "mean 1 50.0 (45.0 to 55.0)",
        "4 50.0 (45.0 to 55.0) 40.0 (35.0 to 45.0)",
    ]


def test_one_family_is_its_own_mean() -> None:
    assert len(cells(replace(REPORT, families={"sudoku": result(0.25, 64)}))) == 3


def test_eval_says_what_was_asked_and_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "run", lambda arguments: REPORT)
    assert cli.main(["eval", "model"]) == cli.OK
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "64 questions of each kind, 4 answers to each; in brackets 95 % intervals",
        "digest of the questions: abcdef",
        "model (f00d), transformers, temperature 0.7",
        "3 answers have no score (too long, or not to be scored) and count as wrong",
    ]
    assert len(list(evaluate.notes(replace(REPORT, overall=result(0.5, 128))))) == 3


def test_eval_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(evaluate, "run", lambda arguments: REPORT)
    assert cli.main(["eval", "model", "--json"]) == cli.OK
    said = json.loads(capsys.readouterr().out)
    assert said["families"]["sudoku"] == {
        "tasks": 64,
        "samples": 4,
        "pass_at_k": {k: {"value": 0.25, "interval": [0.2, 0.3]} for k in "14"},
        "majority_at_k": {"4": {"value": 0.15, "interval": pytest.approx([0.1, 0.2])}},
        "unscored": 0,
    }
    assert {key: said[key] for key in said if key not in ("families", "overall")} == {
        "model": "model",
        "fingerprint": "f00d",
        "engine": "transformers",
        "questions": 128,
        "samples": 4,
        "digest": "abcdef",
        "system_prompt": "",
        "sampling": {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 64, "stop": []},
    }
    assert said["overall"]["pass_at_k"]["1"]["value"] == 0.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["d", "--k", "8"], "swarm-node: --k 8 is not allowed; it must be at most the number of answers, --samples 4"),
        (["d", "--k", "1,3", "--samples", "2"], "swarm-node: --k 3 is not allowed; it must be at most"),
        (
            ["/nowhere/d"],
            "swarm-node: DIR '/nowhere/d' is not allowed; there is no such directory: it must be a model's",
        ),
        (["./d"], "swarm-node: DIR './d' is not allowed"),
        (["runs/solo/nothing"], "swarm-node: DIR 'runs/solo/nothing' is not allowed"),
        (["d", "--config", "/nowhere.toml"], "swarm-node: /nowhere.toml: there is no such file"),
    ],
)
def test_eval_refuses_before_it_loads_anything(
    words: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", *words]) == cli.USAGE
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tasks", "0"], "argument --tasks: '0' is not allowed; it must be a whole number of at least 1"),
        (["--samples", "x"], "argument --samples: 'x' is not allowed; it must be a whole number of at least 1"),
        (["--k", "1,,2"], "argument --k: '1,,2' is not allowed; it must be whole numbers of at least 1 with commas"),
        (["--k", "0"], "argument --k: '0' is not allowed"),
        (["--engine", "tgi"], "argument --engine: invalid choice: 'tgi' (choose from "),
    ],
)
def test_eval_names_the_option_that_is_wrong(
    words: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["eval", "d", *words])
    assert caught.value.code == cli.USAGE
    assert f"error: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "engine", "ks"),
    [
        ([], VllmEngine(max_in_flight=7), None),
        (["--engine", "vllm", "--k", "4, 1"], VllmEngine(max_in_flight=7), [4, 1]),
        (["--engine", "transformers"], TransformersEngine(), None),
    ],
)
def test_eval_takes_the_engine_of_the_config_unless_told_otherwise(
    words: Sequence[str], engine: object, ks: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[engine]\ntype = "vllm"\nmax_in_flight = 7\n[[tasks]]\ntype = "arithmetic"\n')
    asked: list[object] = []

    async def fake(model: str, config: NodeConfig, *numbers: object) -> Report:
        asked.extend([model, config.engine, *numbers])
        return REPORT

    monkeypatch.setattr(evaluate_policy, "evaluate_policy", fake)
    assert cli.main(["eval", "d", "--config", str(path), *words, "--json"]) == cli.OK
    assert asked == ["d", engine, 64, 4, ks]


def test_help_says_why_the_questions_are_new(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["eval", "--help"])
    assert "a question is held out when the CRC-32 of its text is divisible by 8" in capsys.readouterr().out
