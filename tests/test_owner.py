"""What an engine's processes owe to the node that started them: they end with it, and say why they failed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.engine.vllm.owner import OWNER, die_with_owner, is_of_an_engine
from node.engine.vllm.reason import MAX_LENGTH, REASON, Reason, tell_owner

ROOT = Path(__file__).parents[1]
WAITS = """
import sys
from node.engine.vllm.owner import die_with_owner
die_with_owner()
print("up", flush=True)
sys.stdin.read()
"""
FAILS = """
import logging, sys
from node.engine.vllm.reason import tell_owner
tell_owner()
log = logging.getLogger("vllm.somewhere")
log.error("no exception")
for error in (ValueError("the first\\nof many"), RuntimeError("see above"), ValueError("x" * 10_000)):
    try:
        raise error
    except Exception:
        log.exception("failed")
"""


def python(program: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=os.environ | variables,
    )


@pytest.mark.parametrize("kill_first", [True, False])
def test_a_process_dies_with_its_owner(kill_first: bool) -> None:
    """Also with one that is gone before the process looks."""
    with python("input()") as owner:
        if kill_first:
            owner.kill()
            owner.wait()
        with python(WAITS, **{OWNER: str(owner.pid)}) as process:
            if not kill_first:
                assert process.stdout is not None
                assert process.stdout.readline() == "up\n"
                assert process.poll() is None
                owner.kill()
            assert process.wait(timeout=30) == -9


def test_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER, str(os.getpid()))
    assert not is_of_an_engine()
    die_with_owner()
    monkeypatch.delenv(OWNER)
    assert not is_of_an_engine()
    die_with_owner()


def test_the_first_error_is_told() -> None:
    reason = Reason()
    assert reason.first() == ""
    with python(FAILS, **{OWNER: "1", **reason.variables}) as process:
        assert process.wait(timeout=30) == 0
    assert reason.first() == "ValueError: the first of many"


def test_a_long_one_is_cut() -> None:
    reason = Reason()
    with open(reason.variables[REASON], "a") as file:
        file.write("x" * 2 * MAX_LENGTH)
    assert reason.first() == "x" * MAX_LENGTH


def test_an_owner_that_has_gone_is_not_missed() -> None:
    reason = Reason()
    variables = reason.variables
    del reason
    with python(FAILS, **{OWNER: "1", **variables}) as process:
        assert process.wait(timeout=30) == 0


def test_the_node_itself_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER, str(os.getpid()))
    monkeypatch.setenv(REASON, "/nowhere")
    handlers = list(logging.getLogger("vllm").handlers)
    tell_owner()
    assert logging.getLogger("vllm").handlers == handlers
