"""What the pool holds and the learner learns from: a group, judged by us."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swarm.types import GroupId, PolicyVersion, RolloutGroup, Task


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
    """Monotonic seconds."""

    @property
    def mean_reward(self) -> float:
        return float(self.rewards[self.scored].mean()) if self.scored.any() else 0.0
