"""The generator for small models: requests are collected into batches, weights change between two of them.

One thread samples; the event loop only queues. A batch takes what is waiting, up to `batch_size` sequences, and lingers
a few milliseconds for more when it is not full, because the producers all come back at the same moment.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from transformers import PreTrainedModel

from node.config import TransformersEngine
from node.engine.base import FAILED, Completion, TextCodec, Weights
from node.engine.sampling import SampledRow, sample
from node.engine.stop import end_at_stop
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

    An asynchronous context manager. An error in the engine is raised to everybody who waits for that batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: TextCodec,
        config: TransformersEngine,
        version: PolicyVersion,
        rng: torch.Generator,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._codec = codec
        self._config = config
        self._version = version
        self._rng = rng
        self._requests: asyncio.Queue[_Request] = asyncio.Queue(MAX_WAITING)
        self._carried: _Request | None = None  # did not fit into the last batch
        self._newest: Weights | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generator")
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
        self._thread.shutdown(wait=True)
        while (request := self._take_waiting()) is not None:
            request.done.cancel()

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        if len(prompt) + params.max_new_tokens > self.max_length:
            return [FAILED] * n
        done: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        await self._requests.put(_Request(prompt=prompt, n=n, params=params, done=done))
        return await done

    async def load(self, weights: Weights) -> None:
        if self._newest is None or weights.version >= self._newest.version:
            self._newest = weights

    def make_room(self) -> AbstractAsyncContextManager[None]:
        """Nothing to do: the models that this engine is for are small."""
        return nullcontext()

    def gauges(self) -> Mapping[str, float]:
        return {"engine_waiting": float(self._requests.qsize() + (self._carried is not None))}

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._collect()
            weights, self._newest = self._newest, None
            try:
                results = await loop.run_in_executor(self._thread, self._sample, batch, weights)
            except Exception as error:  # noqa: BLE001 - handed to those who asked; the next batch is tried
                for request in batch:
                    if not request.done.done():
                        request.done.set_exception(error)
                continue
            for request, completions in zip(batch, results, strict=True):
                if not request.done.done():  # it may have been cancelled meanwhile
                    request.done.set_result(completions)

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
