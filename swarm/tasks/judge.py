"""Who makes tasks and scores them: in this process, or in one that can be killed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Self

from swarm.errors import ConfigError, TaskError, TaskTimeout
from swarm.tasks import make_source
from swarm.tasks.base import SourceInfo, SourceSpec, TaskSource
from swarm.tasks.child import DescribedSource, Worker
from swarm.tasks.scoring import MAX_DETAIL_CHARS, describe, failed, score_response, source_of
from swarm.tasks.worker import MAX_LINE_BYTES
from swarm.types import Score, ScoreStatus, Task, TaskRef

MEMORY_BYTES = 4 << 30
"""Of the judge's process, address space. With reasoning-gym and SymPy imported it has 250 MB."""
TASKS_KEPT = 4096
MAX_RESPONSE_CHARS = MAX_LINE_BYTES // 16
"""Of one group. JSON writes a character in at most 12 bytes."""


class LocalJudge:
    """Makes and scores in this process: nothing to start and nothing to kill, and so without a time limit.

    For tests and for what one's own policy wrote; a stranger's text can make a scorer hang.
    """

    def __init__(self, specs: Sequence[SourceSpec]) -> None:
        """Raises ConfigError as `make_source` does, and for two sources that nobody could tell apart."""
        self._sources = [make_source(spec) for spec in specs]
        _check_distinct(self._sources)

    @property
    def sources(self) -> Sequence[TaskSource]:
        return self._sources

    async def task(self, ref: TaskRef) -> Task:
        _, source = source_of(ref, self._sources)
        try:
            return source.task(ref.seed, ref.index)
        except TaskError:
            raise
        except Exception as error:  # a source may raise anything
            raise TaskError(f"{ref.source}: {describe(error)}") from error

    async def tasks(self, refs: Sequence[TaskRef]) -> list[Task | TaskError]:
        return [await self._made(ref) for ref in refs]

    async def _made(self, ref: TaskRef) -> Task | TaskError:
        try:
            return await self.task(ref)
        except TaskError as error:
            return error

    async def score(self, task: Task, responses: Sequence[str]) -> list[Score]:
        try:
            _, source = source_of(task.ref, self._sources)
        except TaskError as error:
            return [failed(str(error)[:MAX_DETAIL_CHARS])] * len(responses)
        return [score_response(source, task, response) for response in responses]


