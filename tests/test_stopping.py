"""How a process ends: deadlines, a second signal, what systemd is told. Real signals, real sockets, real processes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from node import exit_codes, stopping
from node.service_manager import ServiceManager
from node.stopping import Closing, Ending, beside

ROOT = Path(__file__).parents[1]

HANGING = """
import asyncio, logging, sys, threading, time
from node.stopping import Ending
logging.basicConfig(level=logging.INFO)
async def main():
    ending = Ending(deadline_s=float(sys.argv[1]))
    ending.on_signals()
    ending.saved = sys.argv[2] == "saved"
    threading.Thread(target=time.sleep, args=(60,)).start()  # what a native library may do to us
    print("up", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@contextmanager
def hanging(deadline_s: float, saved: str = "saved") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HANGING, str(deadline_s), saved]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process


@pytest.mark.parametrize(
    ("saved", "code"), [("saved", exit_codes.OK), ("lost", exit_codes.UNSAVED)], ids=["saved", "lost"]
)
def test_a_process_that_hangs_is_gone_at_the_deadline_and_says_where(saved: str, code: int) -> None:
    with hanging(0.2, saved) as process:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "not gone 0.2 s after it was asked to stop" in said
    assert "most recent call first" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    with hanging(60.0) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "asked to stop" not in process.stderr.readline():
            pass
        process.send_signal(number)
        assert process.wait(30) == 128 + number


async def test_what_is_being_opened_is_given_up_when_the_node_is_stopped() -> None:
    ending, closed = Ending(), asyncio.Event()

    async def opening() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()
        return "up"

    work = asyncio.create_task(ending.unless_stopped(opening()))
    await asyncio.sleep(0)
    ending.stopping.set()
    assert await work is None
    assert closed.is_set()
    assert ending.code == exit_codes.OK


async def test_what_is_opened_in_time_is_handed_over_and_so_are_errors() -> None:
    async def opening(error: Exception | None) -> str:
        if error is not None:
            raise error
        return "up"

    assert await Ending().unless_stopped(opening(None)) == "up"
    with pytest.raises(KeyError):
        await Ending().unless_stopped(opening(KeyError("k")))


@asynccontextmanager
async def hangs_when_closed() -> AsyncIterator[str]:
    yield "open"
    await asyncio.Event().wait()


async def test_what_does_not_close_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with Closing(hangs_when_closed(), "the network", within_s=0.05) as opened:
            assert opened == "open"
    assert caplog.messages == ["the network is not closed after 0.05 s, and is left as it is"]


async def test_what_closes_may_fail_and_may_swallow() -> None:
    @asynccontextmanager
    async def swallows() -> AsyncIterator[None]:
        try:
            yield
        except KeyError:
            raise ValueError("while closing") from None

    with pytest.raises(ValueError, match="while closing"):
        async with Closing(swallows(), "it"):
            raise KeyError


def test_the_deadlines_of_all_stages_fit_into_the_last_one() -> None:
    stages = (stopping.SAMPLING_S, stopping.LOOPS_S, stopping.CHECKPOINT_S, stopping.CLOSING_S)
    assert sum(stages) < stopping.DEADLINE_S < 20


# A service manager ----------------------------------------------------------------------------------------------------


class FakeSystemd:
    """Its end of NOTIFY_SOCKET: a real one."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self.socket.settimeout(10.0)

    def heard(self) -> dict[str, str]:
        fields = (line.partition("=") for line in self.socket.recv(4096).decode().splitlines())
        return {name: value for name, _, value in fields}


@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
async def test_it_is_told_how_the_node_is_and_that_it_lives(tmp_path: Path, abstract: bool) -> None:
    path = f"@swarm-node-test-{time.monotonic_ns()}" if abstract else str(tmp_path / "notify")
    systemd, ending = FakeSystemd(path), Ending()
    manager = ServiceManager({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000"})
    assert manager.watchdog_s == 0.06
    manager.tell(READY=1)
    assert systemd.heard() == {"READY": "1"}
    async with beside(manager.watch(lambda: "", lambda: "step 7\nSTOPPING=1", ending)):
        for _ in range(3):
            heard = await asyncio.to_thread(systemd.heard)
            assert heard == {"WATCHDOG": "1", "STATUS": "step 7 STOPPING=1"}, "a text is one field"
    manager.tell(STOPPING=1)
    systemd.socket.close()


async def test_a_part_that_is_stuck_gets_no_watchdog_and_ends_the_node(tmp_path: Path) -> None:
    systemd, ending = FakeSystemd(str(tmp_path / "notify")), Ending()
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000"})
    await manager.watch(lambda: "the learner's step takes 2000 s", lambda: "", ending)
    assert ending.stopping.is_set()
    assert ending.code == exit_codes.UNAVAILABLE
    systemd.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.heard()
    systemd.socket.close()


def test_nobody_listens() -> None:
    ServiceManager({}).tell(READY=1)
    ServiceManager({"NOTIFY_SOCKET": "/nowhere/notify"}).tell(READY=1)
    assert ServiceManager({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}).watchdog_s == 0.0
