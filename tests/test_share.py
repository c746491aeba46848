"""How many of peers' groups a step takes: by schedule, by use, by how we fare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from node.algorithms import FixedShare, GuardedShare, PoolConfig, ScheduledShare, ShareConfig, UsefulShare
from node.experience import Experience
from node.rl.share import Share, foreign_use, own_use, scheduled_groups, share_of, useful_groups
from swarm.config_errors import complaints
from swarm.types import GroupId, PolicyVersion
from tests.builders import group, task


def experience(rewards: Sequence[float], value: float = 0.5, scored: Sequence[bool] | None = None) -> Experience:
    return Experience(
        id=GroupId("00"),
        group=group(),
        task=task(),
        rewards=np.array(rewards, dtype=np.float32),
        scored=np.array(scored or [True] * len(rewards)),
        own=True,
        value=value,
        version=PolicyVersion(0),
        arrived_at=0.0,
    )


def share(config: ShareConfig, most: int = 4) -> Share:
    return share_of(PoolConfig(foreign_groups=most, share=config))


def groups(rule: Share, version: int = 0, own: Sequence[Experience] = (), candidates: Sequence[Experience] = ()) -> int:
    return rule.groups(PolicyVersion(version), own or [experience([1, 0])], candidates)


def test_a_fixed_share_is_all_of_it():
    assert [groups(share(FixedShare()), version) for version in (0, 10_000)] == [4, 4]


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 8), (100, 8), (108, 8), (109, 7), (150, 5), (191, 3), (192, 2), (200, 2), (10_000, 2)]
)
def test_a_scheduled_share_falls_linearly_between_two_steps(step: int, expected: int):
    config = ScheduledShare(start_step=100, end_step=200, final_groups=2)
    assert scheduled_groups(config, 8, step) == groups(share(config, 8), step) == expected


@given(st.integers(0, 300))
def test_a_scheduled_share_never_rises(step: int):
    assert scheduled_groups(ScheduledShare(start_step=0, end_step=200, final_groups=9), 4, step) == 4
    config = ScheduledShare(start_step=50, end_step=200, final_groups=0)
    assert scheduled_groups(config, 7, step) >= scheduled_groups(config, 7, step + 1) >= 0


@pytest.mark.parametrize(("start", "table"), [(7, {"start_step": 7, "end_step": 7}), (1000, {"start_step": 1000})])
def test_a_schedule_ends_after_its_start(start: int, table: dict[str, int]):
    with pytest.raises(ValidationError) as raised:
        PoolConfig.model_validate({"share": {"type": "scheduled"} | table})
    (complaint,) = complaints(raised.value, PoolConfig)
    assert complaint.sentence == f"share.end_step = {start} is not allowed; it must be greater than {start}"
    assert ScheduledShare(start_step=6, end_step=7).end_step == 7


@pytest.mark.parametrize(
    ("foreign", "own", "expected"),
    [
        ([0.5, 0.5], 0.5, 8),
        ([1.0, 1.0], 0.5, 8),
        ([0.5, 0.0], 0.5, 4),
        ([0.1], 0.5, 2),
        ([0.01], 0.5, 0),
        ([0.0], 0.0, 8),
        ([], 0.5, 0),
    ],
)
def test_as_many_as_are_useful_relative_to_our_own(foreign: list[float], own: float, expected: int):
    assert useful_groups(8, foreign, own) == expected


def test_the_use_of_a_group():
    assert foreign_use(experience([1, 0, 0, 0], value=0.9)) == 0.75  # best - the peer's mean
    assert foreign_use(experience([1, 0, 0, 0], value=0.125)) == 0.875  # best - v
    assert foreign_use(experience([0, 0], value=0.5)) == 0.0
    assert own_use(experience([1, 0, 0, 0.5], value=0.25)) == (0.75 + 0.25 + 0.25 + 0.25) / 4
    assert own_use(experience([1, 0], value=0.25, scored=[True, False])) == 0.75


def test_a_useful_share_compares_with_the_average_of_our_own():
    rule = share(UsefulShare(window=2), most=8)
    peers = [experience([1], value=0.75)]  # use 1 - .75 = .25
    assert groups(rule, own=[experience([1, 0], value=0.5)], candidates=peers) == 4  # of .5
    assert groups(rule, own=[experience([1], value=1.0), experience([1], value=1.0)], candidates=peers) == 8  # of .07
    assert groups(rule, own=[experience([1], value=1.0)], candidates=[]) == 0


def rewarded(rule: Share, reward: float, times: int) -> list[int]:
    """Groups of so many steps, each with one own group of that mean reward."""
    return [groups(rule, own=[experience([reward])]) for _ in range(times)]


def test_a_guarded_share_is_halved_when_our_reward_has_fallen_for_long_enough():
    rule = share(GuardedShare(drop=0.1, steps=2))
    assert rewarded(rule, 1.0, 5) == [4] * 5
    assert rewarded(rule, 0.7, 2) == [4, 2]  # the average is .85, then .775: below .9 twice in a row
    assert rewarded(rule, 0.7, 20) == [2] * 20  # .7 is the best now
    assert rewarded(rule, 0.35, 2) == [2, 1]
    assert rewarded(rule, 0.35, 2) == [1, 1]
    assert rewarded(rule, 0.0, 10) == [1] + [0] * 9


def test_a_guarded_share_bears_a_short_or_a_shallow_fall():
    rule = share(GuardedShare(drop=0.5, steps=3))
    for _ in range(10):
        assert set(rewarded(rule, 1.0, 9) + rewarded(rule, 0.0, 3)) == {4}  # below half for two steps: .44, .30
    rule = share(GuardedShare(drop=0.1, steps=2))
    assert set(rewarded(rule, 1.0, 9) + rewarded(rule, 0.91, 50)) == {4}


def test_a_lucky_start_is_not_the_best():
    rule = share(GuardedShare(drop=0.1, steps=4))
    assert rewarded(rule, 1.0, 1) == [4]
    assert set(rewarded(rule, 0.5, 3)) == {4}
    assert set(rewarded(rule, 0.6, 50)) == {4}  # the first average that counts is .58


def test_the_average_over_a_steps_groups_is_what_counts():
    rule = share(GuardedShare(drop=0.1, steps=1))
    assert groups(rule, own=[experience([1.0]), experience([0.0])]) == 4
    assert groups(rule, own=[experience([0.5, 0.5])]) == 4
    assert groups(rule, own=[experience([0.5]), experience([0.0])]) == 2
