"""The generator for small models: requests are collected into batches, weights change between two of them.

One thread samples; the event loop only queues. A batch takes what is waiting, up to `batch_size` sequences, and lingers
a few milliseconds for more when it is not full, because the producers all come back at the same moment.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from transformers import PreTrainedModel

from node.config import TransformersEngine
from node.engine.base import FAILED, Completion, Weights
from node.engine.sampling import SampledRow, sample
from node.engine.stop import end_at_stop
from node.engine.thread import WorkThread
from node.supervision import Part, unsupervised
from node.text_codec import TextCodec
from swarm.types import FinishReason, PolicyVersion, SamplingParams, VersionSpan

#: Requests that may wait; who comes later waits for a place.
MAX_WAITING = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    prompt: np.ndarray
    n: int
    params: SamplingParams
    done: asyncio.Future[list[Completion]]


class TransformersGenerator:
    """`Generator` over `model`, which belongs to it from now on: the learner has its own copy.

    An asynchronous context manager. A batch that the engine fails on comes back as FAILED, and the engine goes on after
    a pause, with the newest weights; what `part` gives up with is raised to everybody who asks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: TextCodec,
        config: TransformersEngine,
        version: PolicyVersion,
        rng: torch.Generator,
        part: Part | None = None,
    ) -> None:
        """`part`: what is done about errors; by default the first one is the last."""
        self._model = model.eval().requires_grad_(False)
        self._codec = codec
        self._config = config
        self._version = version
        self._rng = rng
        self._requests: asyncio.Queue[_Request] = asyncio.Queue(MAX_WAITING)
        self._carried: _Request | None = None  # did not fit into the last batch
        self._newest: Weights | None = None
        self._part = unsupervised("engine") if part is None else part
        self._failure: Exception | None = None
        self._thread = WorkThread("generator")
        self._batcher: asyncio.Task[None] | None = None

    @property
    def version(self) -> PolicyVersion:
        """Of the weights that the next batch will be sampled with, unless newer ones arrive before."""
        return self._version

    @property
    def max_length(self) -> int:
        """Of the model's positions; without a limit for a model that has none."""
        return getattr(self._model.config, "max_position_embeddings", sys.maxsize)

    @property
    def in_flight(self) -> int:
        return self._config.batch_size

    async def __aenter__(self) -> TransformersGenerator:
        self._batcher = asyncio.create_task(self._run(), name="generator")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._batcher is not None
        self._batcher.cancel()
        await asyncio.gather(self._batcher, return_exceptions=True)
        await self._thread.close()
        while (request := self._take_waiting()) is not None:
            request.done.cancel()

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        if len(prompt) + params.max_new_tokens > self.max_length:
            return [FAILED] * n
        if self._failure is not None:
            raise self._failure
        done: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        await self._requests.put(_Request(prompt=prompt, n=n, params=params, done=done))
        if self._failure is not None:  # while it waited for a place
            raise self._failure
        return await done

    async def load(self, weights: Weights) -> None:
        if self._newest is None or weights.version >= self._newest.version:
            self._newest = weights

    def make_room(self) -> AbstractAsyncContextManager[None]:
        """Nothing to do: the models that this engine is for are small."""
        return nullcontext()

    def gauges(self) -> Mapping[str, float]:
        waiting = float(self._requests.qsize() + (self._carried is not None))
        return {"engine_waiting": waiting, "engine_busy_s": self._thread.busy_s}

    async def _run(self) -> None:
        """Batch after batch, until it is cancelled or the engine is given up: whoever asks is then told why."""
        try:
            while True:
                await self._one_batch(await self._collect())
        except Exception as error:  # noqa: BLE001 - raised to everybody who asks
            self._failure = error
            while (request := self._take_waiting()) is not None:
                request.done.set_exception(error)

    async def _one_batch(self, batch: Sequence[_Request]) -> None:
        """Raises what the engine is given up with."""
        weights, self._newest = self._newest, None
        try:
            results = await self._thread.call(lambda: self._sample(batch, weights))
        except Exception as error:  # noqa: BLE001 - handed to who decides
            self._newest = self._newest or weights  # they may have been taken over by half
            await self._failed(batch, error)
            return
        self._part.up()
        for request, completions in zip(batch, results, strict=True):
            _give(request, completions)

    async def _failed(self, batch: Sequence[_Request], error: Exception) -> None:
        try:
            pause_s = self._part.failed(error)
        except Exception as final:
            for request in batch:
                if not request.done.done():
                    request.done.set_exception(final)
            raise
        for request in batch:  # not again: it may be what the engine fails on
            _give(request, [FAILED] * request.n)
        await asyncio.sleep(pause_s)

    async def _collect(self) -> list[_Request]:
        """Requests of equal sampling parameters, at least one, at most `batch_size` sequences together."""
        first = self._take_waiting() or await self._requests.get()
        batch, room = [first], self._config.batch_size - first.n
        deadline = asyncio.get_running_loop().time() + self._config.linger_ms / 1000
        while room > 0:
            request = self._take_waiting() or await self._linger(deadline)
            if request is None:
                break
            if request.n > room or request.params != first.params:
                self._carried = request
                break
            batch.append(request)
            room -= request.n
        return batch

    async def _linger(self, deadline: float) -> _Request | None:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._requests.get()
        except TimeoutError:
            return None

    def _take_waiting(self) -> _Request | None:
        """The next request that anybody still waits for, without waiting for one."""
        request, self._carried = self._carried, None
        while request is None or request.done.cancelled():
            if self._requests.empty():
                return None
            request = self._requests.get_nowait()
        return request

    def _sample(self, batch: Sequence[_Request], weights: Weights | None) -> list[list[Completion]]:
        """In the generator's thread."""
        if weights is not None:
            self._take_over(weights)
        prompts, counts = [request.prompt for request in batch], [request.n for request in batch]
        params = batch[0].params
        groups = sample(self._model, prompts, counts, params, self._codec.eos_id, self._rng)
        return [[self._completion(row, params.stop) for row in rows] for rows in groups]

    def _take_over(self, weights: Weights) -> None:
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights.tensors.items():
                parameters[name].copy_(tensor)
        self._version = weights.version

    def _completion(self, row: SampledRow, stop: Sequence[str]) -> Completion:
        """Cut at the first stop string: a prefix of a sample is a sample, since where it is cut depends on nothing that
        comes after the cut."""
        end = end_at_stop(row.ids, self._codec, stop)
        length, finish = (len(row.ids), row.finish) if end is None else (end, FinishReason.STOP_STRING)
        return Completion(
            ids=row.ids[:length],
            logprobs=row.logprobs[:length],
            versions=(VersionSpan(version=self._version, length=length),),
            finish=finish,
        )


def _give(request: _Request, completions: list[Completion]) -> None:
    if not request.done.done():  # it may have been cancelled meanwhile
        request.done.set_result(completions)
