from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from node.lab.experiment import Metric
from node.lab.forest import BETTER, OPEN, WORSE, Row, columns_of, rows_of, save_forest
from node.lab.results import Result
from tests.test_lab_report import MADE_UP, RESULTS, result

DECIDED = replace(MADE_UP, metrics={"pass": Metric("pass@1", ".1%", decides=True), "n": MADE_UP.metrics["n"]})


def test_a_row_is_a_comparison_that_has_pairs() -> None:
    b, c = rows_of(DECIDED, RESULTS, "pass")
    assert (b.label, c.label) == ("b against a|z", "c against a|z")  # d has no run
    assert b.pairs == pytest.approx([0.01, 0.02, 0.03])
    assert b.mean == pytest.approx(0.02)
    assert b.interval == pytest.approx((0.01, 0.03))
    assert (c.pairs, c.mean, c.interval) == ([-0.25, 0.25], 0.0, None)


def test_a_run_without_that_number_is_no_dot() -> None:
    _, c = rows_of(DECIDED, RESULTS, "n")
    assert c.pairs == [1.0 - 2000.0]
    nothing: dict[int, Result] = {1: result(**{"pass": math.nan, "n": 1.0})}
    assert rows_of(DECIDED, {"a|z": RESULTS["a|z"], "b": nothing}, "pass") == []


@pytest.mark.parametrize(
    ("interval", "of_higher", "of_lower"),
    [((0.01, 0.03), BETTER, WORSE), ((-0.03, -0.01), WORSE, BETTER), ((-0.01, 0.03), OPEN, OPEN), (None, OPEN, OPEN)],
)
def test_better_and_worse_are_said_by_the_whole_interval(
    interval: tuple[float, float] | None, of_higher: str, of_lower: str
) -> None:
    row = Row("a against b", [], sum(interval or (0.0,)) / 2, interval)
    assert row.colour(Metric("pass@1")) == of_higher
    assert row.colour(Metric("tokens", higher_is_better=False)) == of_lower


def test_a_picture_is_the_same_for_the_same_differences_and_higher_for_more(tmp_path: Path) -> None:
    def picture(results: dict[str, dict[int, Result]]) -> bytes:
        save_forest(tmp_path / "new" / "x.png", DECIDED, columns_of(DECIDED, results))
        return (tmp_path / "new" / "x.png").read_bytes()

    results = {arm: dict(runs) for arm, runs in RESULTS.items()}
    two = picture(results)
    assert two.startswith(b"\x89PNG")
    assert two == picture(results)
    assert two != picture({**results, "c": results["b"]})
    height = slice(20, 24)
    assert picture({**results, "d": results["c"]})[height] > two[height]


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    for experiment, results in ((MADE_UP, RESULTS), (DECIDED, {"b": RESULTS["b"]})):
        with pytest.raises(ValueError, match="made-up has no differences to draw"):
            save_forest(tmp_path / "x.png", experiment, columns_of(experiment, results))
    assert not (tmp_path / "x.png").exists()
