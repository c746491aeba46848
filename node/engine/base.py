"""The accelerator's edge, as the loops see it: something that samples, what a learner reports, and the weights between.

The protocol fits an engine that finishes requests out of order and swaps weights in the middle of one (vLLM), and one
that works in batches and swaps between them (transformers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from swarm.types import FinishReason, PolicyVersion, SamplingParams, Task, VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled continuation of a prompt, in tokens."""

    ids: np.ndarray
    """int32 [T], the end-of-sequence token included when the policy ended."""
    logprobs: np.ndarray
    """float32 [T], of the distribution that was really sampled (temperature and top-p applied)."""
    versions: tuple[VersionSpan, ...]
    finish: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """A policy version's tensors, on their way from the learner to the generator. Never written to once made."""

    version: PolicyVersion
    tensors: Mapping[str, torch.Tensor]


class Generator(Protocol):
    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        """n continuations of `prompt` (int32 [P]). Safe to call concurrently; the engine batches as it likes.

        A completion that the engine failed on has finish ERROR and whatever tokens it had. Cancelling the call gives up
        the request.
        """
        ...

    async def load(self, weights: Weights) -> None:
        """Takes a new version over as soon as the engine can, without dropping requests. Latest wins: a version that is
        overtaken before the engine got to it is skipped. Returns without waiting for the engine."""
        ...


class TextCodec(Protocol):
    """Between text, which is shared, and tokens, which are private. Pure; one per policy."""

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer: equal fingerprints mean equal ids."""
        ...

    @property
    def eos_id(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def prompt(self, task: Task) -> np.ndarray:
        """int32 [P]: the task in this policy's own chat template, ready to be continued."""
        ...

    def encode(self, text: str, finish: FinishReason) -> np.ndarray:
        """int32 [T]: canonical ids of a response; the end-of-sequence token is appended iff finish is STOP."""
        ...

    def decode(self, ids: np.ndarray) -> tuple[str, np.ndarray]:
        """Text without end-of-sequence, and int32 [T]: how many of its UTF-8 bytes each token completed.

        The lengths always add up to the text's: bytes that are not UTF-8 become U+FFFD where they end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    version: PolicyVersion
    """After the step."""
    metrics: dict[str, float] = field(default_factory=dict)
