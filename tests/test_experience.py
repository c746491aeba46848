"""What a group's rollouts are worth to us: scores, and what is made of those that were cut off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from node.algorithms import Truncated
from node.experience import Experience, rewards_of
from swarm.types import FinishReason, GroupId, PolicyVersion, Rollout, Score, ScoreStatus
from tests.builders import group, rollout, task


def finished(text: str, finish: FinishReason) -> Rollout:
    whole = rollout(text)
    return replace(whole, turns=(replace(whole.turns[0], finish=finish),))


ROLLOUTS = [
    finished("right", FinishReason.STOP),
    finished("right, and on and on", FinishReason.LENGTH),
    finished("right, then a stop string", FinishReason.STOP_STRING),
    finished("nobody can tell", FinishReason.STOP),
]
SCORES = [Score(reward=1.0), Score(reward=1.0), Score(reward=0.5), Score(reward=0.0, status=ScoreStatus.FAILED)]


@pytest.mark.parametrize(
    ("truncated", "rewards", "scored"),
    [
        ("scored", [1.0, 1.0, 0.5, 0.0], [True, True, True, False]),
        ("failed", [1.0, 0.0, 0.5, 0.0], [True, True, True, False]),
        ("ignored", [1.0, 1.0, 0.5, 0.0], [True, False, True, False]),
    ],
)
def test_a_rollout_that_was_cut_off(truncated: Truncated, rewards: list[float], scored: list[bool]):
    given, evidence = rewards_of(ROLLOUTS, SCORES, truncated)
    assert given.tolist() == rewards
    assert given.dtype == np.float32
    assert evidence.tolist() == scored


def test_an_empty_group_has_no_rewards():
    given, evidence = rewards_of([], [], "failed")
    assert len(given) == len(evidence) == 0
    assert evidence.dtype == bool


def experience(*, rewards: list[float], scored: list[bool], value: float) -> Experience:
    return Experience(
        id=GroupId("g"),
        group=group(*[rollout("1")] * len(rewards)),
        task=task(),
        rewards=np.array(rewards, dtype=np.float32),
        scored=np.array(scored),
        own=False,
        value=value,
        version=PolicyVersion(0),
        arrived_at=0.0,
    )


def test_the_use_of_a_group_is_what_went_better_than_expected():
    """v = 0.4, rewards 1 and 0, and one that nobody scored: (0.6^2 + 0) / 2."""
    mixed = experience(rewards=[1.0, 0.0, 1.0], scored=[True, True, False], value=0.4)
    assert mixed.use == pytest.approx(0.18)
    assert experience(rewards=[0.0, 0.0], scored=[True, True], value=0.9).use == 0.0
    assert experience(rewards=[1.0], scored=[False], value=0.0).use == 0.0
