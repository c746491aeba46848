"""What a stranger sees first: it fits the terminal, says the numbers, and obeys nobody's markup."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from node.demo.braille import Line, plot, sparkline
from node.demo.screen import plain_lines_of, render
from node.demo.state import FleetView, NodeView
from node.demo.style import change, clock, count, duration, plain
from swarm.wire.v1 import node_pb2

FAMILIES = ("spell_backward", "rotate_matrix", "number_sorting", "palindrome_generation")
NAMES = ("alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel")
NOW = 133.0


def status(i: int, nodes: int, second: float) -> node_pb2.NodeStatus:
    return node_pb2.NodeStatus(
        name=NAMES[i],
        peer=f"12D3KooW{i}",
        state=node_pb2.NODE_STATE_RUNNING,
        steps=int(2 * second),
        peers=nodes - 1,
        admitted={f"12D3KooW{j}": 100 + j for j in range(nodes) if j != i},
        refused={"stale": 3},
        counters={"own_groups": 2600, "own_tokens": int(2000 * second), "foreign_groups_trained": 900},
        metrics={"own_reward": 0.62, "own_staleness": 1.3},
        held_out=dict.fromkeys(FAMILIES, 0.2 + second / 400),
        held_out_step=int(2 * second) // 25 * 25,
    )


def fleet(nodes: int = 4) -> FleetView:
    views = []
    for i in range(nodes):
        view = NodeView(name=NAMES[i], strong=FAMILIES[i % 4], target_steps=400, before=dict.fromkeys(FAMILIES, 0.2))
        for second in range(0, 133, 4):
            view.observe(status(i, nodes, second), float(second))
        views.append(view)
    return FleetView(title="4 nodes learning", families=FAMILIES, nodes=views, budget_s=360, started_at=0.0)


def text_of(view: FleetView, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), record=True, force_terminal=True)
    console.print(render(view, NOW, width, height))
    return console.export_text().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (160, 45), (60, 20), (200, 60)])
@pytest.mark.parametrize("nodes", [1, 4])
def test_it_fits_the_terminal(width: int, height: int, nodes: int) -> None:
    lines = text_of(fleet(nodes), width, height)

    assert max(len(line) for line in lines) <= width
    assert len(lines) <= height
    assert "Ctrl-C" in lines[-1] or width < 100


def test_eight_nodes_at_80_columns() -> None:
    lines = text_of(fleet(8), 80, 40)

    assert max(len(line) for line in lines) <= 80
    assert len(lines) <= 40
    assert all(sum(name in line for line in lines) >= 2 for name in NAMES)


def test_a_row_says_how_far_a_node_came() -> None:
    row = next(line for line in text_of(fleet(), 100, 30) if "● birch" in line)

    assert re.search(r"learning\s+264\s+0\.62", row)
    assert row.count("52 ↑32") == 5  # four families and their mean
    assert "305" in row  # 100 + 102 + 103 groups of the other three
    assert "2.0k" in row  # tokens a second


def test_the_matrix_says_who_learned_from_whom() -> None:
    lines = text_of(fleet(), 100, 30)
    row = [line for line in lines if "● cedar" in line][1]

    assert row.split()[2:6] == ["100", "101", "2.6k", "103"]
    assert any("refused: stale 12" in line for line in lines)


def test_a_wide_screen_has_sparklines_and_a_chart_per_family() -> None:
    wide, narrow = "\n".join(text_of(fleet(), 160, 45)), "\n".join(text_of(fleet(), 100, 30))

    assert "▄▄▄▅" in wide
    assert "▄▄▄▅" not in narrow
    assert "palindrome generation" in wide
    assert "palindrome generation" not in narrow


def test_strings_from_elsewhere_are_neither_markup_nor_escape_sequences() -> None:
    view = fleet()
    hostile = "[bold red]boo[/bold red] \x1b[2J\x07 " + "x" * 500
    view.nodes[1].name = view.nodes[1].status.name = hostile
    view.nodes[2].phase, view.nodes[2].exit_code, view.nodes[2].last_words = "died", 1, hostile
    view.nodes[3].status.refused["[/]" + hostile] = 7
    console = Console(width=100, height=30, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(render(view, NOW, 100, 30))
    shown = console.file.getvalue()  # type: ignore[attr-defined]

    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "died (exit code 1): [bold red]boo[/bold red]" in shown
    assert len(shown.splitlines()) <= 30


def test_before_anything_is_known() -> None:
    nodes = [NodeView(name=name, strong=FAMILIES[0]) for name in NAMES[:4]]
    view = FleetView(title="4 nodes", families=FAMILIES, nodes=nodes, budget_s=360)
    view.activity, view.activity_done = "making the seed models", 0.25
    lines = text_of(view, 100, 30)

    assert any("making the seed models" in line and "25 %" in line for line in lines)
    assert sum("waiting" in line for line in lines) == 4


def test_plain_lines() -> None:
    lines = plain_lines_of(fleet(), NOW)

    assert len(lines) == 4
    assert lines[0].startswith(" 2:13 alder     learning step  264 | spell_backward 52 |")
    assert lines[0].endswith("from peers 306, peers 3, 2000 tok/s")


def test_a_node_that_is_asked_to_stop_stays_so() -> None:
    view = NodeView(name="alder", phase="stopping")
    view.observe(status(0, 4, 10), 10.0)

    assert view.phase == "stopping"


def test_phases_follow_the_status() -> None:
    view = NodeView(name="alder", target_steps=400)
    view.observe(status(0, 4, 10), 10.0)
    assert view.phase == "learning"
    view.observe(status(0, 4, 200), 200.0)
    assert view.phase == "done"


def test_one_reading_per_evaluation() -> None:
    readings = fleet(1).nodes[0].readings

    assert [r.step for r in readings] == sorted({r.step for r in readings})
    assert readings[0].mean == pytest.approx(0.2)
    assert readings[1].at_s == 16.0  # the first status that knew of step 25's


def test_progress_is_of_the_slowest_node_or_of_the_time() -> None:
    view = fleet(2)
    view.nodes[0].status.steps = 100

    assert view.progress(NOW) == pytest.approx(133 / 360)
    view.budget_s = 10_000
    assert view.progress(NOW) == pytest.approx(100 / 400)
    view.nodes[0].phase = "died"
    assert view.progress(NOW) == pytest.approx(264 / 400)


def test_a_line_from_corner_to_corner() -> None:
    rows = plot([Line(points=[(0.0, 0.0), (1.0, 1.0)], style="")], width=2, height=1, x_max=1.0, y_range=(0.0, 1.0))

    assert [row.plain for row in rows] == ["⡠⠊"]


def test_what_is_outside_of_the_chart_is_at_its_edge() -> None:
    rows = plot([Line(points=[(5.0, 2.0)], style="")], width=1, height=2, x_max=1.0, y_range=(0.0, 1.0))

    assert [row.plain for row in rows] == ["⠈", " "]


def test_numbers_for_people() -> None:
    assert sparkline([0.0, 0.5, 1.0, 2.0], 3) == "▅██"
    assert [count(n) for n in (0, 999, 1000, 9949, 9960, 95_000, 1_250_000, 3e9)] == [
        "0", "999", "1.0k", "9.9k", "10k", "95k", "1.2M", "3G",
    ]  # fmt: skip
    assert [clock(s) for s in (0, 61.9, 3600)] == ["0:00", "1:01", "60:00"]
    assert [duration(s) for s in (41.6, 187.0)] == ["42 s", "3 min 07 s"]
    assert [change(*v).plain for v in ((0.52, 0.31), (0.5, 0.54), (0.5, 0.5), (0.5, None), (None, 0.5))] == [
        "52 ↑21", "50 ↓ 4", "50 =  ", "50", "·",
    ]  # fmt: skip
    assert plain("a\nb\x1b[31m" + "c" * 300, 10) == "a b [31mcc"
