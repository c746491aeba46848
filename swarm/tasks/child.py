"""The parent's end of one `swarm.tasks.worker`: started, asked by one caller at a time, ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from swarm.errors import ConfigError, TaskError
from swarm.tasks.base import SourceSpec
from swarm.tasks.worker import MAX_LINE_BYTES

START_TIMEOUT_S = 120.0
"""Importing takes seconds and checking a gigabyte of lines more; only a broken machine takes longer."""
STOP_TIMEOUT_S = 1.0

_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedSource:
    """A source that is in another process."""

    name: str
    version: str
    config: str
    size: int | None


class Worker:
    """Made by `start`. After any exception out of `send` or `reply` it may be busy: it must be aborted and stopped."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self.sources: tuple[DescribedSource, ...] = ()

    @classmethod
    async def start(cls, specs: Sequence[SourceSpec], memory_bytes: int) -> Self:
        """Raises ConfigError when a spec is refused, TaskError when the process does not come up."""
        # -P: not the current directory, but exactly what this process can import.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "swarm.tasks.worker"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=MAX_LINE_BYTES,
            env=_environment(),
        )
        worker = cls(process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                settings = {"specs": [asdict(spec) for spec in specs], "memory_bytes": memory_bytes}
                await worker._write(settings)
                worker.sources = _described(await worker._read())
        except BaseException as error:
            worker.abort()
            await worker.stop()
            if isinstance(error, TimeoutError):
                raise TaskError(f"the judge's process did not start within {START_TIMEOUT_S:.0f} s") from error
            raise
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def send(self, requests: Sequence[Mapping[str, Any]]) -> list[int]:
        """The number of each, by which `reply` fetches its answer; they are served in this order. Several of them
        must fit into a pipe together. Raises TaskError when the process has died."""
        numbers = [next(self._ids) for _ in requests]
        await self._write(*({"id": number, **request} for number, request in zip(numbers, requests, strict=True)))
        return numbers

    async def reply(self, number: int) -> dict[str, Any]:
        """Raises TaskError when the process has died or does not keep to the protocol."""
        reply = await self._read()
        if reply.get("id") != number:
            raise TaskError("the judge's process answered something else")
        return reply

    def abort(self) -> None:
        """Kills it. Whoever is asking gets a TaskError; `stop` must follow."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """Lets it end by itself, for a moment; afterwards there is no such process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.communicate()
        except TimeoutError:
            self.abort()
            await self._process.communicate()

    async def _write(self, *messages: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
            await self._process.stdin.drain()
        except (OSError, RuntimeError) as error:  # uvloop's pipe to a process that is gone: "the handler is closed"
            raise TaskError("the judge's process has died") from error

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            reply = json.loads(await self._process.stdout.readline())
        except (ValueError, OSError) as error:
            raise TaskError("the judge's process has died") from error
        if not isinstance(reply, dict):
            raise TaskError("the judge's process answered something else")
        return reply


def _described(reply: Mapping[str, Any]) -> tuple[DescribedSource, ...]:
    if "error" in reply:
        kind, _, text = str(reply["error"]).partition(": ")
        if kind == ConfigError.__name__:
            raise ConfigError(text)
        raise TaskError(f"a task source cannot be made: {reply['error']}")
    return tuple(DescribedSource(**source) for source in reply["sources"])


def _environment() -> dict[str, str]:
    """No more than it needs: whoever gets hold of that process finds no tokens in it."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # One thread, because it is one of several processes on the machine; a fixed hash seed is a second belt for sources
    # whose sets have an order that nobody has noticed yet.
    fixed = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return {**inherited, **fixed, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
