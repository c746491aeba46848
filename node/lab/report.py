"""What an experiment's results come to: the same tables in Markdown, for its page, and in rich, for the terminal.

The text is the same for the same results, so that a page in a repository changes only when they do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from node.datadir import write_atomic
from node.demo.style import ACCENT, MUTED
from node.lab.experiment import Arm, Experiment, Metric
from node.lab.results import Result, ResultStore
from node.lab.statistics import LEVEL, MIN_VALUES, RESAMPLES, Interval, difference, estimate
from swarm.errors import ConfigError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NONE = "n/a"
LEGEND = (
    f"Mean ± standard deviation over seeds, in brackets the {100 * LEVEL:.0f} % bootstrap interval of the mean "
    f"({RESAMPLES:,} resamples). Differences are between runs of the same seed that began with the same models (those "
    "made on another kind of processor do not), p is of a sign-flip test (two-sided). "
    f"{NONE}: fewer than {MIN_VALUES} seeds, or a run that has no such number."
)

START = "start"
"""Of a run's summary: what its models could do before the first step, a number with hundreds of answers in it."""

Runs = Mapping[int, Result]
"""Seed -> a finished run."""
Results = Mapping[str, Runs]
"""Arm -> seed -> a finished run; arms in the experiment's order, all of them there."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as texts; a line break in one is a space where there is room."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison, and the runs of it that can be compared one to one."""

    label: str
    arm: Runs
    against: Runs


def collect(experiment: Experiment, store: ResultStore, seeds: Sequence[int]) -> Results:
    """What is there of the experiment's runs. Raises OSError."""
    results: dict[str, dict[int, Result]] = {}
    for arm in experiment.arms:
        found = {seed: store.get(experiment.key(arm, seed), experiment.digest(arm)) for seed in seeds}
        results[arm.name] = {seed: result for seed, result in found.items() if result is not None}
    return results


def sheets(experiment: Experiment, results: Results) -> list[Sheet]:
    """A row per arm; then, where any can be compared, a row per comparison."""
    labels = [f"{metric.label} {'↑' if metric.higher_is_better else '↓'}" for metric in experiment.metrics.values()]
    arms = [
        [
            arm,
            str(len(runs)),
            *(_mean_cell(metric, values_of(runs, name)) for name, metric in experiment.metrics.items()),
        ]
        for arm, runs in results.items()
    ]
    differences = [
        [
            pair.label,
            str(len(pair.arm)),
            *(
                _difference_cell(metric, values_of(pair.arm, name), values_of(pair.against, name))
                for name, metric in experiment.metrics.items()
            ),
        ]
        for pair in compared(experiment, results)
    ]
    tables = [Sheet(["arm", "seeds", *labels], arms)]
    return [*tables, Sheet(["difference", "seeds", *labels], differences)] if differences else tables


def compared(experiment: Experiment, results: Results) -> list[Pair]:
    """The comparisons of which there are any runs, in the experiment's order."""
    pairs = []
    for comparison in experiment.comparisons:
        arm, against = paired(results.get(comparison.arm, {}), results.get(comparison.against, {}))
        if arm:
            pairs.append(Pair(f"{comparison.arm} against {comparison.against}", arm, against))
    return pairs


def paired(arm: Runs, against: Runs) -> tuple[Runs, Runs]:
    """The runs of both that can be compared one to one: of the same seed, and with the same `START`, where they have
    one. A seed decides all that is random, but models are made by arithmetic whose last digit depends on the processor,
    and after some thousand steps that is another model."""
    seeds = [
        seed
        for seed in sorted(arm.keys() & against.keys())
        if arm[seed].summary.get(START) == against[seed].summary.get(START)
    ]
    return {seed: arm[seed] for seed in seeds}, {seed: against[seed] for seed in seeds}


def values_of(runs: Runs, metric: str) -> dict[int, float]:
    """Seed -> value; NaN where a run has none."""
    return {seed: result.summary.get(metric, math.nan) for seed, result in runs.items()}


