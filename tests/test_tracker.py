import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.algorithms import TrackerConfig
from node.rl.tracker import Evidence, ValueTracker
from swarm.errors import CheckpointError
from swarm.types import PolicyVersion, Task, TaskRef

CONFIG = TrackerConfig()
V0 = PolicyVersion(0)

outcomes = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1), st.integers(0, 40)), max_size=30)


def make_task(prompt: str, source: str = "rg/spell", difficulty: str = "{}", index: int = 0) -> Task:
    ref = TaskRef(source=source, version="1", config="{}", seed=0, index=index)
    return Task(ref=ref, prompt=prompt, answer="", difficulty=difficulty)


@settings(deadline=None)
@given(st.floats(0, 100), st.floats(0, 100), st.floats(0.5, 1), st.floats(0, 1))
def test_an_observation_is_a_step_of_an_exponential_average(alpha: float, beta: float, decay: float, reward: float):
    evidence = Evidence(successes=alpha, mass=alpha + beta + 1e-3, version=3)
    mean, mass = evidence.successes / evidence.mass, evidence.mass
    evidence = evidence.observe(reward, 4, decay)
    rate = 1 / (decay * mass + 1)
    assert evidence.mass == pytest.approx(decay * mass + 1)
    assert evidence.successes / evidence.mass == pytest.approx(mean + rate * (reward - mean), abs=1e-9)


@pytest.mark.parametrize(("decay", "window"), [(0.875, 8.0), (0.96, 25.0)])
def test_one_outcome_per_update_settles_at_the_window(decay: float, window: float):
    evidence = Evidence()
    for version in range(1000):
        evidence = evidence.observe(1.0, version, decay)
    assert evidence.mass == pytest.approx(window)


def test_value_without_outcomes_is_the_root_prior():
    assert ValueTracker(CONFIG).value(make_task("a"), V0) == 0.5


def test_value_is_the_posterior_mean_of_prompt_given_cell_given_source():
    tracker = ValueTracker(CONFIG)
    tracker.observe(make_task("a"), 1.0, PolicyVersion(2))
    source = (0.5 + 1) / 2
    cell = (8 * source + 1) / 9
    assert tracker.source_values(PolicyVersion(2)) == {"rg/spell": pytest.approx(source)}
    assert tracker.value(make_task("a"), PolicyVersion(2)) == pytest.approx((8 * cell + 1) / 9)
    assert tracker.value(make_task("b"), PolicyVersion(2)) == pytest.approx(cell)
    assert tracker.value(make_task("b", difficulty='{"n":2}'), PolicyVersion(2)) == pytest.approx(source)
    assert tracker.value(make_task("b", source="rg/sort"), PolicyVersion(2)) == 0.5


def test_an_outcome_k_updates_old_has_weight_decay_to_the_k():
    tracker = ValueTracker(CONFIG)
    tracker.observe(make_task("a"), 1.0, PolicyVersion(2))
    slow, fast = CONFIG.prompt_decay**3, CONFIG.cell_decay**3
    source = (0.5 + fast) / (1 + fast)
    cell = (8 * source + fast) / (8 + fast)
    assert tracker.value(make_task("a"), PolicyVersion(5)) == pytest.approx((8 * cell + slow) / (8 + slow))


def test_old_evidence_fades_to_the_prior():
    tracker = ValueTracker(CONFIG)
    tracker.observe(make_task("a"), 1.0, V0)
    assert tracker.value(make_task("a"), PolicyVersion(10**9)) == pytest.approx(0.5)


def test_the_same_question_at_another_index_is_the_same_prompt():
    tracker = ValueTracker(CONFIG)
    tracker.observe(make_task("a", index=1), 1.0, V0)
    assert tracker.value(make_task("a", index=7), V0) == tracker.value(make_task("a", index=1), V0)
    assert tracker.value(make_task("a", index=7), V0) > tracker.value(make_task("b", index=1), V0)


@settings(deadline=None)
@given(outcomes, st.randoms(use_true_random=False))
def test_values_do_not_depend_on_the_order_of_receipt(events: list[tuple[str, float, int]], random):
    shuffled = list(events)
    random.shuffle(shuffled)
    trackers = ValueTracker(CONFIG), ValueTracker(CONFIG)
    for tracker, order in zip(trackers, (events, shuffled), strict=True):
        for prompt, reward, version in order:
            tracker.observe(make_task(prompt), reward, PolicyVersion(version))
    for prompt in "abc":
        values = [tracker.value(make_task(prompt), PolicyVersion(45)) for tracker in trackers]
        assert values[0] == pytest.approx(values[1], rel=1e-9)


