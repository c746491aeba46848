from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from node.lab.experiment import Arm, Comparison, Experiment, Metric, Plot
from node.lab.plot import band_of, save_plot
from node.lab.report import BEGIN, END, LEGEND, Results, collect, markdown, paired, rich_tables, write_page
from node.lab.results import Outcome, Result, ResultStore
from swarm.errors import ConfigError
from tests.fake_experiment import EXPERIMENT, outcome


def never(seed: int) -> Outcome:
    raise AssertionError("a report runs nothing")


def result(**summary: float) -> Result:
    return Result(summary=summary, curves={"pass": [(0.0, 0.0), (10.0, 1.0)]}, wall_s=1.0, versions={})


MADE_UP = Experiment(
    name="made-up",
    version=1,
    question="Is b better?",
    setting="None.",
    arms=[*(Arm(name, {}, never) for name in ("a|z", "b", "c")), Arm("d", {}, never, seeds=(1,))],
    comparisons=[Comparison("b", "a|z"), Comparison("c", "a|z"), Comparison("d", "a|z")],
    metrics={"pass": Metric("pass@1", ".1%"), "n": Metric("tokens", ",.0f", higher_is_better=False)},
    plots=[Plot("pass", "own steps", "pass@1", percent=True)],
    seeds=(1, 2, 3),
)
RESULTS: Results = {
    "a|z": {seed: result(**{"pass": 0.5, "n": 1000 * seed}) for seed in (1, 2, 3)},
    "b": {seed: result(**{"pass": 0.5 + seed / 100, "n": 1000 * seed}) for seed in (1, 2, 3)},
    "c": {1: result(**{"pass": 0.25, "n": math.nan}), 2: result(**{"pass": 0.75, "n": 1.0})},
    "d": {},
}


# Tables ---------------------------------------------------------------------------------------------------------------


def test_the_block_of_a_page() -> None:
    block = markdown(MADE_UP, RESULTS, MADE_UP.seeds, "made-up.png").split("\n\n")
    assert block == [
        BEGIN,
        "Seeds 1, 2, 3; of 10 runs 8 are done.",
        "| arm | seeds | pass@1 ↑ | tokens ↓ |\n"
        "| --- | --- | --- | --- |\n"
        "| a\\|z | 3 | 50.0 ± 0.0 % [50.0, 50.0] | 2,000 ± 1,000 [1,000, 3,000] |\n"
        "| b | 3 | 52.0 ± 1.0 % [51.0, 53.0] | 2,000 ± 1,000 [1,000, 3,000] |\n"
        "| c | 2 | 50.0 ± 35.4 % [n/a] | n/a in 1 of 2 |\n"
        "| d | 0 | n/a | n/a |",
        "| difference | seeds | pass@1 ↑ | tokens ↓ |\n"
        "| --- | --- | --- | --- |\n"
        "| b against a\\|z | 3 | +2.0 points [+1.0, +3.0] p 0.25 | +0 [+0, +0] p 1 |\n"
        "| c against a\\|z | 2 | +0.0 points [n/a] p n/a | n/a |",
        LEGEND,
        "![pass@1 of every arm](made-up.png)",
        END,
    ]


def test_runs_that_began_with_other_models_are_no_pair() -> None:
    here, there = result(start=0.328), result(start=0.406)

    assert paired({1: here, 2: here, 3: here}, {1: there, 2: here}) == ({2: here}, {2: here})
    assert paired({1: result()}, {1: result()}) == ({1: result()}, {1: result()})  # none has a start to compare


def test_one_seed_has_no_deviation() -> None:
    block = markdown(MADE_UP, {"b": {1: RESULTS["b"][1]}}, (1,))
    assert "Seed 1.\n" in block
    assert "| b | 1 | 51.0 ± n/a % [n/a] | 1,000 ± n/a [n/a] |" in block
    assert "difference" not in block
    assert "![" not in block


def test_the_terminal_shows_the_same_and_takes_no_brackets_for_markup() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for table in rich_tables(MADE_UP, RESULTS):
            console.print(table)
        words = " ".join(console.export_text().split())
    assert "b 3 52.0 ± 1.0 % 2,000 ± 1,000 [51.0, 53.0] [1,000, 3,000]" in words
    assert "b against a|z 3 +2.0 points +0 [+1.0, +3.0] [+0, +0] p 0.25 p 1" in words


def test_what_counts_is_collected(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    plain, gain = EXPERIMENT.arms[:2]
    store.put(EXPERIMENT.key(plain, 2), EXPERIMENT.digest(plain), outcome(0.0, 2), wall_s=1.0)
    store.put(EXPERIMENT.key(plain, 3), EXPERIMENT.digest(plain), outcome(0.0, 3), wall_s=1.0)
    store.put(EXPERIMENT.key(gain, 2), "older", outcome(0.2, 2), wall_s=1.0)
    results = collect(EXPERIMENT, store, (1, 2))
    assert list(results) == [arm.name for arm in EXPERIMENT.arms]
    assert {arm: list(runs) for arm, runs in results.items() if runs} == {"plain": [2]}
    assert results["plain"][2].summary["pass"] == 0.52


# Pages ----------------------------------------------------------------------------------------------------------------


def test_a_page_is_made_and_later_only_its_block_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "docs/made-up.md"
    write_page(page, MADE_UP, f"{BEGIN}\none\n{END}")
    assert page.read_text() == f"# Is b better?\n\nNone.\n\n{BEGIN}\none\n{END}\n"
    page.write_text(f"before\n{BEGIN}\none\n{END}\nafter ±\n")
    write_page(page, MADE_UP, f"{BEGIN}\ntwo\n{END}")
    assert page.read_text() == f"before\n{BEGIN}\ntwo\n{END}\nafter ±\n"


@pytest.mark.parametrize(
    "text", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}", f"{END}{BEGIN}{END}"]
)
def test_a_page_with_other_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "made-up.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match=r"made-up\.md: expected the lines <!-- results:begin -->"):
        write_page(page, MADE_UP, f"{BEGIN}\n{END}")
    assert page.read_text() == text


