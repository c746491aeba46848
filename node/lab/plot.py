"""An experiment's picture: every arm's mean curve over its seeds, with a band for how far the seeds are apart."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from node.lab.experiment import Experiment, Plot
from node.lab.report import Results
from node.lab.results import Curve, Result

INK, MUTED, GRID, GROUND = "#22272e", "#6a737d", "#e3e6ea", "#ffffff"
#: Told apart with any kind of colour vision (Okabe and Ito 2008; grey for their yellow, which is too light on white).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#8a8a8a")
DASHES = ("-", "-", "-", "-", "--", "--", "--", "--")
ARMS_PER_AXES = len(COLOURS)
MAX_POINTS = 200


@dataclass(frozen=True, slots=True)
class Band:
    x: np.ndarray
    """[points]"""
    mean: np.ndarray
    sd: np.ndarray
    """Of the sample; zero for a single curve."""


def save_plot(path: Path, experiment: Experiment, results: Results) -> None:
    """Writes a PNG with axes for each of the experiment's plots and panels, several where there are more arms than
    colours.

    Arms without results are left out. Raises ValueError when the experiment has no plots, OSError.
    """
    if not experiment.plots:
        raise ValueError(f"{experiment.name} has no plots")
    chunks = [part for panel in experiment.panels or [list(results)] for part in _parts(panel, results)]
    chunks = chunks or [list(results)[:1]]
    columns = len(experiment.plots)
    figure = new_figure(5.4 * columns + 2.2, 3.9 * len(chunks) + 0.7)
    grid = figure.subplots(len(chunks), columns, squeeze=False, sharex="col", sharey="col")
    for row, chunk in zip(grid, chunks, strict=True):
        shown = {arm: results[arm] for arm in chunk}
        for axes, plot in zip(row, experiment.plots, strict=True):
            _draw(axes, plot, shown)
        _legend(row[-1], experiment.plots[-1], shown)
    for axes, plot in zip(grid[-1], experiment.plots, strict=True):
        axes.set_xlabel(plot.x_label, fontsize=9, color=INK)
    save_figure(path, figure, experiment.question, columns)


def new_figure(width: float, height: float) -> Figure:
    """Empty, in inches."""
    figure = Figure(figsize=(width, height), dpi=120, facecolor=GROUND)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: Path, figure: Figure, question: str, columns: int) -> None:
    """As a PNG under its question, which is wrapped for so many columns of axes. Raises OSError."""
    title = textwrap.fill(question, 58 * columns + 22)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK, linespacing=1.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})  # the same picture for the same results


def quiet(axes: Axes, frame: Sequence[str], grid: Literal["both", "x"] = "both") -> None:
    """A light grid behind what is drawn, and of the frame only these sides."""
    axes.set_facecolor(GROUND)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines[list(frame)].set(visible=True, color=GRID)
    axes.tick_params(colors=INK, labelsize=8, length=0)


def _parts(panel: Sequence[str], results: Results) -> list[list[str]]:
    """The arms that have results, as many at a time as there are colours."""
    arms = [arm for arm in panel if results.get(arm)]
    return [list(map(str, part)) for part in np.array_split(arms, math.ceil(len(arms) / ARMS_PER_AXES))] if arms else []


def _draw(axes: Axes, plot: Plot, results: Results) -> None:
    for i, runs in enumerate(results.values()):
        band = band_of(_curves(runs, plot))
        axes.fill_between(band.x, band.mean - band.sd, band.mean + band.sd, color=COLOURS[i], alpha=0.13, linewidth=0)
        axes.plot(band.x, band.mean, DASHES[i], color=COLOURS[i], linewidth=1.8)
    quiet(axes, ["left", "bottom"])
    axes.margins(x=0.01)
    if plot.diagonal:
        axes.axline((0.0, 0.0), slope=1.0, color=MUTED, linewidth=1.0, zorder=1)
    percent = PercentFormatter(1.0, decimals=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(percent if plot.percent and plot.diagonal else EngFormatter(sep=""))  # 80k
    if plot.percent:
        axes.yaxis.set_major_formatter(percent)
    axes.set_ylabel(plot.y_label, fontsize=9, color=INK)


def _legend(axes: Axes, plot: Plot, results: Results) -> None:
    """Beside the row's last axes, from top to bottom as its lines end."""
    counts = {len(runs) for runs in results.values()}
    ends = [_end(band_of(_curves(runs, plot))) for runs in results.values()]
    handles, labels = [], []
    for i, arm in sorted(enumerate(results), key=lambda item: -ends[item[0]]):
        handles += axes.plot([], [], DASHES[i], color=COLOURS[i], linewidth=2.2)
        labels.append(arm if len(counts) == 1 else f"{arm} ({_seeds(len(results[arm]))})")
    legend = axes.legend(
        handles,
        labels,
        title=f"mean of {_seeds(counts.pop()) if len(counts) == 1 else 'the seeds'},\nband: ± 1 standard deviation",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9,
        title_fontsize=8,
        alignment="left",
        labelcolor=INK,
    )
    legend.get_title().set_color(MUTED)


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _end(band: Band) -> float:
    finite = band.mean[np.isfinite(band.mean)]
    return float(finite[-1]) if len(finite) else -math.inf


def _curves(runs: Mapping[int, Result], plot: Plot) -> list[Curve]:
    """Of the runs that have it."""
    return [result.curves[plot.curve] for result in runs.values() if result.curves.get(plot.curve)]


def band_of(curves: Sequence[Curve]) -> Band:
    """Mean and standard deviation where all curves are known, linearly interpolated in between; empty for none.

    At the curves' own x while those are few, else at MAX_POINTS that are evenly apart.
    """
    arrays = [np.asarray(curve, dtype=np.float64) for curve in curves]
    begin = max((array[0, 0] for array in arrays), default=0.0)
    end = min((array[-1, 0] for array in arrays), default=-1.0)
    x = np.unique(np.concatenate([array[:, 0] for array in arrays])) if arrays else np.empty(0)
    x = x[(begin <= x) & (x <= end)]
    if len(x) > MAX_POINTS:
        x = np.linspace(begin, end, MAX_POINTS)
    if not len(x):
        return Band(x, x, x)
    y = np.stack([np.interp(x, array[:, 0], array[:, 1]) for array in arrays])
    return Band(x, y.mean(axis=0), y.std(axis=0, ddof=1) if len(y) > 1 else np.zeros_like(x))