@settings(deadline=None)
@given(outcomes)
def test_values_stay_between_zero_and_one(events: list[tuple[str, float, int]]):
    tracker = ValueTracker(CONFIG)
    for prompt, reward, version in events:
        tracker.observe(make_task(prompt), reward, PolicyVersion(version))
    assert all(0 < tracker.value(make_task(prompt), PolicyVersion(40)) < 1 for prompt in "abc")


def test_versions_far_apart_do_not_overflow():
    tracker = ValueTracker(CONFIG)
    for version in (10**9, 0, 2 * 10**9, 5):
        tracker.observe(make_task("a"), 1.0, PolicyVersion(version))
    source = 1.5 / 2
    cell = (8 * source + 1) / 9
    assert tracker.value(make_task("a"), PolicyVersion(2 * 10**9)) == pytest.approx((8 * cell + 1) / 9)


def test_a_read_before_the_newest_outcome_is_a_read_at_its_time():
    tracker = ValueTracker(CONFIG)
    tracker.observe(make_task("a"), 1.0, PolicyVersion(9))
    assert tracker.value(make_task("a"), V0) == tracker.value(make_task("a"), PolicyVersion(9))


def test_reads_change_nothing():
    tracker = ValueTracker(CONFIG)
    tracker.observe(make_task("a"), 1.0, PolicyVersion(1))
    before = tracker.state()
    tracker.value(make_task("b"), PolicyVersion(9))
    tracker.source_values(PolicyVersion(9))
    assert tracker.state() == before