def progress(experiment: Experiment, arm: Arm, results: Results, seeds: Sequence[int]) -> tuple[int, int]:
    """How many of the arm's runs are done, and how many there are to be."""
    wanted = experiment.seeds_of(arm, seeds)
    return sum(seed in results[arm.name] for seed in wanted), len(wanted)


def markdown(
    experiment: Experiment, results: Results, seeds: Sequence[int], picture: str = "", forest: str = ""
) -> str:
    """The block between the markers, both included. `picture`, `forest`: files of the curves and of the differences."""
    parts = [_which(experiment, results, seeds)]
    parts += [_markdown_table(sheet) for sheet in sheets(experiment, results)]
    parts.append(LEGEND)
    if picture:
        named = {arm for panel in experiment.panels for arm in panel}
        drawn = "the arms that decide" if named and named < results.keys() else "every arm"
        parts.append(f"![{', '.join(plot.y_label for plot in experiment.plots)} of {drawn}]({picture})")
    if forest:
        parts.append(f"![differences, one dot per seed, mean and interval]({forest})")
    return "\n\n".join([BEGIN, *parts, END])


def rich_tables(experiment: Experiment, results: Results) -> list[Table]:
    tables = []
    for sheet in sheets(experiment, results):
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for i, label in enumerate(sheet.head):
            table.add_column(Text(label), header_style=MUTED, justify="left" if i == 0 else "right")
        for row in sheet.rows:
            table.add_row(Text(row[0], ACCENT), *map(Text, row[1:]))
        tables.append(table)
    return tables


def write_page(path: Path, experiment: Experiment, block: str) -> None:
    """Puts the block in the place of the one in the page; a page that is not there yet is made around it.

    Raises ConfigError for a page that has not one begin and one end, in this order, OSError.
    """
    if path.exists():
        text = path.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end or BEGIN in rest or END in before + after:
            raise ConfigError(f"{path}: expected the lines {BEGIN} and {END}, once each: the results go between them")
    else:
        before, after = f"# {experiment.question}\n\n{experiment.setting}\n\n", "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, f"{before}{block}{after}".encode())


def _which(experiment: Experiment, results: Results, seeds: Sequence[int]) -> str:
    """ "Seeds 1, 2, 3; of 12 runs 10 are done."."""
    text = f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    counts = [progress(experiment, arm, results, seeds) for arm in experiment.arms if arm.name in results]
    done, wanted = map(sum, zip(*counts, strict=True))
    return f"{text}; of {wanted} runs {done} {'is' if done == 1 else 'are'} done." if done < wanted else f"{text}."


def _markdown_table(sheet: Sheet) -> str:
    lines = [sheet.head, ["---"] * len(sheet.head), *sheet.rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _mean_cell(metric: Metric, values: Mapping[int, float]) -> str:
    """ "52.0 ± 1.0 %, [51.1, 53.0]", on two lines."""
    if not values:
        return NONE
    if undefined := sum(map(math.isnan, values.values())):
        return f"{NONE} in {undefined} of {len(values)}"
    of = estimate(list(values.values()))
    unit = " %" if metric.format.endswith("%") else ""
    return f"{_number(metric, of.mean)} ± {_number(metric, of.sd)}{unit}\n{_bounds(metric, of.interval)}"


def _difference_cell(metric: Metric, arm: Mapping[int, float], against: Mapping[int, float]) -> str:
    """ "+2.0 points, [+0.5, +3.4], p 0.031", on three lines."""
    of = difference(arm, against)
    if math.isnan(of.mean):
        return NONE
    unit = " points" if metric.format.endswith("%") else ""
    p = NONE if of.p is None else f"{of.p:.2g}"
    return f"{_number(metric, of.mean, '+')}{unit}\n{_bounds(metric, of.interval, '+')}\np {p}"


def _bounds(metric: Metric, interval: Interval | None, sign: str = "") -> str:
    return f"[{NONE}]" if interval is None else f"[{', '.join(_number(metric, end, sign) for end in interval)}]"


def _number(metric: Metric, value: float, sign: str = "") -> str:
    """Without its per cent sign: a difference of percentages is in points."""
    return NONE if math.isnan(value) else format(value, f"{sign}z{metric.format}").removesuffix("%")
