"""The numbers that the demo leaves behind: exact, and drawn."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from node.demo.models import Score, evaluation_size, read_scores, trained_model
from node.demo.plan import DemoOptions, Family, Meeting, node_settings, plan_nodes, to_toml
from node.demo.plot import save_learning_curves
from node.demo.processes import ChildFailed
from node.demo.report import Outcome, closing, deaths, summary, table
from node.demo.state import FleetView, NodeView
from node.settings import load_config
from swarm.wire.v1 import node_pb2
from tests.builders import identity

FAMILIES = ("spell_backward", "rotate_matrix")


def score(value: float) -> Score:
    return Score(pass_at_1=value, low=value - 0.1, high=value + 0.1, tasks=128)


def scores(spell: float, rotate: float) -> dict[str, Score]:
    return {"spell_backward": score(spell), "rotate_matrix": score(rotate)}


def node(name: str, admitted: dict[str, int], **counters: int) -> NodeView:
    before = {"spell_backward": 0.5, "rotate_matrix": 0.1}
    view = NodeView(name=name, strong="spell_backward", target_steps=400, before=before)
    status = node_pb2.NodeStatus(
        peer=f"12D3-{name}",
        state=node_pb2.NODE_STATE_RUNNING,
        steps=400,
        admitted=admitted,
        refused={"stale": 4},
        counters=counters,
        held_out={"spell_backward": 0.6, "rotate_matrix": 0.3},
        held_out_step=25,
    )
    view.observe(status, 50.0)
    return view


def outcome(*, after_alder: tuple[float, float] = (0.8, 0.4)) -> Outcome:
    alder = node("alder", {"12D3-birch": 7, "12D3-stranger": 2}, own_tokens=10, foreign_tokens=3)
    view = FleetView(
        title="2 nodes",
        families=FAMILIES,
        nodes=[alder, node("birch", {"12D3-alder": 5})],
        budget_s=360,
        started_at=100.0,
        stopped_at=320.0,
    )
    return Outcome(
        view=view,
        before={"alder": scores(0.5, 0.1), "birch": scores(0.1, 0.3)},
        after={"alder": scores(*after_alder), "birch": scores(0.5, 0.7)},
    )


def test_summary() -> None:
    document = json.loads(json.dumps(summary(outcome())))

    assert document["nodes"] == [
        {
            "name": "alder",
            "before": {"spell_backward": 0.5, "rotate_matrix": 0.1},
            "after": {"spell_backward": 0.8, "rotate_matrix": 0.4},
            "admitted": {"birch": 7, "12D3-stranger": 2},
            "refused": {"stale": 4},
            "steps": 400,
            "target_steps": 400,
            "own_tokens": 10,
            "foreign_tokens": 3,
        },
        {
            "name": "birch",
            "before": {"spell_backward": 0.1, "rotate_matrix": 0.3},
            "after": {"spell_backward": 0.5, "rotate_matrix": 0.7},
            "admitted": {"alder": 5},
            "refused": {"stale": 4},
            "steps": 400,
            "target_steps": 400,
            "own_tokens": 0,
            "foreign_tokens": 0,
        },
    ]
    assert document["wall_s"] == 220.0
    assert document["mean_before"] == pytest.approx(0.25)
    assert document["mean_after"] == pytest.approx(0.6)
    assert document["gain"] == pytest.approx(0.35)
    assert document["questions"] == {"alder": 256, "birch": 256}
    assert document["curves"]["alder"] == [
        {"at_s": 50.0, "step": 25, "pass_at_1": {"spell_backward": 0.6, "rotate_matrix": 0.3}}
    ]
    assert "compare" not in document


def test_comparison() -> None:
    alone = outcome(after_alder=(0.4, 0.4))
    document = summary(outcome(), alone)
    compare = document["compare"]

    assert isinstance(compare, dict)
    assert compare["mean_after"] == pytest.approx(0.5)
    assert compare["difference"] == pytest.approx(0.1)
    assert [entry["name"] for entry in compare["nodes"]] == ["alder", "birch"]
    assert closing(outcome(), alone).endswith("The same nodes alone: 50 % (+10.0 points for the swarm).")


def test_the_sentence() -> None:
    assert closing(outcome()) == (
        "2 nodes, mean pass@1 25 % → 60 % in 3 min 40 s; every node learned from every other."
    )


def test_a_node_without_a_result_is_left_out_of_both_means() -> None:
    run = outcome()
    run = Outcome(view=run.view, before=run.before, after={"birch": scores(0.5, 0.7)})

    assert (run.mean_before, run.mean_after) == (pytest.approx(0.2), pytest.approx(0.6))
    assert summary(run)["nodes"][0]["after"] == {}  # type: ignore[index]


def test_ways_that_nothing_took_are_counted() -> None:
    run = outcome()
    run.view.nodes[1].status.admitted.clear()

    assert "1 of the 2 ways between them were taken" in closing(run)


def test_deaths_are_told() -> None:
    run = outcome()
    run.view.nodes[1].phase, run.view.nodes[1].exit_code, run.view.nodes[1].last_words = "died", -9, "Killed"

    assert deaths(run.view.nodes) == ["birch died (exit code -9): Killed"]
    assert summary(run)["died"] == ["birch"]


def test_table() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table(outcome(), "before and after"))
    lines = console.export_text().splitlines()

    assert [line.split() for line in lines if "●" in line or line.startswith("all")] == [
        ["●", "alder", "50→80", "↑30", "10→40", "↑30", "30→60", "↑30", "400"],
        ["●", "birch", "10→50", "↑40", "30→70", "↑40", "20→60", "↑40", "400"],
        ["all", "30→65", "↑35", "20→55", "↑35", "25→60", "↑35"],
    ]


@pytest.mark.parametrize("compare", [False, True])
def test_the_picture_is_a_png_of_a_good_size(tmp_path: Path, compare: bool) -> None:
    path = tmp_path / "new" / "curve.png"
    save_learning_curves(path, outcome(), outcome() if compare else None)
    data = path.read_bytes()

    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 1800
    assert len(data) > 20_000


def test_the_picture_of_a_run_of_which_nothing_came(tmp_path: Path) -> None:
    nodes = [NodeView(name="alder")]
    view = FleetView(title="", families=FAMILIES, nodes=nodes, budget_s=1, started_at=0, stopped_at=0)
    save_learning_curves(tmp_path / "curve.png", Outcome(view=view, before={}))

    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert closing(Outcome(view=view, before={})) == "1 node in 0 s."


def test_scores_are_read_strictly() -> None:
    def said(**families: object) -> str:
        return json.dumps({"samples": 4, "families": families})

    once = {"value": 0.25, "interval": [0.2, 0.3]}
    entry = {"pass_at_k": {"1": once, "4": once}, "tasks": 64}

    assert read_scores(said(**{"reasoning_gym/spell_backward": entry})) == {
        "spell_backward": Score(pass_at_1=0.25, low=0.2, high=0.3, tasks=64)
    }
    wrong = entry | {"pass_at_k": {"1": once | {"interval": 1}}}
    for broken in ("", "[]", '{"a": 1}', json.dumps({"a": entry}), said(a=wrong), said(a={"tasks": 64})):
        with pytest.raises(ChildFailed, match="swarm-node eval"):
            read_scores(broken)


@pytest.mark.parametrize(("families", "tasks"), [(1, 224), (2, 128), (4, 64), (20, 32)])
def test_every_node_is_judged_by_two_hundred_questions(families: int, tasks: int) -> None:
    assert evaluation_size(families).tasks == tasks
    assert families * tasks >= 200


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    plan = plan_nodes(DemoOptions(nodes=1), [Family(name="a", config={})], tmp_path)[0]
    assert trained_model(plan) is None
    for name in ("step-00000100", "step-00000400", "step-00000900.damaged", ".saving-00001000"):
        (plan.directory / "checkpoints" / name / "model").mkdir(parents=True)
    (plan.directory / "checkpoints" / "step-00000500").mkdir()  # without a model

    assert trained_model(plan) == plan.directory / "checkpoints" / "step-00000400" / "model"


def test_plans_go_round_the_families(tmp_path: Path) -> None:
    families = [Family(name=name, config={}) for name in FAMILIES]
    plans = plan_nodes(DemoOptions(nodes=18, seed=7), families, tmp_path)

    assert [(p.name, p.strong, p.model_seed) for p in plans[:3]] == [
        ("alder", "spell_backward", 701),
        ("birch", "rotate_matrix", 702),
        ("cedar", "spell_backward", 703),
    ]
    assert len({p.model_seed for p in plans}) == 18
    assert len({p.name for p in plans}) == len({p.directory for p in plans}) == 18


@pytest.mark.parametrize("alone", [False, True])
def test_the_config_is_one_that_a_node_takes(tmp_path: Path, alone: bool) -> None:
    options = DemoOptions(nodes=2, steps=123, seed=3)
    families = [
        Family(name="spell_backward", config={"min_word_len": 3}),
        Family(name="rotate_matrix", config={"max_n": 2}),
    ]
    plan = plan_nodes(options, families, tmp_path, {"birch": 77} if alone else {})[1]
    peers = [f"/ip4/127.0.0.1/tcp/4001/p2p/{identity().peer_id}"]
    meeting = None if alone else Meeting("/ip4/127.0.0.1/tcp/4002", peers)
    settings = node_settings(plan, options, families, model=tmp_path, swarm="demo-1", meeting=meeting)
    file = tmp_path / "node.toml"
    file.write_text(to_toml(settings))
    config = load_config(file)

    assert config.name == "birch"
    assert config.data_dir == tmp_path / "node-2"
    assert config.max_steps == (77 if alone else 123)
    assert [task.name for task in config.tasks] == ["spell_backward", "rotate_matrix"]
    assert config.exchange.type == ("none" if alone else "p2p")
    assert config.pool.foreign_groups == (0 if alone else 96)
    exchange = config.exchange.model_dump()
    assert alone or (exchange["listen"], exchange["initial_peers"]) == (("/ip4/127.0.0.1/tcp/4002",), tuple(peers))


def test_toml() -> None:
    tables = {
        "name": 'quote " backslash \\ newline \n delete \x7f umlaut ü',
        "rate": 5e-4,
        "tiny": 1e-20,
        "many": 3,
        "on": True,
        "empty": [],
        "table": {"list": ["a", "b"], "inner": {"strange key": 1}},
        "array": [{"a": 1, "b": {"c": [1, 2]}}, {"a": 2}],
    }

    assert tomllib.loads(to_toml(tables)) == tables
    with pytest.raises(TypeError, match="no place in a config"):
        to_toml({"none": None})
