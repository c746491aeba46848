"""What memory the learner and the engine need, and how they share it. Pure.

Asked twice. Before anything is loaded, node/engine/forecast.py wants to know whether all of it will fit. Before vLLM
starts and before the learner's first step, when the policy's own weights are in memory and nothing else is, a `plan`
says how much of what is free then is the KV cache. What does not fit is an error with all the numbers, instead of a
crash in some later step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from node.algorithms import LearnerConfig
from node.config import TransformersEngine, VllmEngine
from node.engine.memory import Device, Machine
from node.engine.size import (
    DTYPE_BYTES,
    GIB,
    NOTHING,
    Dtype,
    LearnerBytes,
    ModelSize,
    kv_bytes,
    learner_bytes,
    ram_bytes,
)
from swarm.errors import EngineError

#: Of free memory, what is planned with; the rest is for fragmentation.
USABLE = 0.95
#: Of an engine process besides weights and KV cache: its runtime, captured graphs and activations, per device.
OWN_BYTES = GIB
#: Sequences in flight that a KV cache is made for where nothing else is configured.
MOST_IN_FLIGHT = 256
#: Of available RAM, at most what a KV cache takes by itself.
RAM_SHARE = 0.25
#: Tokens whose keys and values are allocated together: vLLM's defaults (vllm/platforms/cpu.py, vllm/config/cache.py).
BLOCK_TOKENS = {"cuda": 16, "cpu": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Bytes are per device of the engine."""

    kv_cache_bytes: int
    memory_fraction: float
    """All that the engine takes, of the largest device's memory: vLLM's gpu_memory_utilization. Where less is free, it
    does not start."""
    max_in_flight: int
    learner_bytes: int
    """On the device that learner and engine share; 0 without one."""
    engine_weights_bytes: int
    kv_bytes_per_token: int

    def __str__(self) -> str:
        return (
            f"KV cache {gib(self.kv_cache_bytes)} ({self.kv_bytes_per_token:,} bytes per token) for "
            f"{self.max_in_flight} sequences in flight; weights {gib(self.engine_weights_bytes)}, "
            f"engine {gib(OWN_BYTES)}, learner {gib(self.learner_bytes)}"
        )


