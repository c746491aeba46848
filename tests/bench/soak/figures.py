"""Samples -> is anything growing: a line through each series after the first quarter, a verdict, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from tests.bench.soak.samples import Sample

WARM_UP = 0.25
"""Of the time, in which tables and caches fill up."""


class Bound(NamedTuple):
    """A series is flat if its line rises by no more in an hour than the larger of the two."""

    most: float
    share: float = 0.0
    """Of the median."""


FLAT: Mapping[str, Bound] = {
    "rss_mib": Bound(8.0, 0.03),
    "children_mib": Bound(8.0, 0.03),
    "descriptors": Bound(1.0),
    "threads": Bound(1.0),
    "processes": Bound(0.5),
    "disk_mib": Bound(1.0, 0.05),
    "loop_delay_p99_ms": Bound(5.0, 0.25),
}
WORDS = {
    "rss_mib": "resident memory of the daemon, MiB",
    "children_mib": "resident memory of its children, MiB",
    "descriptors": "open descriptors",
    "threads": "threads",
    "processes": "processes",
    "disk_mib": "disk without metrics.jsonl, MiB",
    "loop_delay_p99_ms": "event-loop delay, 99 % of a minute, ms",
}


class Line(NamedTuple):
    start: float
    """Median of the first tenth after the warm-up."""
    end: float
    """... and of the last one."""
    slope: float
    """Per hour, least squares."""
    error: float
    """Of the slope: its standard error."""


def line_through(times_s: Sequence[float], values: Sequence[float]) -> Line:
    """Needs three values at different times."""
    hours, series = np.asarray(times_s) / 3600, np.asarray(values, dtype=np.float64)
    centred = hours - hours.mean()
    spread = float((centred**2).sum())
    slope = float((centred * series).sum()) / spread
    residual = series - series.mean() - slope * centred
    error = float(np.sqrt((residual**2).sum() / (len(series) - 2) / spread))
    tenth = max(len(series) // 10, 1)
    return Line(median(series[:tenth]), median(series[-tenth:]), slope, error)


def is_flat(line: Line, middle: float, bound: Bound) -> bool:
    return line.slope <= max(bound.most, bound.share * middle)


def table(samples: Sequence[Sample]) -> tuple[list[str], bool]:
    """Rows of Markdown, and whether everything is flat."""
    rows = ["| daemon | what | after the warm-up | at the end | per hour | verdict |", "|---|---|---|---|---|---|"]
    all_flat = True
    for name in sorted({sample["node"] for sample in samples}):
        mine = [sample for sample in samples if sample["node"] == name]
        last = mine[-1]
        late = [sample for sample in mine if sample["elapsed_s"] >= WARM_UP * last["elapsed_s"]]
        times = [sample["elapsed_s"] for sample in late]
        for key, bound in FLAT.items():
            values = [float(sample[key]) for sample in late]  # type: ignore[literal-required]
            line = line_through(times, values)
            flat = is_flat(line, median(values), bound)
            all_flat &= flat
            rows.append(
                f"| {name} | {WORDS[key]} | {line.start:.1f} | {line.end:.1f} | {line.slope:+.2f} ± {line.error:.2f}"
                f" | {'flat' if flat else 'GROWS'} |"
            )
        worst = max(sample["loop_delay_max_ms"] for sample in late)
        rows.append(f"| {name} | longest event-loop delay, ms | | {worst:.0f} | | |")
        rows.append(
            f"| {name} | steps, own groups, admitted, minutes | | {last['steps']}, {last['own_groups']},"
            f" {last['admitted']}, {last['elapsed_s'] / 60:.0f} | | |"
        )
    return rows, all_flat


def drawn(samples: Sequence[Sample], path: Path) -> None:
    """A PNG with a panel for every series."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(4, 2, sharex=True).flat
    end = max(sample["elapsed_s"] for sample in samples)
    for panel, key in zip(panels, (*FLAT, "peers"), strict=True):
        for name in sorted({sample["node"] for sample in samples}):
            mine = [sample for sample in samples if sample["node"] == name]
            minutes = [sample["elapsed_s"] / 60 for sample in mine]
            panel.plot(minutes, [float(sample[key]) for sample in mine], label=name, linewidth=1)  # type: ignore[literal-required]
        panel.axvspan(0, WARM_UP * end / 60, color="#e3e6ea", zorder=0)
        panel.set_title(WORDS.get(key, "peers alive"), loc="left", fontsize=9)
        panel.set_ylim(bottom=0)
        panel.grid(color="#e3e6ea")
    figure.axes[0].legend(fontsize=8, frameon=False)
    for panel in figure.axes[-2:]:
        panel.set_xlabel("minutes")
    figure.savefig(path)
