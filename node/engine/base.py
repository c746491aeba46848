"""The accelerator's edge, as the loops see it: something that samples, what a learner reports, and the weights between.

The protocol fits an engine that finishes requests out of order and swaps weights in the middle of one (vLLM), and one
that works in batches and swaps between them (transformers).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from node.rl.lessons import Lesson
from swarm.types import FinishReason, PeerId, PolicyVersion, SamplingParams, VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled continuation of a prompt, in tokens."""

    ids: np.ndarray
    """int32 [T], the end-of-sequence token included when the policy ended."""
    logprobs: np.ndarray
    """float32 [T], of the distribution that was really sampled (temperature and top-p applied)."""
    versions: tuple[VersionSpan, ...]
    finish: FinishReason


#: Of a request that the engine failed on before it had a token, or has no room for.
FAILED = Completion(
    ids=np.empty(0, dtype=np.int32), logprobs=np.empty(0, dtype=np.float32), versions=(), finish=FinishReason.ERROR
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """A policy version's tensors, on their way from the learner to the generator. Never written to once made."""

    version: PolicyVersion
    tensors: Mapping[str, torch.Tensor]
    """What is trained, by parameter name (tied ones once), in the dtype that is sampled with."""
    probe: np.ndarray | None = None
    """float32 [P - 1]: the learner's log-probabilities, at temperature 1, of the generator's probe [P] after its first
    token. None where the generator wants none."""


class Generator(Protocol):
    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its response together that the engine has room for."""
        ...

    @property
    def in_flight(self) -> int:
        """Sequences to ask for at the same time, so that the engine is always full."""
        ...

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        """n continuations of `prompt` (int32 [P]). Safe to call concurrently; the engine batches as it likes.

        Tokens in, tokens out: a later turn is sampled from the ids of all turns before it. A completion that the engine
        failed on, or has no room for, has finish ERROR and whatever tokens it had. Cancelling the call gives up the
        request. Raises EngineError when the engine is lost for good.
        """
        ...

    async def load(self, weights: Weights) -> None:
        """Takes a new version over as soon as the engine can, without dropping requests. Latest wins: a version that is
        overtaken before the engine got to it is skipped. Returns without waiting for the engine."""
        ...

    def make_room(self) -> AbstractAsyncContextManager[None]:
        """Around a step of the learner: inside, the engine has given up what memory it shares with it."""
        ...

    def gauges(self) -> Mapping[str, float]:
        """What an operator sees of the engine, by name ("engine_in_flight"). Cheap."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    version: PolicyVersion
    """After the step."""
    metrics: dict[str, float] = field(default_factory=dict)
    lessons: Mapping[PeerId, Lesson] = field(default_factory=dict)
    """What peers' rollouts taught; empty where the step changed nothing."""
    culprits: frozenset[PeerId] = frozenset()
    """Peers whose rollouts are the reason that it changed nothing."""