def plan(
    size: ModelSize,
    dtype: Dtype,
    max_length: int,
    learner: LearnerConfig,
    engine: VllmEngine,
    machine: Machine,
) -> Plan:
    """How the machine's memory is shared. `dtype` is what is sampled with and computed in; `max_length` counts a prompt
    and its response together, in tokens.

    The KV cache gets `engine.kv_cache_gib`; without that, on a GPU all that is left beside the learner, and in RAM what
    the sequences in flight need, but at most a quarter of what is available, or what one needs. With `engine.sleep` the
    engine's weights and KV cache take turns with what the learner needs during a step only. Raises EngineError when it
    does not fit.
    """
    share = EngineShare.of(size, dtype, max_length, learner, engine, machine)
    device, room = min(((device, share.room(device)) for device in machine.devices), key=lambda pair: pair[1])
    kv_cache = share.kv_cache(room)
    if kv_cache > room:
        raise does_not_fit(
            share.demand(device, kv_cache), advice(size, dtype, max_length, learner, engine, device, machine.kind)
        )
    return Plan(
        kv_cache_bytes=kv_cache,
        memory_fraction=(share.weights + OWN_BYTES + kv_cache) / max(d.total for d in machine.devices),
        max_in_flight=engine.max_in_flight or min(MOST_IN_FLIGHT, share.cache.sequences_in(kv_cache)),
        learner_bytes=share.learner.whole if any(d.learner for d in machine.devices) else 0,
        engine_weights_bytes=share.weights,
        kv_bytes_per_token=share.kv_bytes_per_token,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What has to be in one memory at the same time."""

    device: Device
    needed: int
    """Bytes."""
    parts: str
    """What they are, in words."""

    @property
    def fits(self) -> bool:
        return self.needed <= int(USABLE * self.device.free)

    def __str__(self) -> str:
        return (
            f"{gib(self.needed)} are needed on {self.device.name} ({self.parts}), and "
            f"{gib(int(USABLE * self.device.free))} may be used "
            f"({USABLE:g} of {gib(self.device.free)} free; {gib(self.device.total)} in all)"
        )


def demand_of(device: Device, parts: Iterable[tuple[str, int]], learner: LearnerBytes) -> Demand:
    """`parts`: of what is there besides the learner, name and bytes; those of nothing are not said."""
    there = [(name, size) for name, size in parts if size]
    said = [f"{name} {gib(size)}" for name, size in there] + ([_learner_words(learner)] if learner.whole else [])
    return Demand(device=device, needed=sum(size for _, size in there) + learner.whole, parts=", ".join(said))


def does_not_fit(demand: Demand, advice: str) -> EngineError:
    return EngineError(f"the policy does not fit: {demand}. {advice}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A KV cache in blocks, of which a sequence has whole ones and vLLM keeps one (vllm/v1/core/block_pool.py)."""

    block_bytes: int
    blocks_per_sequence: int

    @classmethod
    def of(cls, kind: Literal["cuda", "cpu"], per_token: int, max_length: int) -> Cache:
        tokens = BLOCK_TOKENS[kind]
        return cls(block_bytes=tokens * per_token, blocks_per_sequence=-(-max_length // tokens))

    def bytes_for(self, sequences: int) -> int:
        return (sequences * self.blocks_per_sequence + 1) * self.block_bytes

    def sequences_in(self, size: int) -> int:
        return (size // self.block_bytes - 1) // self.blocks_per_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShare:
    """What vLLM takes of each of its devices, and what the learner takes beside it where both are."""

    engine: VllmEngine
    machine: Machine
    """The engine's devices."""
    cache: Cache
    kv_bytes_per_token: int
    weights: int
    learner: LearnerBytes
    policy: int
    """Bytes of the policy that the learner trains, as far as it is not there yet."""

    @classmethod
    def of(
        cls,
        size: ModelSize,
        dtype: Dtype,
        max_length: int,
        learner: LearnerConfig,
        engine: VllmEngine,
        machine: Machine,
        policy: int = 0,
    ) -> EngineShare:
        """Raises EngineError for settings that no memory is large enough for."""
        ranks, in_ram = engine.tensor_parallel_size, machine.kind == "cpu"
        if len(machine.devices) != ranks:
            names = ", ".join(device.name for device in machine.devices)
            raise EngineError(
                f"engine.tensor_parallel_size = {ranks} is not allowed; it must be the number of the engine's devices, "
                f"{len(machine.devices)} ({names})"
            )
        per_token = kv_bytes(size, dtype, ranks)
        cache = Cache.of(machine.kind, per_token, max_length)
        if engine.kv_cache_gib and int(engine.kv_cache_gib * GIB) < cache.bytes_for(1):
            raise EngineError(
                f"engine.kv_cache_gib = {engine.kv_cache_gib:g} is not allowed; it must be at least "
                f"{math.ceil(1000 * cache.bytes_for(1) / GIB) / 1000:g}, for one sequence of "
                f"engine.max_length ({max_length:,} tokens)"
            )
        return cls(
            engine=engine,
            machine=machine,
            cache=cache,
            kv_bytes_per_token=per_token,
            weights=-(-size.parameters * DTYPE_BYTES[dtype] // ranks),
            learner=ram_bytes(size, dtype, max_length, learner, engine, machine.devices[0].learner)
            if in_ram
            else learner_bytes(size, dtype, max_length, learner, engine),
            policy=policy,
        )

    def room(self, device: Device) -> int:
        """Bytes for the KV cache; negative where all the rest is too much."""
        free = int(USABLE * device.free) - OWN_BYTES
        if not self._shared(device):
            return free - self.weights
        beside = free - self.policy - self.learner.whole
        return (beside + self.learner.passing if self._sleeps and beside >= 0 else beside) - self.weights

    def kv_cache(self, room: int) -> int:
        """At least what one sequence needs, whether there is room for it or not."""
        if self.engine.kv_cache_gib:
            return int(self.engine.kv_cache_gib * GIB)
        if self.machine.kind == "cpu":
            wanted = self.cache.bytes_for(self.engine.max_in_flight or MOST_IN_FLIGHT)
            room = min(room, wanted, int(RAM_SHARE * self.machine.devices[0].free))
        return max(room, self.cache.bytes_for(1))

    def demand(self, device: Device, kv_cache: int) -> Demand:
        """Of all that is to be on one of the engine's devices."""
        engine = [("engine", OWN_BYTES), ("its weights", self.weights), ("its KV cache at least", kv_cache)]
        if not self._shared(device):
            return demand_of(device, engine, NOTHING)
        parts = [("policy", self.policy), *engine]
        made = demand_of(device, parts, self.learner)
        if not self._sleeps:
            return made
        in_turns = min(self.learner.passing, self.weights + kv_cache)
        return Demand(device=device, needed=made.needed - in_turns, parts=f"{made.parts}, while the engine sleeps")

    def _shared(self, device: Device) -> bool:
        """RAM has something of every learner."""
        return device.learner or self.machine.kind == "cpu"

    @property
    def _sleeps(self) -> bool:
        return self.engine.sleep and self.machine.kind == "cuda"


def advice(
    size: ModelSize,
    dtype: Dtype,
    max_length: int,
    learner: LearnerConfig,
    engine: VllmEngine | TransformersEngine | None,
    device: Device,
    kind: Literal["cuda", "cpu"],
    *,
    loaded: bool = True,
) -> str:
    """Which keys to change where `device` is too small. `engine`: that is to be there, too. `loaded`: the policy is
    in memory, and has shown that it fits in so far."""
    vllm = isinstance(engine, VllmEngine)
    lower = [f"engine.max_length ({max_length})"] if vllm else []
    put = ['policy.dtype = "bfloat16"'] if dtype == "float32" and (engine or device.learner) else []
    if vllm and engine.kv_cache_gib:
        lower += [f"engine.kv_cache_gib ({engine.kv_cache_gib:g})"]
    if device.learner and vllm and engine.learner_gib:
        lower += [f"engine.learner_gib ({engine.learner_gib:g})"]
    elif device.learner:
        lower += [f"learner.tokens_per_micro_batch ({learner.tokens_per_micro_batch})"]
        lower += [f"learner.logit_chunk ({learner.logit_chunk})"]
        put += [] if learner.recompute_activations else ["learner.recompute_activations = true"]
        put += ['learner.optimizer = "adamw_8bit"'] if learner.optimizer == "adamw" else []
        put += ["learner.offload_optimizer = true"] if kind == "cuda" and not learner.offload_optimizer else []
        put += ['policy.adapter.type = "lora"'] if size.trainable == size.parameters else []
        put += ['policy.adapter.base = "nf4"'] if _has_full_base(size) and learner.num_devices == 1 else []
        put += ["learner.devices to more GPUs"] if kind == "cuda" else []
    elif kind == "cpu" and engine is None:  # the copies of a learner on GPUs
        put += ["learner.offload_optimizer = false"] if learner.offload_optimizer else []
        put += ['policy.adapter.type = "lora"'] if size.trainable == size.parameters else []
    if isinstance(engine, TransformersEngine):
        lower += [f"engine.batch_size ({engine.batch_size})"]
    if kind == "cuda" and vllm:
        put += ["engine.sleep = true"] if device.learner and not engine.sleep else []
        put += ["engine.devices and engine.tensor_parallel_size to other or more GPUs"]
    put += [] if loaded else ["policy.model to a smaller one"]
    return "; or ".join(
        [*([f"Lower {', '.join(lower)}"] if lower else []), *([f"set {', '.join(put)}"] if put else [])]
    )


def _has_full_base(size: ModelSize) -> bool:
    return size.trainable < size.parameters and not size.quantised


def _learner_words(learner: LearnerBytes) -> str:
    return f"learner {gib(learner.standing)} and in a step {gib(learner.passing)} more"


def gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
