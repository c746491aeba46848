"""What an engine's processes get to see of the environment, and what is left of it in ours."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from node.engine.vllm.environment import DEFAULTS, VISIBLE, engine_environment, environment, set_defaults
from node.engine.vllm.owner import OWNER

ROOT = Path(__file__).parents[1]


def test_the_operator_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    for name in DEFAULTS.keys() - {"VLLM_LOGGING_LEVEL"}:
        monkeypatch.delenv(name, raising=False)
    with environment({}):
        set_defaults()
        assert {name: os.environ[name] for name in DEFAULTS} == {**DEFAULTS, "VLLM_LOGGING_LEVEL": "DEBUG"}


def test_what_was_set_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it ends."""
    monkeypatch.setenv("SWARM_TEST_OURS", "ours")
    monkeypatch.setenv("SWARM_TEST_KEPT", "kept")
    before = dict(os.environ)
    with suppress(KeyError), environment({"SWARM_TEST_OURS": "theirs", "SWARM_TEST_NEW": "new"}):
        assert (os.environ["SWARM_TEST_OURS"], os.environ["SWARM_TEST_NEW"]) == ("theirs", "new")
        os.environ["SWARM_TEST_LEFT"] = "by vLLM for its children"
        del os.environ["SWARM_TEST_KEPT"]
        raise KeyError
    assert dict(os.environ) == before


@pytest.mark.parametrize("threads", [0, 3])
def test_an_engine_on_the_cpu_gets_its_threads(threads: int) -> None:
    variables = engine_environment("cpu", (), threads)
    assert variables.get("OMP_NUM_THREADS") == (str(threads) if threads else None)
    assert VISIBLE not in variables
    assert variables[OWNER] == str(os.getpid())


@pytest.mark.parametrize(
    ("ours", "devices", "theirs"),
    [
        (None, (0,), "0"),
        (None, (1, 3), "1,3"),
        (None, (), None),
        ("4,5,6", (2, 0), "6,4"),
        ("GPU-a,GPU-b", (1,), "GPU-b"),
        ("4,5", (), None),
    ],
)
def test_devices_are_counted_as_this_process_counts_them(
    ours: str | None, devices: tuple[int, ...], theirs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    if ours is not None:
        monkeypatch.setenv(VISIBLE, ours)
    variables = engine_environment("cuda", devices, 2)
    assert variables.get(VISIBLE) == theirs
    assert "OMP_NUM_THREADS" not in variables


def test_it_needs_nothing_of_vllm() -> None:
    """Or its defaults would come too late."""
    program = "import sys, node.engine.vllm.environment; print('vllm' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["False", "False"]
