"""What memory the learner and the engine need, and how they share it. All but `machine` is pure.

Made before the engine starts and before the learner's first step, while the policy's own weights are in memory and
nothing else is: what is free then is what there is to share. A plan says how much of it is the KV cache; a policy that
does not fit is an error with all the numbers, instead of a crash in some later step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from node.algorithms import LearnerConfig
from node.config import VllmEngine
from node.engine.size import DTYPE_BYTES, GIB, Dtype, LearnerBytes, ModelSize, learner_bytes
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
class Device:
    """A memory that the engine is to be in."""

    name: str
    """ "cuda:0", or "RAM"."""
    total: int
    """Bytes."""
    free: int
    """Bytes."""
    learner: bool
    """The policy that is trained is there, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    kind: Literal["cuda", "cpu"]
    devices: tuple[Device, ...]
    """The engine's, in its order."""


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
            f"KV cache {_gib(self.kv_cache_bytes)} ({self.kv_bytes_per_token:,} bytes per token) for "
            f"{self.max_in_flight} sequences in flight; weights {_gib(self.engine_weights_bytes)}, "
            f"engine {_gib(OWN_BYTES)}, learner {_gib(self.learner_bytes)}"
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
    ranks = engine.tensor_parallel_size
    if len(machine.devices) != ranks:
        names = ", ".join(device.name for device in machine.devices)
        raise EngineError(
            f"engine.tensor_parallel_size = {ranks} is not allowed; it must be the number of the engine's devices, "
            f"{len(machine.devices)} ({names})"
        )
    per_token = 2 * size.layers * -(-size.kv_heads // ranks) * size.head_dim * DTYPE_BYTES[dtype]
    cache = _Cache.of(machine.kind, per_token, max_length)
    if engine.kv_cache_gib and int(engine.kv_cache_gib * GIB) < cache.bytes_for(1):
        raise EngineError(
            f"engine.kv_cache_gib = {engine.kv_cache_gib:g} is not allowed; it must be at least "
            f"{math.ceil(1000 * cache.bytes_for(1) / GIB) / 1000:g}, for one sequence of "
            f"engine.max_length ({max_length:,} tokens)"
        )
    weights = -(-size.parameters * DTYPE_BYTES[dtype] // ranks)
    needs = learner_bytes(size, dtype, max_length, learner, engine)
    if machine.kind == "cpu":  # which all of the learner's devices are
        needs = LearnerBytes(standing=learner.num_devices * needs.standing, passing=learner.num_devices * needs.passing)
    sleeps = engine.sleep and machine.kind == "cuda"
    device, room = min(((d, _room(d, needs, sleeps) - weights) for d in machine.devices), key=lambda pair: pair[1])
    kv_cache = _kv_cache_bytes(cache, engine, machine, room)
    if kv_cache > room:
        use = _Use(device=device, learner=needs, weights=weights, kv_cache=kv_cache, sleeps=sleeps)
        raise EngineError(f"{use}. {_advice(size, dtype, max_length, learner, engine, device, machine.kind)}")
    return Plan(
        kv_cache_bytes=kv_cache,
        memory_fraction=(weights + OWN_BYTES + kv_cache) / max(d.total for d in machine.devices),
        max_in_flight=engine.max_in_flight or min(MOST_IN_FLIGHT, cache.sequences_in(kv_cache)),
        learner_bytes=needs.standing + needs.passing if any(d.learner for d in machine.devices) else 0,
        engine_weights_bytes=weights,
        kv_bytes_per_token=per_token,
    )


def cuda_device(device: torch.device) -> torch.device:
    """With its number, which "cuda" has not."""
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def engine_devices(engine: VllmEngine, learner: Sequence[torch.device]) -> tuple[int, ...]:
    """CUDA devices of the engine: those configured, or the learner's own and those after it; where the learner has
    several, those after its last; none beside a learner on the CPU, which is where the engine is then."""
    if engine.devices or learner[0].type == "cpu":
        return engine.devices
    last = max(device.index or 0 for device in learner)
    first = last if len(learner) == 1 else last + 1
    return tuple(range(first, first + engine.tensor_parallel_size))


def machine(devices: Sequence[int], learner: Sequence[torch.device]) -> Machine:
    """The memory of those CUDA devices as it is now, or without any, RAM. Asking a device takes some of its memory (a
    CUDA context of this process). Raises EngineError for a device that is not there."""
    if not devices:
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        kib = {words[0]: int(words[1]) for words in lines}
        ram = Device(
            name="RAM",
            total=kib["MemTotal:"] * 1024,
            free=kib["MemAvailable:"] * 1024,
            learner=learner[0].type == "cpu",
        )
        return Machine(kind="cpu", devices=(ram,))
    if max(devices) >= (count := torch.cuda.device_count()):
        chosen = "" if len(learner) == 1 else f" (the learner has {', '.join(map(str, learner))})"
        raise EngineError(
            f"engine.devices = {list(devices)} is not allowed; this machine has {count} CUDA devices{chosen}"
        )
    memories = [(index, *torch.cuda.mem_get_info(index)) for index in devices]
    return Machine(
        kind="cuda",
        devices=tuple(
            Device(
                name=f"cuda:{index}",
                total=total,
                free=free,
                learner=torch.device("cuda", index) in map(cuda_device, learner),
            )
            for index, free, total in memories
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cache:
    """A KV cache in blocks, of which a sequence has whole ones and vLLM keeps one (vllm/v1/core/block_pool.py)."""

    block_bytes: int
    blocks_per_sequence: int

    @classmethod
    def of(cls, kind: Literal["cuda", "cpu"], per_token: int, max_length: int) -> _Cache:
        tokens = BLOCK_TOKENS[kind]
        return cls(block_bytes=tokens * per_token, blocks_per_sequence=-(-max_length // tokens))

    def bytes_for(self, sequences: int) -> int:
        return (sequences * self.blocks_per_sequence + 1) * self.block_bytes

    def sequences_in(self, size: int) -> int:
        return (size // self.block_bytes - 1) // self.blocks_per_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """Of the device that is too small."""

    device: Device
    learner: LearnerBytes
    weights: int
    kv_cache: int
    sleeps: bool

    def __str__(self) -> str:
        parts = [
            f"engine {_gib(OWN_BYTES)}",
            f"its weights {_gib(self.weights)}",
            f"its KV cache at least {_gib(self.kv_cache)}",
        ]
        takes = OWN_BYTES + self.weights + self.kv_cache
        if self.device.learner:
            asleep = max(0, self.learner.passing - self.weights - self.kv_cache)
            takes += self.learner.standing + (asleep if self.sleeps else self.learner.passing)
            turns = ", while the engine sleeps" if self.sleeps else ""
            parts += [f"learner {_gib(self.learner.standing)} and in a step {_gib(self.learner.passing)} more{turns}"]
        return (
            f"the policy does not fit: {_gib(takes)} are needed on {self.device.name} ({', '.join(parts)}), and "
            f"{_gib(int(USABLE * self.device.free))} may be used "
            f"({USABLE:g} of {_gib(self.device.free)} free; {_gib(self.device.total)} in all)"
        )


def _room(device: Device, learner: LearnerBytes, sleeps: bool) -> int:
    """Bytes for the engine's weights and KV cache; negative where the learner alone is too much."""
    free = int(USABLE * device.free) - OWN_BYTES
    if not device.learner:
        return free
    beside = free - learner.standing - learner.passing
    return beside + learner.passing if sleeps and beside >= 0 else beside


def _kv_cache_bytes(cache: _Cache, engine: VllmEngine, machine: Machine, room: int) -> int:
    """At least what one sequence needs, whether there is room for it or not."""
    if engine.kv_cache_gib:
        return int(engine.kv_cache_gib * GIB)
    if machine.kind == "cpu":
        wanted = cache.bytes_for(engine.max_in_flight or MOST_IN_FLIGHT)
        room = min(room, wanted, int(RAM_SHARE * machine.devices[0].free))
    return max(room, cache.bytes_for(1))


def _advice(
    size: ModelSize,
    dtype: Dtype,
    max_length: int,
    learner: LearnerConfig,
    engine: VllmEngine,
    device: Device,
    kind: Literal["cuda", "cpu"],
) -> str:
    """Which keys to change."""
    lower = [f"engine.max_length ({max_length})"]
    put = ['policy.dtype = "bfloat16"'] if dtype == "float32" else []
    if engine.kv_cache_gib:
        lower += [f"engine.kv_cache_gib ({engine.kv_cache_gib:g})"]
    if device.learner and engine.learner_gib:
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
    if kind == "cuda":
        put += ["engine.sleep = true"] if device.learner and not engine.sleep else []
        put += ["engine.devices and engine.tensor_parallel_size to other or more GPUs"]
    return f"Lower {', '.join(lower)}" + (f"; or set {', '.join(put)}" if put else "")


def _has_full_base(size: ModelSize) -> bool:
    return size.trainable < size.parameters and not size.quantised


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
