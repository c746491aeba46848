"""An experiment's second picture: every comparison as a row, with a dot per pair of runs, their mean and its interval.

Curves of twenty arms hide what a table of twenty differences says; a forest plot shows it (Lewis and Clarke 2001).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from node.lab.experiment import Experiment, Metric
from node.lab.plot import COLOURS, GROUND, INK, MUTED, new_figure, quiet, save_figure
from node.lab.report import Results, compared, values_of
from node.lab.statistics import Interval, mean, paired_differences
from node.lab.statistics import difference as difference_of

BETTER, WORSE, OPEN = COLOURS[0], COLOURS[1], MUTED
ROW_INCHES = 0.27


@dataclass(frozen=True, slots=True)
class Row:
    """Of one comparison, in one metric."""

    label: str
    pairs: Sequence[float]
    """Differences, one per seed; without those that are undefined."""
    mean: float
    interval: Interval | None

    def colour(self, metric: Metric) -> str:
        """Says better or worse only where the whole interval does."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return OPEN
        return BETTER if (self.mean > 0) == metric.higher_is_better else WORSE


def rows_of(experiment: Experiment, results: Results, metric: str) -> list[Row]:
    """One per comparison that has a pair, in the experiment's order."""
    rows = []
    for pair in compared(experiment, results):
        arm, against = values_of(pair.arm, metric), values_of(pair.against, metric)
        undefined = {seed for values in (arm, against) for seed, value in values.items() if math.isnan(value)}
        arm, against = ({seed: values[seed] for seed in values if seed not in undefined} for values in (arm, against))
        pairs = paired_differences(arm, against)
        if pairs:
            rows.append(Row(pair.label, pairs, mean(pairs), difference_of(arm, against).interval))
    return rows


def columns_of(experiment: Experiment, results: Results) -> dict[str, list[Row]]:
    """Of the metrics that decide, those that have rows."""
    deciding = [name for name, metric in experiment.metrics.items() if metric.decides]
    return {name: rows for name in deciding if (rows := rows_of(experiment, results, name))}


def save_forest(path: Path, experiment: Experiment, columns: Mapping[str, Sequence[Row]]) -> None:
    """Writes a PNG of `columns_of` the experiment. Raises ValueError when there are none, OSError."""
    if not columns:
        raise ValueError(f"{experiment.name} has no differences to draw")
    figure = new_figure(4.6 * len(columns) + 3.4, ROW_INCHES * max(map(len, columns.values())) + 1.3)
    for axes, (name, rows) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
        _draw(axes, experiment.metrics[name], rows)
    save_figure(path, figure, experiment.question, len(columns))


def _draw(axes: Axes, metric: Metric, rows: Sequence[Row]) -> None:
    axes.axvline(0.0, color=INK, linewidth=0.9)
    for y, row in enumerate(rows):
        colour = row.colour(metric)
        axes.scatter(row.pairs, [y] * len(row.pairs), s=14, color=colour, alpha=0.35, linewidth=0)
        if row.interval is not None:
            axes.plot(row.interval, (y, y), color=colour, linewidth=2.2, solid_capstyle="butt")
        filled = colour if row.interval is not None else GROUND
        axes.scatter([row.mean], [y], s=34, marker="D", facecolor=filled, edgecolor=colour, linewidth=1.3, zorder=3)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    quiet(axes, ["bottom"], grid="x")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    percent = metric.format.endswith("%")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x if percent else x:+.4g}" if x else "0"))
    legend = "dots: seeds; bar: 95 % of the mean; hollow: fewer than three"
    axes.set_xlabel(f"{metric.label}: difference{' in points' if percent else ''}\n{legend}", fontsize=8.5, color=INK)
