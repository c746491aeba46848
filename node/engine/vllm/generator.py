"""`Generator` over vLLM: one request per sample, as many at a time as the KV cache has room for.

A request knows nothing of updates and restarts: it waits for an engine, and begins again on the next one when its own
was lost or turned out to hold wrong weights. `node.engine.vllm.keeper` keeps that engine.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import numpy as np

from node.config import VllmEngine
from node.engine.base import FAILED, Completion, Weights
from node.engine.stop import end_at_stop
from node.engine.vllm.handoff import Lease
from node.engine.vllm.keeper import EngineKeeper
from node.engine.vllm.process import ABORTED, EngineLost, RequestFailed, Sampled
from node.text_codec import TextCodec
from swarm.types import FinishReason, PolicyVersion, SamplingParams, VersionSpan

#: Groups wait for their slowest members, whose neighbours' slots must not stay empty meanwhile.
SPARE = 2


class VllmGenerator:
    """An asynchronous context manager, up when it is entered. Raises EngineError when vLLM does not start, does not
    stay up, or cannot be brought to hold the learner's weights."""

    def __init__(
        self,
        keeper: EngineKeeper,
        codec: TextCodec,
        config: VllmEngine,
        *,
        max_length: int,
        max_in_flight: int,
        counters: Counter[str],
        warn: Callable[[str], None],
    ) -> None:
        self.keeper = keeper
        self._codec = codec
        self._config = config
        self._max_length = max_length
        self._max_in_flight = max_in_flight
        self._counters = counters
        self._warn = warn
        self._slots = asyncio.Semaphore(max_in_flight)
        self._keeping: asyncio.Task[None] | None = None

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def in_flight(self) -> int:
        return SPARE * self._max_in_flight

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        if len(prompt) + params.max_new_tokens > self._max_length:
            self._counters["refused_prompts"] += 1
            return [FAILED] * n
        try:
            async with asyncio.TaskGroup() as group:
                samples = [group.create_task(self._sample_one(prompt, params)) for _ in range(n)]
        except ExceptionGroup as errors:  # all of the same: the engine is lost for good
            raise errors.exceptions[0] from None
        return [sample.result() for sample in samples]

    async def load(self, weights: Weights) -> None:
        self.keeper.load(weights)

    def make_room(self) -> AbstractAsyncContextManager[None]:
        return self.keeper.asleep()

    def gauges(self) -> Mapping[str, float]:
        return self.keeper.gauges()

    async def __aenter__(self) -> VllmGenerator:
        self._keeping = asyncio.create_task(self.keeper.run(), name="engine")
        try:
            await self.keeper.engine()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None  # what it failed with would keep the engine alive

    async def _sample_one(self, prompt: np.ndarray, params: SamplingParams) -> Completion:
        async with self._slots:
            while (completion := await self._attempt(prompt, params)) is None:
                self._counters["resampled"] += 1
            return completion

    async def _attempt(self, prompt: np.ndarray, params: SamplingParams) -> Completion | None:
        """None where it is to begin again."""

        # A stop string has no more tokens with bytes than it has bytes: of a long response only the end is looked at.
        window = 2 * max((len(stop.encode()) for stop in params.stop), default=0)

        def enough(ids: np.ndarray) -> bool:
            stop = params.stop
            seen = end_at_stop(ids[-window:], self._codec, stop) is not None
            return seen and end_at_stop(ids, self._codec, stop) is not None

        engine = await self.keeper.engine()
        asked = engine.parameters(params.temperature, params.top_p, params.max_new_tokens, stream=bool(params.stop))
        try:
            with self.keeper.request() as lease:
                async with asyncio.timeout(self._config.request_timeout_s):
                    sampled = await engine.sample(
                        prompt, asked, lease.salt, lease.adapter, enough if params.stop else None
                    )
        except EngineLost as error:
            self.keeper.lost(engine, error)
            return None
        except TimeoutError:
            self._warn(f"a request took longer than engine.request_timeout_s = {self._config.request_timeout_s:g}")
            return FAILED
        except RequestFailed as error:
            self._warn(f"vLLM failed on a request: {error}")
            return FAILED
        completion = _completion(sampled, params.stop, lease, self._codec)
        return completion if completion is not None and await self.keeper.proved(_newest(completion)) else None


def _completion(sampled: Sampled, stop: Sequence[str], lease: Lease, codec: TextCodec) -> Completion | None:
    """None for one that the engine was told to end, and not because of a stop string."""
    end = end_at_stop(sampled.ids, codec, stop)
    if end is not None:
        finish = FinishReason.STOP_STRING
    elif sampled.finish == ABORTED:
        return None
    else:
        finish = FinishReason.STOP if sampled.finish == "stop" else FinishReason.LENGTH
        end = len(sampled.ids)
    # Requests keep their adapter; of other weights the engine knows where they changed.
    spans = sampled.spans if lease.adapter is None else [(str(lease.version), end)]
    return Completion(ids=sampled.ids[:end], logprobs=sampled.logprobs[:end], versions=_cut(spans, end), finish=finish)


def _cut(spans: Sequence[tuple[str, int]], length: int) -> tuple[VersionSpan, ...]:
    """Those of the first `length` tokens."""
    kept = []
    for version, tokens in spans:
        if (tokens := min(tokens, length)) > 0:
            kept.append(VersionSpan(version=PolicyVersion(int(version)), length=tokens))
            length -= tokens
    return tuple(kept)


def _newest(completion: Completion) -> PolicyVersion:
    return max((span.version for span in completion.versions), default=PolicyVersion(-1))