@pytest.mark.parametrize("reward", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_reward_outside_zero_to_one_is_refused(reward: float):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        ValueTracker(CONFIG).observe(make_task("a"), reward, V0)


def test_the_least_recently_seen_prompt_is_forgotten():
    tracker = ValueTracker(TrackerConfig(max_prompts=2))
    for prompt in ("a", "b", "a", "c"):
        tracker.observe(make_task(prompt), 1.0, V0)
    unseen = tracker.value(make_task("new"), V0)
    assert tracker.value(make_task("b"), V0) == unseen
    assert tracker.value(make_task("a"), V0) > unseen
    assert tracker.value(make_task("c"), V0) > unseen
    assert len(tracker.state()["prompts"]) == 2


def test_a_frozen_state_is_of_its_moment():
    tracker = ValueTracker(TrackerConfig(max_prompts=2))
    for prompt in ("a", "b"):
        tracker.observe(make_task(prompt), 1.0, PolicyVersion(1))
    before, frozen = tracker.state(), tracker.freeze()
    for prompt in ("a", "c"):  # changes one key and pushes another out
        tracker.observe(make_task(prompt), 0.0, PolicyVersion(2))
    assert frozen() == before != tracker.state()


def observe_peers(tracker: ValueTracker, prompt: str, rewards: list[float], version: int = 0, difficulty: str = "{}"):
    for reward in rewards:
        tracker.observe_peer(make_task(prompt, difficulty=difficulty), reward, PolicyVersion(version))


def test_peers_outcomes_are_ignored_unless_told():
    tracker = ValueTracker(CONFIG)
    tracker.observe(make_task("a"), 1.0, V0)
    before = tracker.state()
    observe_peers(tracker, "a", [0.0, 1.0])
    assert tracker.state() == before


def test_a_peers_outcome_may_weigh_a_part_of_ours():
    tracker = ValueTracker(TrackerConfig(peers="weigh", peer_weight=0.25))
    tracker.observe(make_task("a"), 1.0, PolicyVersion(2))
    observe_peers(tracker, "a", [0.25, 1.0], version=2)
    # 1 + .25 * .25 + .25 successes of a mass of 1.5 at every level
    source = (0.5 + 1.3125) / 2.5
    cell = (8 * source + 1.3125) / 9.5
    assert tracker.source_value("rg/spell", PolicyVersion(2)) == pytest.approx(source)
    assert tracker.value(make_task("b"), PolicyVersion(2)) == pytest.approx(cell)
    assert tracker.value(make_task("a"), PolicyVersion(2)) == pytest.approx((8 * cell + 1.3125) / 9.5)


def test_a_late_outcome_of_a_peer_is_worth_its_weight_and_its_age():
    weighed = Evidence(3.0, 6.0, 5).observe(1.0, 3, 0.5, weight=0.25)
    assert weighed == Evidence(3.0 + 0.25 * 0.25, 6.0 + 0.25 * 0.25, 5)


def test_peers_may_be_the_prior_of_a_source_and_of_a_cell():
    tracker = ValueTracker(TrackerConfig(peers="prior", peer_weight=0.25))
    observe_peers(tracker, "a", [1.0] * 4)
    observe_peers(tracker, "a", [0.0] * 8, difficulty='{"n":2}')
    # The source: masses of 1 and 2. Its cells: successes of 1 of 1, and 0 of 2.
    source = (0.5 + 1) / (1 + 3)
    easy, hard = (source + (8 * source + 1) / 9) / 2, (source + 8 * source / 10) / 2
    assert tracker.source_value("rg/spell", V0) == pytest.approx(source)
    for prompt in "ab":  # what peers made of a prompt says nothing of that prompt alone
        assert tracker.value(make_task(prompt), V0) == pytest.approx(easy)
    assert tracker.value(make_task("a", difficulty='{"n":2}'), V0) == pytest.approx(hard)
    assert tracker.value(make_task("a", difficulty='{"n":3}'), V0) == pytest.approx(source)
    assert tracker.value(make_task("a", source="rg/sort"), V0) == 0.5


def test_a_prior_from_peers_is_the_start_of_our_own_value():
    tracker = ValueTracker(TrackerConfig(peers="prior", peer_weight=1.0))
    observe_peers(tracker, "a", [1.0] * 3)
    tracker.observe(make_task("a"), 0.0, V0)
    source = (3.5 / 4) / 2  # prior (.5 + 3) / (1 + 3) of mass 1, and one failure of ours
    cell = 8 * (source + (8 * source + 3) / 11) / 2 / 9
    assert tracker.source_value("rg/spell", V0) == pytest.approx(source)
    assert tracker.value(make_task("b"), V0) == pytest.approx(cell)
    assert tracker.value(make_task("a"), V0) == pytest.approx(8 * cell / 9)


def test_our_own_evidence_wins_over_a_prior_from_peers():
    tracker = ValueTracker(TrackerConfig(peers="prior"))
    observe_peers(tracker, "a", [1.0] * 1000)
    for _ in range(2000):
        tracker.observe(make_task("a"), 0.0, V0)
    assert tracker.value(make_task("b"), V0) < 0.01


def test_a_prior_from_peers_fades_with_our_versions():
    tracker = ValueTracker(TrackerConfig(peers="prior", peer_weight=1.0))
    observe_peers(tracker, "a", [1.0], version=2)
    faded = CONFIG.cell_decay**3
    source = (0.5 + faded) / (1 + faded)
    assert tracker.source_value("rg/spell", PolicyVersion(5)) == pytest.approx(source)
    cell = (source + (8 * source + faded) / (8 + faded)) / 2
    assert tracker.value(make_task("a"), PolicyVersion(5)) == pytest.approx(cell)


def test_without_peers_the_three_ways_to_hear_them_are_one():
    values = []
    for peers in ("ignore", "weigh", "prior"):
        tracker = ValueTracker(TrackerConfig(peers=peers, prior_mass=3.0))
        for index, prompt in enumerate("abca"):
            tracker.observe(make_task(prompt), index / 3, PolicyVersion(index))
        values.append([tracker.value(make_task(prompt), PolicyVersion(7)) for prompt in "abcd"])
    assert values[0] == values[1] == pytest.approx(values[2], rel=1e-12)


@pytest.mark.parametrize("peers", ["weigh", "prior"])
def test_a_peers_reward_outside_zero_to_one_is_refused(peers: Literal["weigh", "prior"]):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        ValueTracker(TrackerConfig(peers=peers)).observe_peer(make_task("a"), 1.5, V0)


def test_cells_of_peers_are_bounded():
    tracker = ValueTracker(TrackerConfig(peers="prior", max_prompts=2))
    for index in range(5):
        observe_peers(tracker, "a", [1.0], difficulty=str(index))
    assert [difficulty for _, difficulty, *_ in tracker.state()["peer_cells"]] == ["3", "4"]


def test_cells_are_listed_by_the_evidence_that_is_left_of_them():
    tracker = ValueTracker(CONFIG)
    for difficulty, rewards, version in (("old", [1.0] * 5, 0), ("new", [0.0, 1.0], 8), ("newest", [1.0], 9)):
        for reward in rewards:
            tracker.observe(make_task("a", difficulty=difficulty), reward, PolicyVersion(version))
    now, d = PolicyVersion(10), CONFIG.cell_decay
    source = (0.5 + 5 * d**10 + d**2 + d) / (1 + 5 * d**10 + 2 * d**2 + d)
    cells = tracker.cell_values(now, 3)
    assert [(cell.source, cell.difficulty) for cell in cells] == [
        ("rg/spell", name) for name in ("new", "old", "newest")
    ]
    assert [cell.mass for cell in cells] == pytest.approx([2 * d**2, 5 * d**10, d])
    assert cells[0].value == pytest.approx((8 * source + d**2) / (8 + 2 * d**2))
    assert [tracker.cell_value(cell.source, cell.difficulty, now) for cell in cells] == [cell.value for cell in cells]
    assert tracker.cell_values(now, 2) == cells[:2]
    assert tracker.cell_value("rg/spell", "other", now) == pytest.approx(source)


def test_what_peers_said_survives_json_and_a_state_without_it_opens():
    config = TrackerConfig(peers="prior")
    tracker = ValueTracker(config)
    tracker.observe(make_task("a"), 1.0, V0)
    plain = tracker.value(make_task("a"), V0)
    observe_peers(tracker, "a", [0.0], version=3)
    restored = ValueTracker.restore(config, json.loads(json.dumps(tracker.state())))
    assert restored.state() == tracker.state()
    assert restored.value(make_task("a"), V0) == tracker.value(make_task("a"), V0) < plain
    old = {key: rows for key, rows in tracker.state().items() if not key.startswith("peer")}
    assert ValueTracker.restore(config, old).value(make_task("a"), V0) == plain
    with pytest.raises(CheckpointError, match="tracker state"):
        ValueTracker.restore(config, old | {"peer_cells": [["a", 1.0, 1.0, 0]]})


def test_state_survives_json():
    tracker = ValueTracker(CONFIG)
    for index, prompt in enumerate(("a", "b", "a")):
        tracker.observe(make_task(prompt, difficulty=f'{{"n":{index}}}'), index / 2, PolicyVersion(index))
    restored = ValueTracker.restore(CONFIG, json.loads(json.dumps(tracker.state())))
    assert restored.state() == tracker.state()
    assert restored.value(make_task("a"), PolicyVersion(9)) == tracker.value(make_task("a"), PolicyVersion(9))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"sources": [["a", 1.0]], "cells": [], "prompts": []},
        {"sources": [], "cells": [], "prompts": [["a", "x", 1.0, 0]]},
    ],
)
def test_anything_else_than_a_state_is_refused(state: dict):
    with pytest.raises(CheckpointError, match="tracker state"):
        ValueTracker.restore(CONFIG, state)


