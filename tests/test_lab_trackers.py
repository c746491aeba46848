"""The trackers that ours is compared with."""

from __future__ import annotations

import pytest

from node.algorithms import TrackerConfig
from node.lab.trackers import PromptTracker, SourceTracker, VisitTracker
from node.rl.tracker import ValueTracker
from swarm.types import PolicyVersion
from tests.builders import task, task_ref

A, B, C = (task(task_ref(index)) for index in range(3))
NOW = PolicyVersion(0)
LATER = PolicyVersion(1000)


def test_a_prompt_by_itself_knows_nothing_of_its_source():
    tracker = PromptTracker(TrackerConfig(prior_mass=1.0))
    for _ in range(3):
        tracker.observe(A, 1.0, NOW)
    assert tracker.value(B, NOW) == 0.5
    # (1 * 0.5 + 3) / (1 + 3)
    assert tracker.value(A, NOW) == pytest.approx(0.875)


def test_a_mean_per_source_knows_nothing_of_its_prompts():
    tracker = SourceTracker(TrackerConfig())
    tracker.observe(A, 1.0, NOW)
    tracker.observe(B, 0.0, NOW)
    # (1 * 0.5 + 1) / (1 + 2)
    assert tracker.value(A, NOW) == tracker.value(C, NOW) == pytest.approx(0.5)


def test_what_was_seen_fades_with_visits_and_not_with_versions():
    config = TrackerConfig(cell_decay=0.5)
    visits, ours = VisitTracker(config), ValueTracker(config)
    for tracker in (visits, ours):
        for reward in (1.0, 1.0, 0.0):
            tracker.observe(A, reward, NOW)
    source = A.ref.source
    # visits: successes .25 + .5 + 0, mass .25 + .5 + 1
    assert visits.source_value(source, NOW) == pytest.approx((0.5 + 0.75) / (1 + 1.75))
    assert visits.source_value(source, LATER) == visits.source_value(source, NOW)
    assert ours.source_value(source, NOW) == pytest.approx((0.5 + 2) / (1 + 3))
    assert ours.source_value(source, LATER) == pytest.approx(0.5)


def test_visits_read_the_whole_hierarchy():
    tracker = VisitTracker(TrackerConfig(cell_decay=1.0, prompt_decay=1.0, prior_mass=1.0))
    tracker.observe(A, 1.0, LATER)
    source = (0.5 + 1) / 2
    cell = (source + 1) / 2
    assert tracker.value(B, NOW) == pytest.approx(cell)
    assert tracker.value(A, NOW) == pytest.approx((cell + 1) / 2)
