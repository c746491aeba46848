"""The demo's picture: held-out pass@1 over time, the mean in large and every family in small."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator, PercentFormatter

from node.demo.report import Outcome, closing, mean_pass
from node.demo.state import NodeView, mean
from node.demo.style import colour

INK, GRID, GROUND = "#22272e", "#e3e6ea", "#ffffff"
TITLE = "Strict pass@1 on questions that no node trains on: mean over task families"
Points = Sequence[tuple[float, float]]


def save_learning_curves(path: Path, swarm: Outcome, alone: Outcome | None = None) -> None:
    """Writes a PNG. Solid lines: the swarm; dashed: the same nodes alone, if there was such a run.

    Lines join a node's own evaluations while it learned; the dots at both ends are the longer evaluations.
    """
    families = list(swarm.view.families)
    figure = Figure(figsize=(12, 7), dpi=150, facecolor=GROUND, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, max(1, len(families)), height_ratios=(2.0, 1.0))
    large = figure.add_subplot(grid[0, :])
    _draw(large, swarm, alone, None)
    large.set_title(
        "Strict pass@1 on questions that no node trains on: mean over task families", loc="left", fontsize=11, color=INK
    )
    large.legend(loc="lower right", ncols=2, frameon=False, fontsize=9)
    for i, family in enumerate(families):
        small = figure.add_subplot(grid[1, i])
        _draw(small, swarm, alone, family)
        small.set_title(family.replace("_", " "), loc="left", fontsize=10, color=INK)
        small.set_ylim(-0.02, 1.02)
        if i:
            small.tick_params(labelleft=False)
    figure.suptitle(
        closing(swarm, alone).replace(". The", ".\nThe"),
        x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK, linespacing=1.5,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw(axes: Axes, swarm: Outcome, alone: Outcome | None, family: str | None) -> None:
    if alone is not None:
        _draw_run(axes, alone, family, dashed=True)
    _draw_run(axes, swarm, family, dashed=False)
    axes.set_facecolor(GROUND)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{int(s) // 60}:{int(s) % 60:02d}"))
    axes.set_xlabel("minutes since the start" if family is None else "", fontsize=9, color=INK)
    seconds = max(run.wall_s for run in (swarm, alone) if run is not None)
    axes.set_xlim(0, 1.02 * max(1.0, seconds))
    axes.xaxis.set_major_locator(MultipleLocator(_tick_s(seconds, 8 if family is None else 4)))


def _tick_s(seconds: float, at_most: int) -> int:
    """A distance between ticks that people count time in."""
    return next((s for s in (1, 5, 15, 30, 60, 120, 300, 600, 1800) if seconds / s <= at_most), 3600)


def _draw_run(axes: Axes, run: Outcome, family: str | None, *, dashed: bool) -> None:
    curves = [_curve(run, node, family) for node in run.view.nodes]
    style = "--" if dashed else "-"
    for i, (node, points) in enumerate(zip(run.view.nodes, curves, strict=True)):
        label = None if dashed else f"{node.name} (taught {node.strong.replace('_', ' ')})"
        axes.plot(
            [x for x, _ in points], [y for _, y in points],
            style, color=colour(i), linewidth=1.4, alpha=0.45 if dashed else 0.85, label=label,
        )  # fmt: skip
        ends = points[:1] + points[-1:] if run.after.get(node.name) else points[:1]
        axes.plot([x for x, _ in ends], [y for _, y in ends], "o", color=colour(i), markersize=4 if family else 5,
                  alpha=0.5 if dashed else 1.0)  # fmt: skip
    average = _average(curves)
    axes.plot(
        [x for x, _ in average], [y for _, y in average], style, color=INK, linewidth=2.0 if family else 3.0,
        alpha=0.6 if dashed else 1.0, label=f"mean of the nodes{', alone' if dashed else ''}",
    )  # fmt: skip


def _curve(run: Outcome, node: NodeView, family: str | None) -> list[tuple[float, float]]:
    """(seconds, pass@1), the evaluations before and after included."""
    points = node.curve(family)
    after = run.after.get(node.name)
    if after and (family is None or family in after):
        points.append((run.wall_s, mean_pass(after) if family is None else after[family].pass_at_1))
    return points


def _average(curves: Sequence[Points]) -> Points:
    """The mean of the curves, linearly interpolated, where all of them are known."""
    if not all(curves):
        return []
    begin, end = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    times = sorted({x for curve in curves for x, _ in curve if begin <= x <= end})
    return [(x, mean([_at(curve, x) for curve in curves])) for x in times]


def _at(curve: Points, x: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[-1][1]
