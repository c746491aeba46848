"""What the pool holds and the learner learns from: a group, judged by us."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from swarm.types import GroupId, PolicyVersion, RolloutGroup, SignedGroup, Task


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Experience:
    """A group with the rewards that *we* computed, and what we believed of its task before we saw them."""

    id: GroupId
    group: RolloutGroup
    task: Task
    rewards: np.ndarray
    """float32 [G] in [0, 1]."""
    scored: np.ndarray
    """bool [G]: False where the source gave no score; such a rollout is neither evidence nor trained on."""
    own: bool
    value: float
    """v of the task by our tracker: frozen at dispatch for own groups (SPO++), read at the draw for foreign ones."""
    version: PolicyVersion
    """Own: the oldest version of ours that sampled a token. Foreign: ours when it arrived; a peer's says nothing."""
    arrived_at: float
    """By the event loop's clock, in seconds."""
    best: float = field(init=False)
    """Highest, mean and lowest reward of the scored rollouts, 0 without any: read at every draw, so computed once."""
    mean: float = field(init=False)
    worst: float = field(init=False)

    def __post_init__(self) -> None:
        rewards = self.rewards[self.scored].tolist() or [0.0]
        object.__setattr__(self, "best", max(rewards))
        object.__setattr__(self, "mean", math.fsum(rewards) / len(rewards))
        object.__setattr__(self, "worst", min(rewards))

    @property
    def scores(self) -> list[float | None]:
        """Rewards, None where there is none."""
        return [float(r) if scored else None for r, scored in zip(self.rewards, self.scored, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """One group, as it travels and as we learn from it."""

    signed: SignedGroup
    experience: Experience
