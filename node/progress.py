"""What a node has come to know apart from its weights: where it is, what tasks are worth, what it counted and drew.

Everything here goes into a checkpoint and comes out of one. What it hears of is what comes into the pool.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from node.alarms import Alarms
from node.checkpoint import Checkpoint
from node.config import NodeConfig
from node.divergence import Divergence
from node.engine.policy import Policy
from node.experience import Experience
from node.ledger import Ledger
from node.rl.gate import GateMemory
from node.rl.sampler import TaskSampler
from node.rl.tracker import State, ValueTracker
from swarm.tasks.base import SourceInfo
from swarm.types import PolicyVersion

log = logging.getLogger(__name__)

#: Of the tokens' generator, among a checkpoint's tensors.
SAMPLING_RNG = "rng/sampling"
NOTHING_TRACKED: State = {"sources": [], "cells": [], "prompts": []}


class Progress:
    def __init__(
        self, config: NodeConfig, policy: Policy, sources: Sequence[SourceInfo], checkpoint: Checkpoint | None
    ) -> None:
        """Where `checkpoint` was written, or of a node that has just been born."""
        state = checkpoint.state if checkpoint else {}
        self.steps: int = state.get("steps", 0)
        self.version = PolicyVersion(state.get("policy_version", 0))
        self.base: str = config.policy.model if policy.adapter else state.get("model", config.policy.model)
        """The model that training started from; an adapter's is the configured one, or else it was not loaded."""
        self.fingerprint: str = state.get("fingerprint", policy.fingerprint)
        """Of `base`: what peers know us by."""
        self.tracker = ValueTracker.restore(config.tracker, state.get("tracker", NOTHING_TRACKED))
        weights = [task.weight for task in config.tasks]
        self.sampler = TaskSampler(sources, weights, self.tracker, config.sampler, config.seed)
        self.gate = GateMemory(config.foreign_gate, state.get("gate"))
        self.ledger = Ledger()
        self.alarms = Alarms(config.alarms, state.get("alarms", {}))
        resumed = checkpoint.step if checkpoint else None
        self.divergence = Divergence(config.divergence, state.get("divergence", {}), resumed)
        self.line_began = PolicyVersion(0)
        """The versions before it were given up, when the policy went back to an earlier one."""
        self.sampling_rng = torch.Generator(policy.model.device).manual_seed(config.seed)
        """Of the tokens."""
        self.drawing_rng = random.Random(config.seed)
        """Of the pool."""
        if checkpoint:
            self._restore(state, checkpoint.tensor(SAMPLING_RNG))
            self._check_base(config.policy.model)

    def hear(self, experience: Experience) -> None:
        """A group came into the pool, ours or a peer's."""
        self.tracker.hear(experience, self.version)
        if experience.own:
            self.ledger.counters["own_groups"] += 1
            self.ledger.counters["own_rollouts"] += len(experience.group.rollouts)
            self.ledger.counters["own_tokens"] += experience.group.num_sampled

    def freeze(self) -> Callable[[], dict[str, Any]]:
        """Makes the JSON of now whenever it is called, in any thread: 100,000 prompts take longer to write than an
        event loop may be held up."""
        tracker = self.tracker.freeze()
        state = {
            "steps": self.steps,
            "policy_version": self.version,
            "model": self.base,
            "fingerprint": self.fingerprint,
            "sampler": self.sampler.state(),
            "gate": self.gate.state(),
            "counters": dict(self.ledger.counters),
            "alarms": self.alarms.state(),
            "divergence": self.divergence.state(),
            "drawing_rng": self.drawing_rng.getstate(),
        }
        return lambda: state | {"tracker": tracker()}

    def go_back(self, state: Mapping[str, Any], now: PolicyVersion) -> None:
        """The policy of a checkpoint's `state`, {} at birth, goes on as version `now`, with what was known then."""
        then = PolicyVersion(state.get("policy_version", 0))
        self.tracker.go_back(state.get("tracker", NOTHING_TRACKED), then, now)
        self.gate.restore(state.get("gate", {}))
        self.alarms.forget()
        self.version = self.ledger.policy_version = self.line_began = now

    def tensors(self) -> dict[str, torch.Tensor]:
        return {SAMPLING_RNG: self.sampling_rng.get_state()}

    def _restore(self, state: Mapping[str, Any], sampling: torch.Tensor) -> None:
        self.sampler.restore(state["sampler"])
        self.ledger.restore(state["counters"])
        self.ledger.steps, self.ledger.policy_version = self.steps, self.version
        version, internal, gauss = state["drawing_rng"]
        self.drawing_rng.setstate((version, tuple(internal), gauss))
        # Kinds of devices cannot read each other's state: a node that has moved draws its tokens anew.
        if sampling.numel() == self.sampling_rng.get_state().numel():
            self.sampling_rng.set_state(sampling)

    def _check_base(self, configured: str) -> None:
        if self.base != configured:
            warning = f"policy.model = {configured!r} is not used: data_dir has a checkpoint of {self.base!r}"
            log.warning(warning)
            self.ledger.warn(warning)


def moments_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The optimiser's, of the tensors that are in a checkpoint."""
    return {name: tensor for name, tensor in checkpoint.tensors().items() if name != SAMPLING_RNG}
