"""swarm-node eval: how good is a model on questions that no node trains on?"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.config import TransformersEngine, VllmEngine
from node.joining import joining
from node.settings import load_config
from swarm.errors import ConfigError

if TYPE_CHECKING:  # imports torch
    from node.evaluate import Estimate, Report, Result

DESCRIPTION = """\
Samples answers to held-out questions and prints, per kind of task and over all:

  pass@k      that at least one of k answers is right; pass@1 is the share of right ones
  majority@k  that the most frequent one of k answers is right; ties by their expectation

each with its 95 % interval, for which every question counts as one observation, however
many answers it was given.

The questions are the same every time and for everybody, and no node ever trains on them:
a question is held out when the CRC-32 of its text is divisible by 8, every node leaves
those out of its training and refuses them from its peers. So nothing has to be split or
hidden, and a model that was trained in any swarm can be measured. What a model saw before
is not known: tasks made at random (type "arithmetic") cannot have been seen.
The digest that is printed is the same for two people who asked the same questions.
"""
EPILOG = """\
examples:
  swarm-node eval "$(swarm-node seed)"
  swarm-node eval runs/solo/checkpoints/step-100/model --config configs/solo.toml --samples 8
  swarm-node eval Qwen/Qwen3-0.6B --config configs/gpu.toml --tasks 200 --samples 64 --k 1,8,64 --json
"""
ENGINES = {"transformers": TransformersEngine(), "vllm": VllmEngine()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("dir", metavar="DIR", help="a model's directory, or its name on the hub")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="whose tasks, sampling and engine (those of the seed model)"
    )
    parser.add_argument("--tasks", metavar="N", type=_positive, default=64, help="questions of each kind (64)")
    parser.add_argument("--samples", metavar="K", type=_positive, default=4, help="answers per question (4)")
    parser.add_argument(
        "--k", metavar="K,K", type=_positive_list, help="for pass@k and majority@k (1, 2, 4, ... and all samples)"
    )
    parser.add_argument("--engine", choices=ENGINES, help="what samples (what the config says)")
    parser.add_argument("--json", action="store_true", help="all numbers, as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    report = run(arguments)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        console = Console()
        console.print(render(report))
        for line in notes(report):
            console.print(Text(line), soft_wrap=True)
    return 0


def run(arguments: argparse.Namespace) -> Report:
    """Raises ConfigError, PolicyError, EngineError, or TaskError where a source has too few held-out questions."""
    check_dir(arguments.dir)
    check_k(arguments.k, arguments.samples)
    config = None if arguments.config is None else joining(load_config(arguments.config)).config
    from node.commands.evaluate_policy import evaluate_policy, seed_config  # torch: not for a config that is wrong

    config = config or seed_config()
    if arguments.engine and arguments.engine != config.engine.type:  # else the config's own table of it
        config = config.model_copy(update={"engine": ENGINES[arguments.engine]})
    return asyncio.run(evaluate_policy(arguments.dir, config, arguments.tasks, arguments.samples, arguments.k))


def check_dir(model: str) -> None:
    """Raises ConfigError for what can only be a path, and is none."""
    if (Path(model).is_absolute() or model.startswith(".") or model.count("/") > 1) and not Path(model).is_dir():
        allowed = "a model's directory, or its name on the hub, such as Qwen/Qwen3-0.6B"
        raise ConfigError(f"DIR {model!r} is not allowed; there is no such directory: it must be {allowed}")


def check_k(ks: Collection[int] | None, samples: int) -> None:
    """Raises ConfigError for a k of more samples than there are."""
    if ks and max(ks) > samples:
        raise ConfigError(
            f"--k {max(ks)} is not allowed; it must be at most the number of answers, --samples {samples}"
        )


def render(report: Report) -> Table:
    """Of each family and, where there are several, of all: one row per k."""
    table = Table("held out", "k", "pass@k, %", "majority@k, %")
    for family, result in sorted(report.families.items()):
        _add_rows(table, family, result)
    if len(report.families) > 1:
        _add_rows(table, "mean", report.overall)
    return table


def notes(report: Report) -> Iterator[str]:
    """What is to be known of the numbers, a line each."""
    each = report.questions // len(report.families)
    yield f"{each} questions of each kind, {report.samples} answers to each; in brackets 95 % intervals"
    yield f"digest of the questions: {report.digest}"
    yield f"{report.model} ({report.fingerprint}), {report.engine}, temperature {report.sampling.temperature:g}"
    if report.overall.unscored:
        yield f"{report.overall.unscored} answers have no score (too long, or not to be scored) and count as wrong"


def _add_rows(table: Table, family: str, result: Result) -> None:
    for k, passed in result.pass_at_k.items():
        agreed = result.majority_at_k.get(k)
        table.add_row(Text(family if k == 1 else ""), str(k), _percent(passed), _percent(agreed) if agreed else "")
    table.add_section()


def _percent(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{100 * estimate.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be a whole number of at least 1")
    return int(text)


def _positive_list(text: str) -> list[int]:
    try:
        return [_positive(part.strip()) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        allowed = "whole numbers of at least 1 with commas between them, such as 1,4,16"
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be {allowed}") from None
