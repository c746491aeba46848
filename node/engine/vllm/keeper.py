"""Keeps one engine up and holding the newest weights. One task does it all, one thing after the other:

    start -> weights -> probe -> serve -+-> lost -> kill -> start ...
               ^                        |
               +---- a newer version ---+

A request is given what it needs to begin (`engine`, `request`), says when its engine is lost, and asks whether the
weights that it was sampled with proved right.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import NamedTuple, Never, TypeVar

import numpy as np
import torch
from vllm.v1.engine.async_llm import AsyncLLM

from node.config import VllmEngine
from node.engine.base import Weights
from node.engine.parity import LAYER_TOLERANCE, TOLERANCE, deviation, differing_parameters
from node.engine.uninterrupted import to_its_end
from node.engine.vllm.handoff import HandOff, Lease
from node.engine.vllm.process import Engine, EngineLost
from node.supervision import Part
from node.time_account import LEARNER, RESTART, TimeAccount
from swarm.errors import EngineError
from swarm.types import PolicyVersion

T = TypeVar("T")

TICK_S = 0.5
"""How often the engine is looked at."""


class _Handover(NamedTuple):
    """A version that was given to the engine, and whether the engine proved to have what the learner has."""

    version: PolicyVersion
    verdict: asyncio.Future[bool]


class EngineKeeper:
    def __init__(
        self,
        *,
        start: Callable[[int], Engine],
        hand_off: HandOff,
        config: VllmEngine,
        dtype: str,
        probe: np.ndarray,
        weights: Weights,
        counters: Counter[str],
        warn: Callable[[str], None],
        times: TimeAccount,
        part: Part,
    ) -> None:
        """`start` makes the nth engine (from 0), in a thread. `probe`: int32 [P], see `node.engine.parity`. `weights`
        are the first ones. `part` says when an engine that was lost is replaced."""
        self._start = start
        self._hand_off = hand_off
        self._config = config
        self._tolerance = config.parity_tolerance or TOLERANCE[dtype]
        self._layer_tolerance = LAYER_TOLERANCE[dtype]
        self._probe = probe
        self._newest = weights
        self._counters = counters
        self._warn = warn
        self._times = times
        self._part = part
        self._engine: Engine | None = None  # that requests may use
        self._up = asyncio.Event()  # there is one, or a failure
        self._failure: Exception | None = None
        self._loss: EngineLost | None = None
        self._stir = asyncio.Event()  # something for the task to look at
        self._quiet = asyncio.Lock()  # held while the engine samples nothing on purpose
        self._handover: _Handover | None = None
        self._given = asyncio.Event()
        self._requests = 0
        self._active_since = 0.0  # when there was last a reason for no token to come
        self._was_up = False
        self._gauges = {"engine_pause_ms": 0.0, "engine_deviation": 0.0, "engine_version": float(weights.version)}

    # For requests -----------------------------------------------------------------------------------------------------

    async def engine(self) -> Engine:
        """The engine, as soon as there is one. Raises what the task failed with."""
        while True:
            await self._up.wait()
            if self._failure is not None:
                raise self._failure
            if self._engine is not None:
                return self._engine

    @contextmanager
    def request(self) -> Iterator[Lease]:
        """Around one that is in flight."""
        self._requests += 1
        if self._requests == 1:
            self._active_since = time.monotonic()
        try:
            with self._hand_off.lease() as lease:
                yield lease
        finally:
            self._requests -= 1

    def lost(self, engine: Engine, error: EngineLost) -> None:
        if engine is self._engine:
            self._loss = error
            self._close_to_requests()
            self._stir.set()

    async def proved(self, version: PolicyVersion) -> bool:
        """Whether the engine had the learner's weights when it sampled with `version`; waits for the probe."""
        handover = self._handover
        return handover is None or version != handover.version or await asyncio.shield(handover.verdict)

    # For the learner --------------------------------------------------------------------------------------------------

    def load(self, weights: Weights) -> None:
        if weights.version >= self._newest.version:
            self._newest = weights
            self._stir.set()

    async def reached(self, version: PolicyVersion) -> None:
        """Returns once the engine samples with `version`, or a newer one. Raises what the task failed with."""
        while self._gauges["engine_version"] < version:
            if self._failure is not None:
                raise self._failure
            await self._given.wait()

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        """Inside, the engine has given its GPU memory back, if it was configured to. What it fails at is the task's
        business: the learner goes on."""
        if not self._config.sleep:
            yield
            return
        async with self._quiet:
            engine = self._engine
            await self._tell(engine, lambda llm: llm.sleep(level=1, mode="keep"))
            try:
                with self._times.during(LEARNER):
                    yield
            finally:
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()  # what the step has freed is torch's until then
                await self._tell(engine, lambda llm: llm.wake_up())
                self._active_since = time.monotonic()

    def gauges(self) -> Mapping[str, float]:
        kv_cache = self._engine.pulse.kv_cache_usage if self._engine is not None else 0.0
        return self._gauges | {"engine_in_flight": float(self._requests), "engine_kv_cache": kv_cache}

    async def _tell(self, engine: Engine | None, question: Callable[[AsyncLLM], Awaitable[object]]) -> None:
        if engine is not None:
            try:
                await engine.ask(question(engine.llm), self._config.update_timeout_s)
            except EngineLost as error:
                self.lost(engine, error)

    # The task ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled, or there is no point in another engine: then whoever asks for one is told why."""
        number = 0
        try:
            while True:
                # Whoever stops the node may have stopped the engine first: a pause, and then another one.
                await asyncio.sleep(await self._one_engine(number))
                number += 1
        except Exception as error:  # noqa: BLE001 - raised to everybody who asks for an engine
            self._failure = error
        except asyncio.CancelledError:
            self._failure = EngineError("vLLM has been closed")
            raise
        finally:
            self._up.set()
            self._given.set()
            self._hand_off.close()

    async def _one_engine(self, number: int) -> float:
        """From its start until it is lost; then, how long to wait before the next. Raises EngineError or CrashLoop when
        there is no point in another one."""
        self._loss = None
        starting = ExitStack()
        starting.enter_context(self._times.during(RESTART))
        try:
            engine = await self._started(number)
            try:
                await engine.introduce()
                await self._hand_off.begin(engine)
                given = await self._give(engine)
                self._open_to_requests(engine)
                starting.close()
                await self._serve(engine, given)
            finally:
                self._close_to_requests()
                self._settle(False)
                try:
                    await to_its_end(asyncio.to_thread(engine.kill))
                finally:
                    engine.dismiss()
        except EngineLost as error:
            if not self._was_up:  # it never will be
                raise EngineError(str(error)) from error
            return self._part.failed(error)
        finally:
            starting.close()

    async def _started(self, number: int) -> Engine:
        """Cancelled, it ends what it has started. Raises EngineLost."""
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, number))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            if starting.exception() is None:
                await asyncio.to_thread(starting.result().kill)
            raise

    async def _serve(self, engine: Engine, given: Weights) -> Never:
        """Hands over whatever is newer than `given`, until the engine is lost."""
        while True:
            self._examine(engine)
            if self._newest is not given and await self._has_room():
                given = await self._give(engine)
            if self._newest is given:
                await self._stirred()

    async def _stirred(self) -> None:
        """Waits for a tick, or until there is something new."""
        try:
            async with asyncio.timeout(TICK_S):
                await self._stir.wait()
        except TimeoutError:
            pass
        self._stir.clear()

    def _examine(self, engine: Engine) -> None:
        """Raises EngineLost."""
        if self._loss is not None:
            raise self._loss
        if engine.dead:
            raise engine.death
        silent_s = time.monotonic() - max(engine.pulse.last_token_at, self._active_since)
        if self._requests and not self._quiet.locked() and silent_s > self._config.stall_timeout_s:
            raise EngineLost(f"no token for {silent_s:.0f} s (engine.stall_timeout_s)")

    async def _has_room(self) -> bool:
        """Whether another version can be handed over now; waits a tick for it."""
        try:
            async with asyncio.timeout(TICK_S):
                await self._hand_off.room()
        except TimeoutError:
            return False
        return True

    # Weights ----------------------------------------------------------------------------------------------------------

    async def _give(self, engine: Engine) -> Weights:
        """Hands the newest version over and compares. Raises EngineLost, and EngineError if the two differ for good."""
        async with self._quiet:
            weights = self._newest
            self._expect(weights)
            self._gauges["engine_pause_ms"] = 1000 * await self._hand_off.give(engine, weights)
            difference = await self._deviation(engine, weights)
            if difference > self._tolerance:
                await self._give_again(engine, weights, difference)
            self._settle(True)
            self._active_since = time.monotonic()
        self._counters["weight_updates"] += 1
        self._gauges["engine_version"] = float(weights.version)
        given, self._given = self._given, asyncio.Event()
        given.set()
        return weights

    async def _give_again(self, engine: Engine, weights: Weights, difference: float) -> None:
        """Nothing is sampled, and nothing that was is believed, until everything is loaded anew."""
        serving = self._engine is engine
        self._close_to_requests()
        self._settle(False)
        self._counters["parity_failures"] += 1
        timeout_s = self._config.update_timeout_s
        await engine.ask(engine.llm.pause_generation(mode="abort", clear_cache=True), timeout_s)
        complaint = (
            f"vLLM and the learner differ by {difference:.2g} nats in version {weights.version}, at most"
            f" {self._tolerance:g} is allowed: {await self._culprits(engine, weights)}"
        )
        self._warn(f"{complaint}; all weights are loaded anew")
        self._expect(weights)
        await self._hand_off.give(engine, weights)
        await engine.ask(engine.llm.resume_generation(), timeout_s)
        difference = await self._deviation(engine, weights)
        if difference > self._tolerance:
            raise EngineError(f"{complaint}; loading all weights anew did not help: {difference:.2g} nats")
        if serving:
            self._open_to_requests(engine)

    async def _deviation(self, engine: Engine, weights: Weights) -> float:
        assert weights.probe is not None  # its learner knows what the generator wants
        with self._hand_off.lease() as lease:
            timeout_s = self._config.update_timeout_s
            logprobs = await engine.probe(self._probe, lease.salt, lease.adapter, timeout_s)
        self._gauges["engine_deviation"] = deviation(logprobs, weights.probe)
        return self._gauges["engine_deviation"]

    async def _culprits(self, engine: Engine, weights: Weights) -> str:
        """Which parameters differ, in words."""
        tensors = self._hand_off.parameters(weights)
        if tensors is None or self._config.tensor_parallel_size > 1:
            return "which parameter cannot be told for adapters, nor with several GPUs"
        timeout_s = self._config.update_timeout_s
        (layers,) = await engine.ask(engine.llm.collective_rpc("swarm_layers"), timeout_s)
        (fused,) = await engine.ask(engine.llm.collective_rpc("swarm_fused"), timeout_s)
        names = await asyncio.to_thread(differing_parameters, layers, fused, tensors, self._layer_tolerance)
        return f"wrong is {', '.join(names)}" if names else "no parameter is wrong, the two compute differently"

    def _expect(self, weights: Weights) -> None:
        self._handover = _Handover(weights.version, asyncio.get_running_loop().create_future())

    def _settle(self, right: bool) -> None:
        if self._handover is not None and not self._handover.verdict.done():
            self._handover.verdict.set_result(right)

    def _open_to_requests(self, engine: Engine) -> None:
        self._engine, self._was_up = engine, True
        self._part.up()
        self._up.set()

    def _close_to_requests(self) -> None:
        self._engine = None
        self._up.clear()
