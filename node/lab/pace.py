"""How fast a simulated node is: a generator whose rollouts, and a learner whose steps, take virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import numpy as np

from node.engine.base import Completion, Generator, Weights
from swarm.types import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """In virtual seconds."""

    rollout_s: float = 1.0
    """Median time that a rollout takes."""
    spread: float = 0.0
    """Of rollout times: sigma of their logarithm (0.9 is 10 to 1 between the 10th and the 90th percentile)."""
    step_s: float = 0.5
    """That a learner's step takes."""
    start_s: float = 0.0
    """When the node joins."""


@dataclass(slots=True, eq=False)
class _Request:
    prompt: np.ndarray
    n: int
    params: SamplingParams
    completions: list[Completion] | None = None


class PacedGenerator:
    """`Generator` over a real one, whose rollouts take virtual time.

    How long a request takes does not depend on what comes of it, so it is sampled as late as can be: when the first of
    those that wait is due, or when their weights are about to be replaced, all of them are one batch. However much
    their times differ, that costs hardly more than if they came back together.

    With `lag` k, batch number b (of `batch_groups` groups, in the order in which they are asked for) is sampled with
    exactly the weights of k steps before it is learned from: its request waits until the learner is that far, however
    fast the node is. Without, weights are taken over as they come, as a real node does.
    """

    def __init__(
        self,
        inner: Generator,
        pace: Pace,
        rng: np.random.Generator,
        stepped: Callable[[], None],
        lag: int | None = None,
        batch_groups: int = 1,
    ) -> None:
        """`stepped` is called after every step of the learner, when its weights arrive."""
        self._inner = inner
        self._pace = pace
        self._rng = rng
        self._on_step = stepped
        self._lag = lag
        self._batch_groups = batch_groups
        self._asked = 0
        self._history: list[Weights] = []  # of the last `lag` steps and the present one
        self._steps = 0
        self._waiting: list[_Request] = []
        self._stepped = asyncio.Condition()
        self._sampling = asyncio.Lock()

    @property
    def max_length(self) -> int:
        return self._inner.max_length

    @property
    def in_flight(self) -> int:
        return self._inner.in_flight

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        await self._admitted()
        request = _Request(prompt, n, params)
        self._waiting.append(request)
        slowest = float(np.exp(self._pace.spread * self._rng.standard_normal(n)).max())
        await asyncio.sleep(self._pace.rollout_s * slowest)
        if request.completions is None:
            await self._sample_waiting()
        assert request.completions is not None
        return request.completions

    async def _sample_waiting(self) -> None:
        """With the weights of now. A request that is being sampled already is waited for."""
        async with self._sampling:
            waiting, self._waiting = self._waiting, []
            sampled = await asyncio.gather(*(self._inner.sample(r.prompt, r.n, r.params) for r in waiting))
            for request, completions in zip(waiting, sampled, strict=True):
                request.completions = completions

    async def load(self, weights: Weights) -> None:
        self._on_step()
        async with self._stepped:
            self._steps += 1
            self._history.append(weights)
            del self._history[: -1 - (self._lag or 0)]
            self._stepped.notify_all()
        if self._lag is None:
            await self._replace(weights)

    async def _replace(self, weights: Weights) -> None:
        await self._sample_waiting()
        await self._inner.load(weights)

    @asynccontextmanager
    async def _room(self) -> AsyncIterator[None]:
        await asyncio.sleep(self._pace.step_s)
        yield

    def make_room(self) -> AbstractAsyncContextManager[None]:
        """Where a step's virtual time passes: its result is there when it is over."""
        return self._room()

    def gauges(self) -> Mapping[str, float]:
        return self._inner.gauges()

    async def _admitted(self) -> None:
        """Waits for the step `lag` before this request's batch, and samples with that step's weights."""
        if self._lag is None:
            return
        wanted = self._asked // self._batch_groups - self._lag
        self._asked += 1
        if wanted <= 0:
            return
        async with self._stepped:
            await self._stepped.wait_for(lambda: self._steps >= wanted)
            newest_first = self._steps - wanted
            weights = self._history[-1 - newest_first]
        await self._replace(weights)