# Going back -----------------------------------------------------------------------------------------------------------


def test_going_back_makes_undone_what_came_in_between() -> None:
    config = TrackerConfig(prompt_decay=0.5, cell_decay=0.9, peers="prior")
    tracker, undisturbed = ValueTracker(config), ValueTracker(config)
    for kept in (tracker, undisturbed):
        kept.observe(make_task(str(0)), 1.0, PolicyVersion(3))
        kept.observe_peer(make_task(str(1)), 1.0, PolicyVersion(4))
    state = tracker.state()
    for version in range(5, 20):
        tracker.observe(make_task(str(0)), 0.0, PolicyVersion(version))
        tracker.observe(make_task(str(version)), 0.0, PolicyVersion(version))
    tracker.go_back(state, then=PolicyVersion(4), now=PolicyVersion(20))
    for index in range(20):  # and as time goes on, it goes on from there
        for later in (0, 1, 7):
            then, now = PolicyVersion(4 + later), PolicyVersion(20 + later)
            assert tracker.value(make_task(str(index)), now) == undisturbed.value(make_task(str(index)), then)


def test_what_was_given_up_teaches_nothing_any_more() -> None:
    tracker = ValueTracker(TrackerConfig())
    tracker.observe(make_task(str(0)), 1.0, PolicyVersion(1))
    tracker.go_back(tracker.state(), then=PolicyVersion(1), now=PolicyVersion(9))
    before = tracker.value(make_task(str(0)), PolicyVersion(9))
    tracker.observe(make_task(str(0)), 0.0, PolicyVersion(8))
    assert tracker.value(make_task(str(0)), PolicyVersion(9)) == before
    tracker.observe(make_task(str(0)), 0.0, PolicyVersion(9))
    assert tracker.value(make_task(str(0)), PolicyVersion(9)) < before


def test_a_state_that_is_none_changes_nothing() -> None:
    tracker = ValueTracker(TrackerConfig())
    tracker.observe(make_task(str(0)), 1.0, PolicyVersion(1))
    before = tracker.state()
    with pytest.raises(CheckpointError):
        tracker.go_back({"sources": []}, then=PolicyVersion(0), now=PolicyVersion(2))
    assert tracker.state() == before
