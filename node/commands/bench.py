"""swarm-node bench: experiments that compare ways to learn, run where they are missing, and reported."""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.errors import ConfigError

if TYPE_CHECKING:
    from node.lab.plan import Choice
    from node.lab.results import ResultStore

DESCRIPTION = """\
Runs the experiments, all of them or those that are named, and prints what came of them.
A run is one arm with one seed; its result is kept as a small file, and only what has no
result yet is run. EXPERIMENT is a name from --list, or a module of yours with an EXPERIMENT.
"""
EPILOG = """\
examples:
  swarm-node bench learn --list                          every question, and how many runs are done
  swarm-node bench learn mix --screen                    a first look: the screening seeds only
  swarm-node bench learn mix --arms '4+4:*' --seeds 3    some arms, the first three seeds
  swarm-node bench learn mix --seeds 4-5                 the fourth and the fifth seed
  swarm-node bench learn mix --report --write-docs       nothing is run; the page is written anew

Interrupted or not, what is finished is kept, and the same command goes on. Run twice at
the same time, the two share the work.
"""
RESULTS = Path("docs/experiments/results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Experiments and measurements of this program."
    kinds = parser.add_subparsers(title="what is measured", metavar="WHAT", required=True)
    learn = kinds.add_parser(
        "learn",
        help="how nodes learn: one algorithm, setting or swarm against another",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    learn.add_argument("experiments", metavar="EXPERIMENT", nargs="*", help="by name (default: all)")
    learn.add_argument("--list", action="store_true", help="show what there is, and run nothing")
    seeds = learn.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seeds",
        metavar="N[-M]",
        type=_seeds,
        default=slice(None),
        help="only the first N of the seeds that decide, or the N-th to M-th of them",
    )
    seeds.add_argument("--screen", action="store_true", help="the screening seeds instead of those that decide")
    learn.add_argument("--arms", metavar="GLOB", default="*", help="run these arms only ('4+4:*')")
    learn.add_argument(
        "--processes",
        metavar="N",
        type=_positive,
        default=_cores(),
        help="runs at a time (default %(default)s, the cores)",
    )
    learn.add_argument(
        "--results", metavar="DIR", type=Path, default=RESULTS, help="where results are kept (default %(default)s)"
    )
    learn.add_argument(
        "--records", metavar="DIR", type=Path, help="where the runs made now leave every step, as parquet (runs/bench)"
    )
    learn.add_argument("--report", action="store_true", help="run nothing: print what the results say")
    learn.add_argument(
        "--write-docs", action="store_true", help="write NAME.md and NAME.png beside the folder with the results"
    )


def main(arguments: argparse.Namespace) -> int:
    """Returns 0; 1 when a run failed. Raises ConfigError for an argument that is wrong, KeyboardInterrupt."""
    from node.lab.records import check_available
    from node.lab.results import ResultStore

    choices, store = _choices(arguments), ResultStore(arguments.results)
    if arguments.list:
        _list(choices, store)
        return 0
    failed = 0
    if not arguments.report:
        if arguments.records:
            check_available()
        failed = _run(choices, store, arguments.processes, arguments.records)
    for choice in choices:
        _report(choice, store)
        if arguments.write_docs:
            _write_docs(choice, store, arguments.results.parent)
    return 1 if failed else 0


def _choices(arguments: argparse.Namespace) -> list[Choice]:
    from node.lab.experiments import EXPERIMENTS, load
    from node.lab.plan import Choice

    choices = []
    for reference in dict.fromkeys(arguments.experiments or EXPERIMENTS):
        experiment = load(reference)
        arms = [arm for arm in experiment.arms if fnmatch.fnmatchcase(arm.name, arguments.arms)]
        seeds = experiment.screening_seeds if arguments.screen else experiment.seeds[arguments.seeds]
        choices.append(Choice(reference, experiment, arms, seeds))
    if choices and not any(choice.arms for choice in choices):
        names = ", ".join(dict.fromkeys(arm.name for choice in choices for arm in choice.experiment.arms))
        raise ConfigError(f"--arms {arguments.arms}: no arm is called so; there are {names}")
    return choices


def _list(choices: Sequence[Choice], store: ResultStore) -> None:
    from rich.console import Console
    from rich.text import Text

    from node.demo.style import ACCENT, MUTED
    from node.lab.report import collect, progress

    console = Console(highlight=False)
    for choice in choices:
        title = Text.assemble((choice.experiment.name, ACCENT), f"  {choice.experiment.question}")
        console.print(title, soft_wrap=True)
        results = collect(choice.experiment, store, choice.seeds)
        for arm in choice.arms:
            done, wanted = progress(choice.experiment, arm, results, choice.seeds)
            console.print(Text.assemble((f"  {f'{done}/{wanted}':>5}  ", MUTED), arm.name), soft_wrap=True)


def _run(choices: Sequence[Choice], store: ResultStore, processes: int, records: Path | None) -> int:
    """Makes the missing runs and returns how many failed."""
    from rich.console import Console
    from rich.live import Live

    from node.lab.live import Progress
    from node.lab.parallel import run_all
    from node.lab.plan import plan

    for directory in filter(None, (store.root, records)):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{directory} cannot be used for results: {error.strerror}") from error
    console, todo = Console(highlight=False), plan(choices, store)
    progress = Progress(todo, processes=processes, console=console)
    making = run_all(todo.missing, store, processes=processes, heard=progress.heard, records=records)
    live = Live(progress, console=console, refresh_per_second=2, transient=True)
    try:
        with live if console.is_terminal else nullcontext():
            asyncio.run(making)
    except KeyboardInterrupt:
        print(f"interrupted: {progress.line()}; what is finished is kept", file=sys.stderr)
        raise
    return progress.counts["failed"]


def _report(choice: Choice, store: ResultStore) -> None:
    """Of the chosen arms, and of the files that do not count."""
    from rich.console import Console
    from rich.text import Text

    from node.demo.style import ACCENT, BAD
    from node.lab.plan import plan
    from node.lab.report import LEGEND, collect, rich_tables

    console, experiment = Console(highlight=False), choice.experiment
    shown = {arm.name for arm in choice.arms}
    if not shown:
        return
    results = {arm: runs for arm, runs in collect(experiment, store, choice.seeds).items() if arm in shown}
    console.print(
        Text.assemble("\n", (f"{experiment.name}: {experiment.question}", ACCENT), f"\n{experiment.setting}\n")
    )
    for table in rich_tables(experiment, results):
        console.print(table, "")
    for key, why in plan([choice], store).outdated.items():
        console.print(Text(f"{store.path(key)} does not count: {why}", BAD), soft_wrap=True)
    console.print(Text(LEGEND))


def _write_docs(choice: Choice, store: ResultStore, directory: Path) -> None:
    """Of all arms, whichever were chosen to be run: a page says the same whoever writes it."""
    from node.lab.forest import columns_of, save_forest
    from node.lab.plot import save_plot
    from node.lab.report import collect, markdown, write_page

    experiment = choice.experiment
    results = collect(experiment, store, choice.seeds)
    differences = columns_of(experiment, results)
    page = directory / f"{experiment.name}.md"
    picture = f"{experiment.name}.png" if experiment.plots else ""
    forest = f"{experiment.name}-differences.png" if differences else ""
    write_page(page, experiment, markdown(experiment, results, choice.seeds, picture, forest))
    if picture:
        save_plot(directory / picture, experiment, results)
    if forest:
        save_forest(directory / forest, experiment, differences)
    print(page)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: it must be a whole number from 1 on")
    return int(text)


def _seeds(text: str) -> slice:
    """ "3": the first three; "4-5": the fourth and the fifth."""
    first, dash, last = text.partition("-")
    if not dash:
        return slice(0, _positive(first))
    chosen = slice(_positive(first) - 1, _positive(last))
    if chosen.stop <= chosen.start:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: there is no seed from {first} to {last}")
    return chosen


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
