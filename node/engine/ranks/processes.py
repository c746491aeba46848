"""The processes of a learner on several devices, from their start until they are gone.

One dies or fails: all are ended, because the others wait for it, and whoever asked gets a LearnerLost that says which
one it was and why. None outlives the node: they end at the end of their standard input, and the kernel ends those that
do not look (`worker.py`). Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from node.engine.ranks.messages import BrokenMessage, Message, frame_length, parsed
from swarm.errors import EngineError

#: How long the ranks have to end by themselves.
STOP_TIMEOUT_S = 2.0
#: After a first sign of failure, how long to wait for a better reason: a rank whose neighbour has died fails as well.
REASON_S = 0.5
CHUNK = 1 << 20


class LearnerLost(EngineError):
    """A rank has died, failed, or not answered in time. All of them have been ended."""

    def __init__(self, rank: int | None, reason: str, *, out_of_memory: bool = False) -> None:
        """`out_of_memory`: of its device; that is the reason."""
        self.rank = rank
        self.reason = reason
        self.out_of_memory = out_of_memory
        who = "the learner's ranks" if rank is None else f"rank {rank} of the learner"
        super().__init__(f"{who}: {reason}")


class Processes:
    """`count` of them, started when it is made. Not safe for threads. On Linux they end, too, with the thread that made
    it."""

    def __init__(self, count: int, environment: Mapping[str, str]) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count):
                self._processes.append(_started(environment))
        except OSError as error:
            self.kill()
            raise LearnerLost(None, f"cannot be started: {error}") from error

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def ask(self, messages: Sequence[Message], timeout_s: float) -> list[Message]:
        """Rank r gets message r; their answers. Raises LearnerLost."""
        talks = [_Talk(message) for message in messages]
        deadline, failing = time.monotonic() + timeout_s, False
        try:
            with selectors.DefaultSelector() as selector:
                for process, talk in zip(self._processes, talks, strict=True):
                    assert process.stdin is not None
                    assert process.stdout is not None
                    selector.register(process.stdin, selectors.EVENT_WRITE, talk.send)
                    selector.register(process.stdout, selectors.EVENT_READ, talk.receive)
                while not all(talk.over for talk in talks):
                    if any(talk.failed for talk in talks) and not failing:
                        failing, deadline = True, min(deadline, time.monotonic() + REASON_S)
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    for key, _ in selector.select(left):
                        if key.data(key.fd):
                            selector.unregister(key.fileobj)
        except BaseException:
            self.kill()  # somewhere in the middle of a message
            raise
        if all(talk.answer is not None and not talk.failed for talk in talks):
            return [talk.answer for talk in talks if talk.answer is not None]
        raise self._lost(talks, timeout_s)

    def _lost(self, talks: Sequence[_Talk], timeout_s: float) -> LearnerLost:
        """Those without memory first, whatever the others made of it; then those that the kernel ended, those that said
        what is wrong, and those that said nothing."""
        for process, talk in zip(self._processes, talks, strict=True):
            with contextlib.suppress(subprocess.TimeoutExpired):
                if talk.gone:
                    process.wait(REASON_S)
        statuses = [process.poll() for process in self._processes]
        self.kill()
        for rank, talk in enumerate(talks):
            if talk.out_of_memory:
                return LearnerLost(rank, talk.error, out_of_memory=True)
        for rank, status in enumerate(statuses):
            if status is not None and status < 0:
                return LearnerLost(rank, f"was killed by {signal.Signals(-status).name}")
        for rank, talk in enumerate(talks):
            if talk.error:
                return LearnerLost(rank, talk.error)
        for rank, (status, talk) in enumerate(zip(statuses, talks, strict=True)):
            if talk.gone:
                return LearnerLost(rank, f"has ended with status {status}")
        silent = next(rank for rank, talk in enumerate(talks) if talk.answer is None)
        return LearnerLost(silent, f"did not answer within {timeout_s:g} s")

    def close(self) -> None:
        """Lets them end by themselves, for a moment; afterwards there are none. Blocks."""
        for process in self._processes:
            _end_input(process)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self._processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """At once, whatever they do; waits for them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            _end_input(process)
            if process.stdout is not None:
                process.stdout.close()


class _Talk:
    """One message on its way to a rank, and what comes back. `send` and `receive` go as far as their pipe lets them,
    and return whether there is no more to do with it."""

    def __init__(self, message: Message) -> None:
        self._out = memoryview(message.frame())
        self._in = bytearray()
        self.answer: Message | None = None
        self.gone = False
        self.error = ""
        self.out_of_memory = False

    @property
    def failed(self) -> bool:
        return self.gone or bool(self.error)

    @property
    def over(self) -> bool:
        return self.failed or self.answer is not None

    def send(self, fd: int) -> bool:
        try:
            self._out = self._out[os.write(fd, self._out[:CHUNK]) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:  # its other pipe may still have the reason
            return True
        return len(self._out) == 0

    def receive(self, fd: int) -> bool:
        try:
            part = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        self._in += part
        self.gone = not part
        try:
            length = frame_length(self._in)
            if length is not None and len(self._in) >= length:
                self.answer = parsed(self._in[:length])
                self.error = str(self.answer.head.get("error", ""))
                self.out_of_memory = bool(self.answer.head.get("out_of_memory", False))
        except BrokenMessage as error:
            self.error = str(error)
        return self.over


def environment(threads: int) -> dict[str, str]:
    """Of a rank, with so many CPU threads."""
    loopback = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    variables = {name: next(iter(loopback)) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if loopback}
    path = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, **variables, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def _started(variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # -P: not the current directory, but exactly what this process can import.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "node.engine.ranks.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(variables),
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    return process


def _end_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
