"""What the pool holds and the learner learns from: a group, judged by us."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from node.algorithms import Truncated
from swarm.footprint import footprint
from swarm.types import (
    GroupId,
    PolicyVersion,
    Rollout,
    RolloutGroup,
    Score,
    ScoreStatus,
    SignedGroup,
    Task,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeerScores:
    """What a peer's policy thinks of a response of ours, in its own tokens. Its word: it may say anything."""

    logprobs: np.ndarray
    """float32 [T], at the temperature that we sampled with; with the end of the sequence where the policy ended."""
    byte_lengths: np.ndarray
    """int32 [T]; adds up to the response's bytes."""


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
    guidance: tuple[PeerScores | None, ...] | None = None
    """Own: a stronger peer's view of each rollout, [G]; None where none was asked or answered in time."""
    best: float = field(init=False)
    """Highest, mean and lowest reward of the scored rollouts, 0 without any: read at every draw, so computed once."""
    mean: float = field(init=False)
    worst: float = field(init=False)
    size: int = field(init=False)
    """Bytes of memory that the group takes."""
    use: float = field(init=False)
    """Mean of max(r - v, 0)^2 over the scored rollouts: what there was to learn when it arrived, by our own values.
    What went worse than we would have expected is no lesson: anybody can fail."""

    def __post_init__(self) -> None:
        rewards = self.rewards[self.scored].tolist() or [0.0]
        object.__setattr__(self, "best", max(rewards))
        object.__setattr__(self, "mean", math.fsum(rewards) / len(rewards))
        object.__setattr__(self, "worst", min(rewards))
        object.__setattr__(self, "size", footprint(self.group))
        gains = [max(reward - self.value, 0.0) ** 2 for reward in self.rewards[self.scored].tolist()]
        object.__setattr__(self, "use", math.fsum(gains) / max(len(gains), 1))

    @property
    def scores(self) -> list[float | None]:
        """Rewards, None where there is none."""
        return [float(r) if scored else None for r, scored in zip(self.rewards, self.scored, strict=True)]


def rewards_of(
    rollouts: Sequence[Rollout], scores: Sequence[Score], truncated: Truncated
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards, float32 [G], and which of them are evidence, bool [G]."""
    rewards = np.array([score.reward for score in scores], dtype=np.float32)
    scored = np.array([score.status is ScoreStatus.OK for score in scores], dtype=bool)
    whole = np.array([not rollout.truncated for rollout in rollouts], dtype=bool)
    if truncated == "failed":
        rewards = np.where(whole, rewards, np.float32(0))
    elif truncated == "ignored":
        scored &= whole
    return rewards, scored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """One group, as it travels and as we learn from it."""

    signed: SignedGroup
    experience: Experience
