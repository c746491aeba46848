"""Which engine samples for a node, whether all of it fits, and how it is opened."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from node.config import NodeConfig, TransformersEngine, VllmEngine
from node.engine.available import engines
from node.engine.base import Generator, Weights
from node.engine.choice import choose_engine
from node.engine.forecast import forecast, memories
from node.engine.parity import TEXT, probe_ids
from node.engine.policy import Policy, describe
from node.engine.room import Demand
from node.engine.size import ModelSize
from node.engine.transformers import TransformersGenerator
from node.engine.vllm.environment import set_defaults
from node.supervision import Part
from node.text_codec import TextCodec
from node.time_account import TimeAccount
from swarm.errors import EngineError
from swarm.types import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEngine:
    config: TransformersEngine | VllmEngine
    max_length: int
    """Tokens of a prompt and its response together that it is asked for."""

    def probe(self, codec: TextCodec) -> np.ndarray | None:
        """int32 [P]: what the learner's weights must come with; None where nobody compares."""
        if isinstance(self.config, TransformersEngine):
            return None
        return probe_ids(codec.encode(TEXT, FinishReason.LENGTH), self.max_length)


def foresee(
    config: NodeConfig, devices: Sequence[torch.device], resume_from: Path | None = None
) -> tuple[ChosenEngine, tuple[Demand, ...]]:
    """Before a policy is loaded from there (`load_policy`), to be trained on `devices`: its engine, and what is needed
    of each memory. Raises EngineError when it does not fit or as `choose` does, PolicyError as `describe` does."""
    size = describe(config.policy, resume_from)
    chosen = choose(config, size, devices)
    return chosen, forecast(size, config, chosen.config, chosen.max_length, memories(chosen.config, devices))


def choose(config: NodeConfig, size: ModelSize, devices: Sequence[torch.device]) -> ChosenEngine:
    """For a policy that is trained on `devices`. Raises EngineError for an engine that is not usable here, or that is
    to sample more than the model has positions for."""
    engine = choose_engine(config.engine, size.parameters, devices[0].type, engines())
    positions = size.positions
    asked = config.sampler.max_prompt_tokens + config.sampler.max_new_tokens
    if isinstance(engine, TransformersEngine):
        if len(devices) > 1 and devices[0].type == "cuda":
            raise EngineError(
                'engine.type = "transformers" is not allowed beside a learner on several GPUs; "vllm" is, which has '
                "a GPU of its own"
            )
        return ChosenEngine(config=engine, max_length=min(asked, positions or asked))
    if positions is not None and engine.max_length > positions:
        raise EngineError(
            f"engine.max_length = {engine.max_length} is not allowed; the policy has {positions} positions"
        )
    max_length = engine.max_length or min(asked, positions or asked)
    if max_length <= config.sampler.max_new_tokens:
        raise EngineError(
            f"sampler.max_new_tokens = {config.sampler.max_new_tokens} leaves no room for a prompt; the engine has"
            f" {max_length} tokens for both"
        )
    return ChosenEngine(config=engine, max_length=max_length)


@asynccontextmanager
async def open_generator(
    config: NodeConfig,
    chosen: ChosenEngine,
    policy: Policy,
    weights: Weights,
    rng: torch.Generator,
    counters: Counter[str],
    warn: Callable[[str], None],
    times: TimeAccount,
    part: Part,
) -> AsyncIterator[Generator]:
    """Up and sampling with `weights`. Raises EngineError. `rng` draws the tokens where that can be continued. `times`
    is told what keeps the engine from sampling. `part`: what is done when it fails."""
    if isinstance(chosen.config, TransformersEngine):
        copy = policy.sampling_copy(config.policy.dtype)
        async with TransformersGenerator(copy, policy.codec, chosen.config, weights.version, rng, part) as generator:
            yield generator
        return

    made = await asyncio.to_thread(_vllm, config, chosen, policy, weights, counters, warn, times, part)
    async with made as generator:
        yield generator


def _vllm(
    config: NodeConfig,
    chosen: ChosenEngine,
    policy: Policy,
    weights: Weights,
    counters: Counter[str],
    warn: Callable[[str], None],
    times: TimeAccount,
    part: Part,
) -> AbstractAsyncContextManager[Generator]:
    """In a thread: vLLM takes seconds to import, and need not be installed where it is not wanted."""
    assert isinstance(chosen.config, VllmEngine)
    probe = chosen.probe(policy.codec)
    assert probe is not None  # vLLM's weights are compared
    set_defaults()
    from node.engine.vllm.opening import vllm_generator

    return vllm_generator(config, chosen.config, chosen.max_length, probe, policy, weights, counters, warn, part, times)
