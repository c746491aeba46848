"""The doctor: rules with injected figures, and real processes that look at real peers."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from node.commands import doctor
from node.config import ArithmeticTasks, NodeConfig, PolicyConfig, RpcConfig
from node.doctor import model
from node.doctor.findings import Check, Finding, Outcome, as_json, failed, healthy, lines, ok, run_checks, warning
from node.doctor.machine import (
    GROUP_BYTES,
    data_dir_finding,
    disk_finding,
    engine_finding,
    gpu_finding,
    memory_finding,
    open_files_finding,
    packages_finding,
    python_finding,
    rpc_finding,
)
from node.doctor.network import clock_finding, findings, port_finding
from node.doctor.visit import Seed, Visit, candidates, visit
from node.engine.available import EngineStatus
from swarm.net.addresses import with_ports
from swarm.net.settings import P2PSettings
from tests.builders import identity
from tests.test_bootstrap import seed

ROOT = Path(__file__).parents[1]
ME = identity().peer_id
SEED = f"/ip4/203.0.113.7/tcp/4001/p2p/{identity(2).peer_id}"
SETTINGS = P2PSettings(initial_peers=(SEED,))
CONFIG = NodeConfig(tasks=(ArithmeticTasks(),))
FULL = Visit(seeds=(Seed(address=SEED),), offset_s=0.5, tried=("a", "b"), reached=())


# The machine ----------------------------------------------------------------------------------------------------------


def test_versions_are_held_against_what_is_needed() -> None:
    needed = [Requirement("torch>=2.13,<2.14"), Requirement("hivemind==1.1.12")]
    good = packages_finding(needed, {"torch": "2.13.0+cpu", "hivemind": "1.1.12"})
    assert (good.outcome, good.found) == (Outcome.OK, "torch 2.13.0+cpu, hivemind 1.1.12")
    bad = packages_finding(needed, {"torch": "2.12.0", "hivemind": ""})
    assert (bad.outcome, bad.found) == (Outcome.FAILED, "torch 2.12.0, no hivemind")
    assert bad.advice == 'pip install "torch<2.14,>=2.13" "hivemind==1.1.12"'
    assert python_finding("3.10.1", ">=3.11").outcome is Outcome.FAILED
    assert python_finding("3.12.0rc1", ">=3.11").outcome is Outcome.OK


def test_a_full_disk_fails_and_a_small_one_warns() -> None:
    checkpoint, keep, groups = 1 << 30, 2, 1000
    need = 3 * checkpoint + groups * GROUP_BYTES
    assert disk_finding(need, checkpoint, keep, groups).outcome is Outcome.OK
    small = disk_finding(need - 1, checkpoint, keep, groups)
    assert small.outcome is Outcome.WARNING
    assert "3 checkpoints of 1.1 GB" in small.found
    full = disk_finding(checkpoint, checkpoint, keep, groups)
    assert full.outcome is Outcome.FAILED
    assert "checkpoint.keep" in full.advice
    assert disk_finding(10, None, keep, 0).outcome is Outcome.FAILED


def test_a_gpu_is_missed_only_where_it_is_wanted() -> None:
    assert gpu_finding("cuda:1", []).outcome is Outcome.FAILED
    assert gpu_finding("auto", []).outcome is Outcome.OK
    assert gpu_finding("cuda", ["NVIDIA H200, 143771 MiB"]).found == "NVIDIA H200, 143771 MiB"


def test_an_engine_that_is_wanted_must_be_usable() -> None:
    broken = EngineStatus(name="vllm", version="", build="", usable=False, reason="it is not installed; do so")
    works = EngineStatus(name="transformers", version="5", build="", usable=True, reason="")
    found = {"transformers": works, "vllm": broken}
    assert engine_finding("auto", found).outcome is Outcome.OK
    assert engine_finding("vllm", found) == failed("engine", "vllm is not usable", "It is not installed; do so.")
    assert engine_finding("auto", {"vllm": broken}).outcome is Outcome.FAILED


def test_memory_and_open_files() -> None:
    assert memory_finding(4, 8 << 30) == ok("memory", "4 CPU cores, 8.6 GB RAM")
    assert memory_finding(4, 1 << 30).outcome is Outcome.WARNING
    assert open_files_finding(1024).outcome is Outcome.OK
    assert open_files_finding(-1) == ok("open files", "no limit")
    assert "ulimit -n 4096" in open_files_finding(256).advice


def test_a_data_dir_in_use_names_the_pid_and_leaves_it_alone(tmp_path: Path) -> None:
    assert data_dir_finding(tmp_path).outcome is Outcome.OK
    assert data_dir_finding(tmp_path / "a/b") == ok("data_dir", f"{tmp_path}/a/b will be made")
    assert list(tmp_path.iterdir()) == []
    with (tmp_path / "node.lock").open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        assert data_dir_finding(tmp_path).outcome is Outcome.OK
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = data_dir_finding(tmp_path)
    assert (found.outcome, found.found) == (Outcome.FAILED, f"{tmp_path} is in use by another node (pid 4711)")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_data_dir_that_is_not_writable_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert data_dir_finding(tmp_path).outcome is Outcome.FAILED


def test_ports_that_are_taken_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert rpc_finding(RpcConfig(port=port)).outcome is Outcome.FAILED
        found = port_finding(f"/ip4/127.0.0.1/tcp/{port}", 0)
        assert (found.outcome, f"port {port}" in found.advice) == (Outcome.FAILED, True)
        assert port_finding("/ip4/127.0.0.1/tcp/0", port).outcome is Outcome.WARNING
        assert port_finding("/ip4/127.0.0.1/tcp/0", 0).outcome is Outcome.OK
    assert rpc_finding(RpcConfig(port=port)).outcome is Outcome.OK
    assert port_finding(f"/ip4/127.0.0.1/tcp/{port}", 0).outcome is Outcome.OK
    assert port_finding("/ip4/127.0.0.1/tcp/0", port).found.endswith(f"port {port} as before")


async def test_a_model_is_asked_for_its_memory_without_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,'
        ' "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}'
    )
    config = CONFIG.model_copy(update={"policy": PolicyConfig(model=str(tmp_path), device="cpu")})
    (found,) = await model.model(config)
    if found.outcome is Outcome.WARNING:
        pytest.skip(found.found)
    assert found.outcome is Outcome.FAILED
    assert found.found.startswith("the policy does not fit: ")
    assert "learner.tokens_per_micro_batch" in found.found
    assert (await model.model(CONFIG))[0].outcome is Outcome.OK
    assert model.model_finding('{"fits": true, "found": "1 GiB are needed"}') == ok("model", "1 GiB are needed")


def test_a_model_without_an_answer_is_a_busy_machine_or_a_name_that_is_no_directory(tmp_path: Path) -> None:
    here, elsewhere = model.unanswered(str(tmp_path)), model.unanswered("runs/typo")
    assert {here.outcome, elsewhere.outcome} == {Outcome.WARNING}
    assert "less busy" in here.advice
    assert "'runs/typo' is no directory here, and the hub did not answer" in elsewhere.found


# The network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset_s", "outcome", "words"),
    [
        (0.2, Outcome.OK, "within 1 s"),
        (-60.0, Outcome.OK, "within 60 s"),
        (60.1, Outcome.WARNING, "60 s ahead of"),
        (-3600.0, Outcome.WARNING, "3600 s behind"),
        (None, Outcome.WARNING, "not tested"),
    ],
)
def test_a_clock_that_is_a_minute_off_is_a_warning(offset_s: float | None, outcome: Outcome, words: str) -> None:
    found = clock_finding(offset_s)
    assert found.outcome is outcome
    assert words in found.found


def outcomes(seen: Visit, *, port: int | None = 4001, taken: bool = False) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings(SETTINGS, seen, port, taken=taken)}


def seen_with(**changes: object) -> Visit:
    return Visit(**{**{name: getattr(FULL, name) for name in FULL.__slots__}, **changes})  # type: ignore[arg-type]


def test_who_is_reached_is_well() -> None:
    public = f"/ip4/8.8.8.8/tcp/4001/p2p/{ME}"
    assert outcomes(seen_with(reached=(public,)))["reachability"] == ok("reachability", f"peers can dial {public}")
    assert outcomes(seen_with(reached=("/ip4/192.168.1.5/tcp/1/p2p/x",)))["reachability"].found.endswith("this network")


def test_who_is_not_reached_learns_what_to_do() -> None:
    lost = outcomes(FULL)["reachability"]
    assert (lost.outcome, lost.found) == (Outcome.FAILED, "not reachable: none of 2 addresses answered")
    assert "orward TCP port 4001" in lost.advice
    assert "exchange.announce" in lost.advice
    assert "exchange.listen to a fixed port" in outcomes(FULL, port=None)["reachability"].advice
    relayed = outcomes(seen_with(relayed=True))["reachability"]
    assert (relayed.outcome, relayed.found.split(":")[0]) == (Outcome.WARNING, "only through relays")
    assert outcomes(seen_with(reached=None))["reachability"].outcome is Outcome.WARNING
    assert outcomes(FULL, taken=True)["reachability"].found == "not tested: the port is in use"


def test_one_dead_seed_is_a_warning_and_all_of_them_a_failure() -> None:
    dead, alive = Seed(address="dead", trouble="no answer"), Seed(address=SEED)
    both = [finding.outcome for finding in findings(SETTINGS, seen_with(seeds=(dead, alive)), 1, taken=False)[:2]]
    assert both == [Outcome.OK, Outcome.WARNING]
    assert outcomes(seen_with(seeds=(dead,)))["seeds"].outcome is Outcome.FAILED
    assert outcomes(Visit())["seeds"].outcome is Outcome.WARNING
    assert outcomes(Visit(trouble="no daemon"))["network"].outcome is Outcome.FAILED


async def test_what_is_tried_is_where_others_see_us_on_our_own_port() -> None:
    listen = P2PSettings(listen=("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"))
    own = [f"/ip4/192.168.1.5/tcp/4001/p2p/{ME}", f"{SEED}/p2p-circuit/p2p/{ME}"]
    assert await candidates(listen, own, "/ip4/8.8.8.8/tcp/51234", ME) == (
        f"/ip4/8.8.8.8/tcp/4001/p2p/{ME}",
        f"/ip4/192.168.1.5/tcp/4001/p2p/{ME}",
    )
    announced = listen.model_copy(update={"announce": ("/dns4/localhost/tcp/5",)})
    assert await candidates(announced, own, "", ME) == (f"/ip4/127.0.0.1/tcp/5/p2p/{ME}",)


@pytest.mark.network
async def test_a_healthy_pair_a_dead_seed_and_a_wrong_clock(tmp_path: Path) -> None:
    [dead] = with_ports(["/ip4/127.0.0.1/tcp/0"], lambda _: 0)
    async with seed(tmp_path / "seed") as (_, address):
        dead = f"{dead}/p2p/{ME}"
        settings = P2PSettings(listen=with_ports(["/ip4/127.0.0.1/tcp/0"], lambda _: 0), initial_peers=(address, dead))
        seen = await visit(settings, lambda: time.time() + 100)
        assert [bool(found.trouble) for found in seen.seeds] == [False, True]
        assert seen.offset_s == pytest.approx(100, abs=10)
        assert seen.reached == seen.tried != ()
        assert seen.relayed


# The whole ------------------------------------------------------------------------------------------------------------


async def test_a_check_that_breaks_or_hangs_is_a_finding() -> None:
    async def hangs(_: NodeConfig) -> Sequence[Finding]:
        await asyncio.Event().wait()
        return []

    async def breaks(_: NodeConfig) -> Sequence[Finding]:
        raise RuntimeError("oh")

    async def works(_: NodeConfig) -> Sequence[Finding]:
        return [ok("c", "fine")]

    checks = [Check("a", 0.01, hangs), Check("b", 1, breaks), Check("c", 1, works)]
    found = [finding async for finding in run_checks(checks, CONFIG)]
    assert [(finding.check, finding.outcome) for finding in found] == [
        ("a", Outcome.FAILED),
        ("b", Outcome.FAILED),
        ("c", Outcome.OK),
    ]
    assert "RuntimeError('oh')" in found[1].found


def test_a_line_each_and_a_second_with_what_to_do() -> None:
    assert lines(ok("disk", "large")) == ["ok       disk          large"]
    assert lines(warning("disk", "small", "Make room."))[1].strip() == "-> Make room."
    assert healthy([warning("a", "b", "c")])
    assert not healthy([ok("a", "b"), failed("a", "b", "c")])
    assert as_json([failed("a", "b", "c")]) == {
        "healthy": False,
        "findings": [{"check": "a", "outcome": "failed", "found": "b", "advice": "c"}],
    }


def test_it_is_over_in_a_minute() -> None:
    assert sum(check.deadline_s for check in doctor.checks(True)) < 60
    assert {check.name for check in doctor.checks(False)} < {check.name for check in doctor.checks(True)}


def run_doctor(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "node.cli", "doctor", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.network
def test_the_command_ends_with_1_when_a_port_is_taken_and_never_imports_torch(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        config = tmp_path / "node.toml"
        config.write_text(
            f'data_dir = "{tmp_path}/data"\ntasks = [{{type = "arithmetic"}}]\n'
            f'[exchange]\ntype = "p2p"\nlisten = ["{listen}"]\n'
        )
        done = run_doctor(config, "--json")
    assert done.returncode == 1
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["listen"]["outcome"] == "failed"
    assert found["reachability"]["found"] == "not tested: the port is in use"
    assert not (tmp_path / "data").exists()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "swarm.net.stack" in imported
    assert "torch" not in imported


def test_a_wrong_config_is_a_finding_and_the_machine_is_tested_all_the_same(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("[learner]\nlrr = 1\n")
    done = run_doctor(config)
    assert done.returncode == 1
    assert done.stdout.startswith("failed   config")
    assert "did you mean learner.lr?" in done.stdout
    assert "\nok       python" in done.stdout
    assert "data_dir" not in done.stdout