class ProcessJudge:
    """Makes and scores in a child process, which is killed and replaced when a request takes longer than `timeout_s`.

    An async context manager; entering starts the process and raises ConfigError when it refuses a spec. Callers are
    served one at a time in the order in which they came, and a request's time starts when it is its turn. Each of them
    waits in its caller, so that as many wait as there are callers.
    """

    def __init__(
        self, specs: Sequence[SourceSpec], *, timeout_s: float = 10.0, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._specs = tuple(specs)
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._turn = asyncio.Lock()
        self._worker: Worker | None = None
        self._sources: tuple[DescribedSource, ...] = ()
        self._tasks: OrderedDict[TaskRef, Task] = OrderedDict()
        self._closed = False

    async def __aenter__(self) -> Self:
        worker = await Worker.start(self._specs, self._memory_bytes)
        try:
            _check_distinct(worker.sources)
        except ConfigError:
            await worker.stop()
            raise
        self._worker, self._sources = worker, worker.sources
        return self

    async def __aexit__(self, *_: object) -> None:
        """No process is left behind. Whoever is waiting is told that the judge is closed."""
        self._closed = True
        if self._turn.locked() and self._worker is not None:
            self._worker.abort()  # whoever is asking it is told at once
        async with self._turn:
            await self._end_worker()

    @property
    def sources(self) -> Sequence[SourceInfo]:
        return self._sources

    @property
    def pid(self) -> int | None:
        """Of the child process, None while there is none."""
        return self._worker.pid if self._worker is not None and self._worker.alive else None

    async def task(self, ref: TaskRef) -> Task:
        (made,) = await self.tasks([ref])
        if isinstance(made, TaskError):
            raise made
        return made

    async def tasks(self, refs: Sequence[TaskRef]) -> list[Task | TaskError]:
        made: dict[TaskRef, Task | TaskError] = {}
        asked: dict[TaskRef, Mapping[str, Any]] = {}
        for ref in refs:
            if ref in self._tasks:
                self._tasks.move_to_end(ref)
                made[ref] = self._tasks[ref]
                continue
            try:
                position, _ = source_of(ref, self._sources)
                asked[ref] = {"op": "task", "source": position, "seed": ref.seed, "index": ref.index}
            except TaskError as error:
                made[ref] = error
        if asked:
            made |= await self._make(asked)
        return [made[ref] for ref in refs]

    async def _make(self, asked: Mapping[TaskRef, Mapping[str, Any]]) -> dict[TaskRef, Task | TaskError]:
        try:
            replies = await self._ask(list(asked.values()))
        except TaskError as error:
            return dict.fromkeys(asked, error)
        made: dict[TaskRef, Task | TaskError] = {}
        for ref, reply in zip_longest(asked, replies):
            if reply is None:
                made[ref] = TaskTimeout(f"{ref.source}: seed {ref.seed}, index {ref.index}: {self._too_long()}")
                continue
            try:
                made[ref] = self._tasks[ref] = _task(ref, reply)
            except TaskError as error:
                made[ref] = error
        while len(self._tasks) > TASKS_KEPT:
            self._tasks.popitem(last=False)
        return made

    async def score(self, task: Task, responses: Sequence[str]) -> list[Score]:
        try:
            position, _ = source_of(task.ref, self._sources)
            place = {"source": position, "seed": task.ref.seed, "index": task.ref.index}
            if (size := sum(map(len, responses))) > MAX_RESPONSE_CHARS:
                raise TaskError(f"the responses have {size} characters; at most {MAX_RESPONSE_CHARS} are scored")
            replies = await self._ask([{"op": "score", **place, "responses": list(responses)}])
            if not replies:
                return [Score(reward=0.0, status=ScoreStatus.TIMEOUT, detail=self._too_long())] * len(responses)
            return _scores(replies[0], len(responses))
        except TaskError as error:
            return [failed(str(error)[:MAX_DETAIL_CHARS])] * len(responses)

    def _too_long(self) -> str:
        return f"took longer than {self._timeout_s:g} s"

    async def _ask(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The replies; fewer, if the next one took too long. Raises TaskError when there is none."""
        async with self._turn:
            worker, replies = await self._running(), list[dict[str, Any]]()
            try:
                async with asyncio.timeout(self._timeout_s):
                    numbers = await worker.send(requests)
                for number in numbers:
                    async with asyncio.timeout(self._timeout_s):
                        replies.append(await worker.reply(number))
            except BaseException as error:
                # Also when the caller was cancelled: a child that is still busy would make the next request pay for it.
                worker.abort()
                await self._end_worker()
                if not isinstance(error, TimeoutError):
                    raise
            return replies

    async def _running(self) -> Worker:
        if self._closed:
            raise TaskError("the judge is closed")
        if self._worker is not None and self._worker.alive:
            return self._worker
        await self._end_worker()
        try:
            worker = self._worker = await Worker.start(self._specs, self._memory_bytes)
        except ConfigError as error:
            raise TaskError(f"the judge's process cannot be started again: {error}") from error
        if worker.sources != self._sources:
            await self._end_worker()
            raise TaskError("the task sources have changed since the judge was started")
        return worker

    async def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()


def _check_distinct(sources: Sequence[SourceInfo]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for source in sources:
        key = (source.name, source.version, source.config)
        if key in seen:
            raise ConfigError(f"task {source.name!r} with config {source.config} is there twice")
        seen.add(key)


def _task(ref: TaskRef, reply: Mapping[str, Any]) -> Task:
    if "error" in reply:
        raise TaskError(str(reply["error"]))
    try:
        made = reply["task"]
        return Task(ref=ref, prompt=str(made["prompt"]), answer=str(made["answer"]), difficulty=str(made["difficulty"]))
    except (LookupError, TypeError) as error:
        raise TaskError(f"the judge's process answered something else: {describe(error)}") from error


def _scores(reply: Mapping[str, Any], count: int) -> list[Score]:
    if "error" in reply:
        raise TaskError(str(reply["error"]))
    try:
        scores = [Score(reward=float(r), status=ScoreStatus(s), detail=str(d)) for r, s, d in reply["scores"]]
    except (LookupError, TypeError, ValueError) as error:
        raise TaskError(f"the judge's process answered something else: {describe(error)}") from error
    if len(scores) != count or not all(0.0 <= score.reward <= 1.0 for score in scores):
        raise TaskError("the judge's process answered with other scores than asked for")
    return scores
