"""How a policy version gets from the learner into a running engine: all weights, or an adapter beside frozen ones.

All weights are changed under the requests in flight: the engine pauses between two tokens, loads, and goes on. An
adapter is added beside the ones before it: a request keeps the one that it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.lora.request import LoRARequest

from node.engine.base import Weights
from node.engine.vllm.process import Engine, EngineLost
from node.engine.vllm.transport import Transport
from node.time_account import WEIGHTS, TimeAccount
from swarm.types import PolicyVersion

#: A failed update is tried once more before the engine is given up.
ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a request is sampled with."""

    salt: str
    adapter: LoRARequest | None
    version: PolicyVersion
    """At its beginning."""


class HandOff(Protocol):
    async def begin(self, engine: Engine) -> None:
        """Once for every engine, before anything else. Raises EngineLost."""
        ...

    async def room(self) -> None:
        """Returns when another version can be handed over."""
        ...

    async def give(self, engine: Engine, weights: Weights) -> float:
        """The engine samples with `weights` from now on. Returns for how many seconds it sampled nothing. Raises
        EngineLost."""
        ...

    def lease(self) -> contextlib.AbstractContextManager[Lease]:
        """For one request: what it begins with stays there until the context is left."""
        ...

    def parameters(self, weights: Weights) -> Mapping[str, torch.Tensor] | None:
        """All parameters that the engine should have, by the learner's names; None where `weights` are not all."""
        ...

    def close(self) -> None: ...


class AllWeights:
    """Through vLLM's weight-transfer API."""

    def __init__(
        self,
        transport: Transport,
        aliases: Mapping[str, str],
        *,
        recompute_kv: bool,
        timeout_s: float,
        times: TimeAccount,
    ) -> None:
        """`aliases`: names of tied parameters -> the one that stands for them. Engines may keep a copy of each.
        `times` is told of the pauses."""
        self._transport = transport
        self._aliases = aliases
        self._recompute_kv = recompute_kv
        self._timeout_s = timeout_s
        self._times = times
        self._version = PolicyVersion(0)

    async def begin(self, engine: Engine) -> None:
        request = WeightTransferInitRequest(init_info=self._transport.init_info)
        await engine.ask(engine.llm.init_weight_transfer_engine(request), self._timeout_s)

    async def room(self) -> None: ...

    async def give(self, engine: Engine, weights: Weights) -> float:
        # while the engine still samples
        info = await asyncio.to_thread(self._transport.offer, self.parameters(weights))
        started = time.perf_counter()
        try:
            with self._times.during(WEIGHTS):
                await engine.ask(self._paused(engine, info, weights.version), self._timeout_s)
        finally:
            self._transport.taken()
        self._version = weights.version
        return time.perf_counter() - started

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        yield Lease(salt=str(self._version), adapter=None, version=self._version)

    def parameters(self, weights: Weights) -> Mapping[str, torch.Tensor]:
        return dict(weights.tensors) | {name: weights.tensors[of] for name, of in self._aliases.items()}

    def close(self) -> None:
        self._transport.close()

    async def _paused(self, engine: Engine, info: dict[str, object], version: PolicyVersion) -> None:
        # It lasts 20 ms longer than the pause takes to come about, which the transfer need not wait for: only what is
        # sampled before must have been given the version before.
        pausing = asyncio.ensure_future(engine.llm.pause_generation(mode="keep", clear_cache=self._recompute_kv))
        try:
            while not await engine.llm.is_paused():
                if pausing.done():
                    pausing.result()  # raises why it cannot
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    await self._update(engine, info, version, pausing)
                    break
                except Exception:
                    if attempt == ATTEMPTS:
                        raise
            await engine.llm.resume_generation()
        finally:
            pausing.cancel()

    async def _update(
        self, engine: Engine, info: dict[str, object], version: PolicyVersion, pausing: asyncio.Future[None]
    ) -> None:
        await engine.llm.start_weight_update()
        try:
            await engine.llm.update_weights(WeightTransferUpdateRequest(update_info=info))
        except Exception:
            # whether a failed update leaves its session open depends on vLLM's release
            with contextlib.suppress(Exception):
                await engine.llm.finish_weight_update()
            raise
        await pausing
        await engine.llm.finish_weight_update(str(version))


class Adapters:
    """Through add_lora. At most `live` versions are in use at a time: others wait, and are skipped when overtaken."""

    def __init__(
        self, save: Callable[[Path, Mapping[str, torch.Tensor]], None], *, live: int, timeout_s: float
    ) -> None:
        """`save` writes an adapter's tensors in PEFT layout."""
        self._save = save
        self._live = live
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._current: Lease | None = None
        self._users: Counter[int] = Counter()  # requests by adapter
        self._retired: dict[int, LoRARequest] = {}
        self._changed = asyncio.Event()
        self._directory = tempfile.TemporaryDirectory(prefix="swarm-node-adapters-", dir=_memory_directory())

    async def begin(self, engine: Engine) -> None:
        """The engine before is gone, and all that it had."""
        self._current, self._retired = None, {}

    async def room(self) -> None:
        while len([number for number in self._retired if self._users[number]]) >= self._live - 1:
            self._changed.clear()
            await self._changed.wait()

    async def give(self, engine: Engine, weights: Weights) -> float:
        await self._remove_unused(engine)
        number = next(self._numbers)
        path = Path(self._directory.name) / str(number)
        path.mkdir()
        await asyncio.to_thread(self._save, path, weights.tensors)
        request = LoRARequest(lora_name=f"version-{weights.version}", lora_int_id=number, lora_path=str(path))
        if not await engine.ask(engine.llm.add_lora(request), self._timeout_s):
            raise EngineLost(f"vLLM refused the adapter of version {weights.version}")
        if self._current is not None and self._current.adapter is not None:
            self._retired[self._current.adapter.lora_int_id] = self._current.adapter
        self._current = Lease(salt="", adapter=request, version=weights.version)
        return 0.0

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        lease = self._current
        assert lease is not None  # an engine that is up was given one
        assert lease.adapter is not None
        self._users[lease.adapter.lora_int_id] += 1
        try:
            yield lease
        finally:
            self._users[lease.adapter.lora_int_id] -= 1
            self._changed.set()

    def parameters(self, weights: Weights) -> None:
        return None

    def close(self) -> None:
        self._directory.cleanup()

    async def _remove_unused(self, engine: Engine) -> None:
        for number in [number for number in self._retired if not self._users[number]]:
            retired = self._retired.pop(number)
            del self._users[number]
            await engine.ask(engine.llm.remove_lora(number), self._timeout_s)
            await asyncio.to_thread(shutil.rmtree, retired.lora_path)


def _memory_directory() -> str | None:
    """An adapter is small and soon gone: it need not touch a disk. None for the usual place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
