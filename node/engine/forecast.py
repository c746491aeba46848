"""Whether a policy fits into this machine, by its description: asked before any of its weights are loaded, because one
that is too big takes the machine down while it loads. All but `memories` is pure.

What is needed of each memory is the most that is ever in it at the same time: while the policy is loaded, or once the
learner makes steps and the engine samples beside it. Not counted: programs and their libraries, which take the same
whatever the policy is, and the second policy that is read for a moment when a node goes back to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from node.config import NodeConfig, TransformersEngine, VllmEngine
from node.engine.memory import Device, Machine, machine, vllm_devices
from node.engine.room import Demand, EngineShare, advice, demand_of, does_not_fit
from node.engine.size import (
    NOTHING,
    LearnerBytes,
    ModelSize,
    PolicyBytes,
    batch_bytes,
    held_bytes,
    learner_bytes,
    policy_bytes,
    ram_bytes,
)

Engine = TransformersEngine | VllmEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Memories:
    ram: Device
    learner: tuple[Device, ...]
    """Its GPUs; none where it is on the CPU."""
    engine: Machine | None
    """vLLM's; None for the transformers engine, which is where the learner is."""


def memories(engine: Engine, learner: Sequence[torch.device]) -> Memories:
    """As they are now. Raises EngineError for a device of the engine that is not there."""
    gpus = [device.index or 0 for device in learner if device.type == "cuda"]
    return Memories(
        ram=machine((), learner).devices[0],
        learner=machine(gpus, learner).devices if gpus else (),
        engine=machine(vllm_devices(engine, learner), learner) if isinstance(engine, VllmEngine) else None,
    )


def forecast(
    size: ModelSize, config: NodeConfig, engine: Engine, max_length: int, where: Memories
) -> tuple[Demand, ...]:
    """What is needed of each memory, RAM first. `engine`: that the config comes to; `max_length`: tokens of a prompt
    and its response together. Raises EngineError where one is too small."""
    demands = list(_Forecast.of(size, config, engine, max_length, where).demands())
    for demand in demands:
        if not demand.fits:
            kind = "cpu" if demand.device is where.ram else "cuda"
            there = engine if _has_engine(demand.device, where) else None
            keys = advice(
                size, config.policy.dtype, max_length, config.learner, there, demand.device, kind, loaded=False
            )
            raise does_not_fit(demand, keys)
    return tuple(demands)


def _has_engine(device: Device, where: Memories) -> bool:
    if where.engine is not None:
        return device.name in {each.name for each in where.engine.devices}
    return device.learner


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forecast:
    where: Memories
    policy: PolicyBytes
    share: EngineShare | None
    """vLLM's."""
    sampler: tuple[tuple[str, int], ...]
    """What the transformers engine takes: name and bytes."""
    device: LearnerBytes
    """On each of the learner's GPUs."""
    ram: LearnerBytes

    @classmethod
    def of(cls, size: ModelSize, config: NodeConfig, engine: Engine, max_length: int, where: Memories) -> _Forecast:
        learner, dtype = config.learner, config.policy.dtype
        policy = policy_bytes(size, learner, on_cpu=not where.learner)
        share, sampler = None, ()
        if isinstance(engine, VllmEngine):
            assert where.engine is not None
            unloaded = policy.ram if where.engine.kind == "cpu" else policy.device
            share = EngineShare.of(size, dtype, max_length, learner, engine, where.engine, unloaded)
        else:
            batch = batch_bytes(size, dtype, max_length, config.sampler.max_new_tokens, engine.batch_size)
            sampler = (("engine's copy", held_bytes(size, dtype)), ("its batch at least", batch))
        return cls(
            where=where,
            policy=policy,
            share=share,
            sampler=sampler,
            device=learner_bytes(size, dtype, max_length, learner, engine),
            ram=ram_bytes(size, dtype, max_length, learner, engine, on_cpu=not where.learner),
        )

    def demands(self) -> Iterator[Demand]:
        yield self._of_ram()
        for device in self.where.learner:
            yield self._of_gpu(device)
        names = {device.name for device in self.where.learner}
        if self.share is not None and self.share.machine.kind == "cuda":
            for device in self.share.machine.devices:
                if device.name not in names:
                    yield self._of_engine(device, self.share)

    def _of_ram(self) -> Demand:
        ram, policy = self.where.ram, self.policy
        loading = demand_of(ram, [("policy while it is loaded", policy.loading)], NOTHING)
        if self.share is not None and self.share.machine.kind == "cpu":
            return _larger(loading, self._of_engine(ram, self.share))
        here = self.sampler if ram.learner else ()
        used = demand_of(ram, [("policy", policy.ram), *here], self.ram)
        return _larger(loading, used)

    def _of_gpu(self, device: Device) -> Demand:
        """Of the learner's."""
        policy = self.policy
        converting = demand_of(device, [("policy before it is bfloat16", policy.converting)], NOTHING)
        if self.share is not None and device.name in {each.name for each in self.share.machine.devices}:
            return _larger(self._of_engine(device, self.share), converting)
        used = demand_of(device, [("policy", policy.device), *self.sampler], self.device)
        return _larger(used, converting)

    @staticmethod
    def _of_engine(device: Device, share: EngineShare) -> Demand:
        return share.demand(device, share.kv_cache(0))


def _larger(*demands: Demand) -> Demand:
    return max(demands, key=lambda demand: demand.needed)