# Plots ----------------------------------------------------------------------------------------------------------------


def test_the_mean_of_curves_is_where_all_are_known() -> None:
    band = band_of([[(0, 0.0), (10, 1.0)], [(5, 1.0), (20, 1.0)]])
    assert band.x.tolist() == [5, 10]
    assert band.mean.tolist() == [0.75, 1.0]
    assert band.sd.tolist() == pytest.approx([0.25 * math.sqrt(2), 0.0])


def test_one_curve_is_its_own_mean_and_none_is_empty() -> None:
    band = band_of([[(0, 0.5), (3, 0.25)]])
    assert (band.x.tolist(), band.mean.tolist(), band.sd.tolist()) == ([0, 3], [0.5, 0.25], [0, 0])
    assert band_of([]).x.tolist() == band_of([[(0, 1.0)], [(1, 1.0)]]).x.tolist() == []


def test_many_points_are_thinned() -> None:
    curves = [[(x + shift, 2.0 * x) for x in np.linspace(0, 100, 150)] for shift in (0.0, 0.1)]
    band = band_of(curves)
    assert (len(band.x), band.x[0], band.x[-1]) == (200, 0.1, 100.0)
    assert band.mean == pytest.approx(2 * band.x - 0.1)


def test_a_picture_is_the_same_for_the_same_results(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        save_plot(tmp_path / "new" / name, MADE_UP, RESULTS)
    picture = (tmp_path / "new/one.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == (tmp_path / "new/two.png").read_bytes()
    save_plot(tmp_path / "three.png", MADE_UP, {**RESULTS, "b": RESULTS["c"]})
    assert picture != (tmp_path / "three.png").read_bytes()


def test_more_arms_than_colours_and_no_results_are_drawn(tmp_path: Path) -> None:
    many = {f"arm {i}": RESULTS["b"] for i in range(17)}
    heights = []
    for results in ({"b": RESULTS["b"]}, many, {"b": {}}):
        save_plot(tmp_path / "x.png", MADE_UP, results)
        heights.append(int.from_bytes((tmp_path / "x.png").read_bytes()[20:24], "big"))
    assert heights[1] > 2.5 * heights[0]
    assert heights[2] == heights[0]


def test_panels_are_of_the_arms_that_they_name(tmp_path: Path) -> None:
    def picture(experiment: Experiment, results: Results) -> bytes:
        save_plot(tmp_path / "x.png", experiment, results)
        return (tmp_path / "x.png").read_bytes()

    of_b = replace(MADE_UP, panels=[["b"]])
    assert picture(of_b, RESULTS) == picture(MADE_UP, {"b": RESULTS["b"]})
    both = replace(MADE_UP, panels=[["b"], ["c", "b"], []])
    assert picture(both, {"b": RESULTS["b"], "c": {}}) == picture(replace(MADE_UP, panels=[["b"], ["b"]]), RESULTS)


def test_what_foretells_is_drawn_with_the_line_where_it_would_be_right(tmp_path: Path) -> None:
    def picture(diagonal: bool, percent: bool) -> bytes:
        plot = Plot("pass", "value", "reward", percent=percent, diagonal=diagonal)
        save_plot(tmp_path / "x.png", replace(MADE_UP, plots=[plot]), RESULTS)
        return (tmp_path / "x.png").read_bytes()

    assert len({picture(diagonal, percent) for diagonal in (False, True) for percent in (False, True)}) == 4


def test_a_picture_of_panels_says_whether_it_leaves_an_arm_out() -> None:
    def caption(panels: list[list[str]]) -> str:
        return markdown(replace(MADE_UP, panels=panels), RESULTS, [1, 2], picture="p.png").split("![")[1]

    arms = list(RESULTS)
    assert "of every arm]" in caption([])
    assert "of every arm]" in caption([arms[:1], arms[1:]])
    assert "of the arms that decide]" in caption([arms[:1]])


@pytest.mark.parametrize("arms", [8, 9, 16, 17])
def test_the_last_of_many_arms_is_drawn_too(tmp_path: Path, arms: int) -> None:
    pictures = []
    for end in (0.5, 1.0):
        last = Result(summary={}, curves={"pass": [(0.0, 0.0), (10.0, end)]}, wall_s=1.0, versions={})
        results = {f"arm {i}": {1: RESULTS["b"][1]} for i in range(arms - 1)} | {"last": {1: last}}
        save_plot(tmp_path / "x.png", MADE_UP, results)
        pictures.append((tmp_path / "x.png").read_bytes())
    assert pictures[0] != pictures[1]
