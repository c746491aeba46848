"""An arm's settings: laid over the base, kept as JSON, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.algorithms import Cispo, DppoTv, NoGate, SapoPlain
from node.lab.adversary import Attack
from node.lab.experiments import EXPERIMENTS, load
from node.lab.settings import BASE, IMPLIED, SPEEDS, arm, merged, setup_of
from node.lab.worlds import FAMILIES, WORLDS
from tests.policies import save_tiny_policy


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A world whose models take no time to make."""
    model = save_tiny_policy(tmp_path / "model")
    monkeypatch.setitem(WORLDS, "tiny", lambda nodes, seed: [model] * nodes)  # pyright: ignore[reportArgumentType]


def test_a_table_with_a_type_replaces_the_base_and_one_without_adds_to_it():
    base = {"objective": {"type": "dppo_tv", "delta": 0.2}, "pool": {"own_groups": 8, "foreign_groups": 0}}
    changes = {"objective": {"type": "cispo"}, "pool": {"foreign_groups": 4}, "sampler": {"candidates": 1}}
    assert merged(base, changes) == {
        "objective": {"type": "cispo"},
        "pool": {"own_groups": 8, "foreign_groups": 4},
        "sampler": {"candidates": 1},
    }
    assert base["pool"] == {"own_groups": 8, "foreign_groups": 0}


@pytest.mark.usefixtures("tiny")
def test_settings_become_the_members_configs():
    tables = {"objective": {"type": "cispo", "cap": 3.0}, "foreign": {"type": "sapo_plain"}, "pool": {"own_groups": 2}}
    attack = Attack(body="poisoned", logprob=-1.0, interval_s=3.0)
    made = arm("a", world="tiny", nodes=2, steps=7, tables=tables, lag=3, spread=0.5, attacks=[attack])
    setup = setup_of(json.loads(json.dumps(made.settings)), seed=1)
    first, second = setup.members
    assert first.config.objective == Cispo(cap=3.0)
    assert isinstance(first.config.foreign, SapoPlain)
    assert (first.config.pool.own_groups, first.config.max_steps, first.lag) == (2, 7, 3)
    assert first.pace.rollout_s == 1.0
    assert second.pace.rollout_s == pytest.approx(1 / SPEEDS[1])
    assert (first.pace.start_s, first.pace.spread) == (0.0, 0.5)
    assert second.pace.start_s > 0
    assert setup.attacks == [attack]


@pytest.mark.usefixtures("tiny")
def test_what_an_arm_does_not_say_is_the_base_and_not_the_nodes_default():
    (member,) = setup_of(arm("a", world="tiny", nodes=1, steps=1).settings, seed=1).members
    assert member.config.objective == DppoTv(delta=0.2, cap=2.0, squared_log_ratio=1e-3)
    assert isinstance(member.config.foreign_gate, NoGate)
    assert member.config.pool.foreign_groups == 0
    assert member.config.learner.truncated == "scored"


@pytest.mark.usefixtures("tiny")
def test_tasks_are_those_that_the_models_were_shown_or_of_all_difficulties():
    shown, uneven = arm("a", world="tiny", nodes=1, steps=1), arm("b", world="tiny", nodes=1, steps=1, tasks="uneven")
    for each, longest in ((shown, 6), (uneven, 10)):
        tasks = setup_of(each.settings, seed=1).members[0].config.tasks[0].model_dump()
        assert (tasks["name"], tasks["config"]) == ("spell_backward", {"min_word_len": 3, "max_word_len": longest})


def test_what_came_later_is_not_among_the_settings():
    """Old results would no longer count."""
    for table, keys in IMPLIED.items():
        assert not keys.keys() & BASE.get(table, {}).keys()
    assert not {"scoring", "tracker", "tasks"} & arm("a", world="same", nodes=1, steps=1).settings.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_arms_of_known_worlds_that_json_can_write(name: str):
    experiment = load(name)
    assert experiment.name == name
    for one in experiment.arms:
        assert one.settings["world"] in WORLDS
        assert one.settings.get("tasks", "shown") in FAMILIES
        assert json.loads(json.dumps(one.settings)) == one.settings
