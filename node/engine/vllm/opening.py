"""From a node's config to a `VllmGenerator`: how much memory, which devices, which way for the weights."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from node.config import NodeConfig, VllmEngine
from node.engine.base import Weights
from node.engine.memory import Machine, cuda_device, machine, vllm_devices
from node.engine.policy import Policy, resolve_model
from node.engine.room import Plan, plan
from node.engine.vllm.environment import engine_environment
from node.engine.vllm.generator import VllmGenerator
from node.engine.vllm.handoff import Adapters, AllWeights, HandOff
from node.engine.vllm.keeper import EngineKeeper
from node.engine.vllm.process import Engine, EngineSpec
from node.engine.vllm.transport import CudaIpcTransport, MemoryTransport, Transport
from node.supervision import Part
from node.time_account import GENERATORS, TimeAccount

log = logging.getLogger(__name__)

#: Adapters that requests in flight may have begun with; each takes a little of the engine's memory.
LIVE_ADAPTERS = 4


def vllm_generator(
    config: NodeConfig,
    engine: VllmEngine,
    max_length: int,
    probe: np.ndarray,
    policy: Policy,
    weights: Weights,
    counters: Counter[str],
    warn: Callable[[str], None],
    part: Part,
    times: TimeAccount | None = None,
) -> VllmGenerator:
    """Not started yet; see `node.engine.opening`. Raises EngineError when it does not fit into memory."""
    learner = policy.devices
    devices = vllm_devices(engine, learner)
    shared = plan(
        size=policy.size,
        dtype=config.policy.dtype,
        max_length=max_length,
        learner=config.learner,
        engine=engine,
        machine=_before(weights, machine(devices, learner)),
    )
    log.info("vLLM: %s", shared)
    times = times or TimeAccount(GENERATORS)
    transport = _transport(engine, devices, learner)
    spec = _spec(config, engine, max_length, policy, shared, devices, transport)

    def start(number: int) -> Engine:
        return Engine.start(spec, policy.codec.eos_id, _seed(config.seed, weights.version, number))

    keeper = EngineKeeper(
        start=start,
        hand_off=_hand_off(engine, policy, transport, times),
        config=engine,
        dtype=config.policy.dtype,
        probe=probe,
        weights=weights,
        counters=counters,
        warn=warn,
        times=times,
        part=part,
    )
    return VllmGenerator(
        keeper,
        policy.codec,
        engine,
        max_length=max_length,
        max_in_flight=shared.max_in_flight,
        counters=counters,
        warn=warn,
    )


def _before(weights: Weights, found: Machine) -> Machine:
    """As it was before the learner made that copy of its weights, which a plan counts as still to come."""
    taken = Counter[str]()
    for tensor in weights.tensors.values():
        taken[str(cuda_device(tensor.device)) if tensor.is_cuda else "RAM"] += tensor.nbytes
    return replace(found, devices=tuple(replace(each, free=each.free + taken[each.name]) for each in found.devices))


def _spec(
    config: NodeConfig,
    engine: VllmEngine,
    max_length: int,
    policy: Policy,
    shared: Plan,
    devices: tuple[int, ...],
    transport: Transport,
) -> EngineSpec:
    adapter = policy.adapter
    on_cpu = not devices
    return EngineSpec(
        model=_model_of(policy, config.policy.dtype, config.data_dir / "engine"),
        dtype=config.policy.dtype,
        max_length=max_length,
        max_in_flight=shared.max_in_flight,
        # On a GPU vLLM measures for itself what is left within the fraction, its activations included.
        kv_cache_bytes=shared.kv_cache_bytes if on_cpu or engine.kv_cache_gib else 0,
        memory_fraction=shared.memory_fraction,
        tensor_parallel_size=engine.tensor_parallel_size,
        backend=transport.backend,
        lora_rank=adapter.lora.rank if adapter is not None else 0,
        lora_targets=adapter.lora.targets if adapter is not None else (),
        live_adapters=LIVE_ADAPTERS if adapter is not None else 1,
        sleep=engine.sleep,
        eager=on_cpu,
        variables=engine_environment("cpu" if on_cpu else "cuda", devices, config.threads),
    )


def _model_of(policy: Policy, dtype: str, directory: Path) -> str:
    """What an engine is started with. vLLM 0.32 has no NF4: it gets the base as NF4 rounds it, in `dtype`, in
    `directory`."""
    adapter = policy.adapter
    if adapter is None:
        return _described(policy.model, directory)
    if adapter.lora.base == "full":
        return resolve_model(adapter.base)
    policy.save_base(directory, dtype)
    return str(directory)


def _described(model: PreTrainedModel, directory: Path) -> str:
    """A directory that describes the model, without its weights: those are handed over."""
    described = copy.deepcopy(model.config)
    described.architectures = [type(model).__name__]
    described.save_pretrained(directory)
    return str(directory)


def _hand_off(engine: VllmEngine, policy: Policy, transport: Transport, times: TimeAccount) -> HandOff:
    if policy.adapter is not None:
        return Adapters(policy.adapter.save, live=LIVE_ADAPTERS, timeout_s=engine.update_timeout_s)
    return AllWeights(
        transport, tied(policy.model), recompute_kv=engine.recompute_kv, timeout_s=engine.update_timeout_s, times=times
    )


def tied(model: torch.nn.Module) -> Mapping[str, str]:
    """Name of a parameter that is another one's -> that one's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: names[id(parameter)] for name, parameter in every if names[id(parameter)] != name}


def _transport(engine: VllmEngine, devices: tuple[int, ...], learner: Sequence[torch.device]) -> Transport:
    """ "auto": by CUDA IPC where learner and engine are on one and the same GPU."""
    same = [torch.device("cuda", number) for number in devices] == [cuda_device(device) for device in learner]
    return (
        CudaIpcTransport()
        if engine.transfer == "cuda_ipc" or (engine.transfer == "auto" and same)
        else MemoryTransport()
    )


def _seed(seed: int, version: int, number: int) -> int:
    """Of an engine: one that is started again must not draw the same tokens again."""
    return int(np.random.SeedSequence([seed, version, number]).generate_state(1)[0])
