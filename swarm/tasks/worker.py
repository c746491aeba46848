"""The judge's process, `python -m swarm.tasks.worker`: makes tasks and scores what strangers wrote.

JSON lines on stdin and stdout, one thing at a time. The first line says what to be, the answer what it has become:

    > {"specs": [{"type", "name", "config", "path"}], "memory_bytes": 4294967296}
    < {"sources": [{"name", "version", "config", "size"}]}       or {"error"}, and it ends
    > {"id": 1, "op": "task", "source": 0, "seed": 7, "index": 3}
    < {"id": 1, "task": {"prompt", "answer", "difficulty"}}       or {"id": 1, "error"}
    > {"id": 2, "op": "score", "source": 0, "seed": 7, "index": 3, "responses": ["...", "..."]}
    < {"id": 2, "scores": [[1.0, "ok", ""], ...]}                 or {"id": 2, "error"}

It ends at the end of stdin and dies with its parent. Scoring must touch nothing else, and here it cannot easily: no
writing of files, no processes, no sockets, bounded memory. That is a second line of defence and no sandbox: the first
is that no source evaluates a response (swarm/tasks/gym.py).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

from swarm.errors import TaskError
from swarm.tasks import make_source
from swarm.tasks.base import SourceSpec, TaskSource
from swarm.tasks.scoring import describe, score_response
from swarm.types import Task

#: Both ways. A request has at most a group's text (swarm/limits.py), which JSON makes up to six times longer.
MAX_LINE_BYTES = 8 << 20
MAX_ERROR_CHARS = 2000

_PR_SET_PDEATHSIG = 1
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = frozenset(
    {
        *(
            "ctypes.dlopen",
            "os.chmod",
            "os.chown",
            "os.exec",
            "os.fork",
            "os.forkpty",
            "os.kill",
            "os.link",
            "os.mkdir",
        ),
        *(
            "os.posix_spawn",
            "os.putenv",
            "os.remove",
            "os.rename",
            "os.rmdir",
            "os.symlink",
            "os.system",
            "os.truncate",
        ),
        *("pty.spawn", "shutil.rmtree", "socket.__new__", "subprocess.Popen"),
    }
)


def main() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole process group; ending it is the parent's affair
    die_with_parent()
    requests, replies = take_standard_streams()
    settings = json.loads(_read(requests) or "{}")
    if not settings:
        return
    _limit(resource.RLIMIT_AS, settings["memory_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    try:
        sources = [make_source(SourceSpec(**spec)) for spec in settings["specs"]]
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
        _write(replies, {"error": describe(error, MAX_ERROR_CHARS)})
        return
    _write(replies, {"sources": [_info(source) for source in sources]})
    _limit(resource.RLIMIT_FSIZE, 0)
    sys.dont_write_bytecode = True
    sys.addaudithook(_forbid)
    serve(sources, requests, replies)


def serve(sources: Sequence[TaskSource], requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers until the end of `requests`."""

    @lru_cache(maxsize=256)
    def task(source: int, seed: int, index: int) -> Task:
        return sources[source].task(seed, index)

    while line := _read(requests):
        request: Mapping[str, Any] = json.loads(line)
        try:
            made = task(request["source"], request["seed"], request["index"])
        except Exception as error:  # noqa: BLE001 - a source may raise anything; it is the answer to this request
            text = str(error) if isinstance(error, TaskError) else describe(error)
            reply: dict[str, Any] = {"error": text[:MAX_ERROR_CHARS]}
        else:
            reply = _answer(sources[request["source"]], made, request)
        _write(replies, {"id": request["id"], **reply})


def _answer(source: TaskSource, task: Task, request: Mapping[str, Any]) -> dict[str, Any]:
    if request["op"] == "task":
        return {"task": {"prompt": task.prompt, "answer": task.answer, "difficulty": task.difficulty}}
    scores = [score_response(source, task, response) for response in request["responses"]]
    return {"scores": [[score.reward, score.status, score.detail] for score in scores]}


def _info(source: TaskSource) -> dict[str, Any]:
    return {"name": source.name, "version": source.version, "config": source.config, "size": source.size}


def _read(requests: BinaryIO) -> bytes:
    return requests.readline(MAX_LINE_BYTES + 1)


def _write(replies: BinaryIO, reply: Mapping[str, Any]) -> None:
    line = json.dumps(reply).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        line = json.dumps({"id": reply.get("id"), "error": f"has more than {MAX_LINE_BYTES} bytes"}).encode() + b"\n"
    replies.write(line)
    replies.flush()


def take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's ends under private numbers; what a task reads or prints is nothing."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return requests, replies


def die_with_parent() -> None:
    """A hanging task does not see the end of stdin. Only Linux can say this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING):
        raise PermissionError(f"a task may not {event}")


if __name__ == "__main__":
    main()
