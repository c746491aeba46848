"""swarm-node eval: how good is a model on questions that no node trains on?"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.settings import load_config

if TYPE_CHECKING:  # imports torch
    from node.evaluate import FamilyResult

DESCRIPTION = """\
Samples answers to held-out questions and prints, per kind of task, pass@1 with its 95 %
interval and pass@k. The questions are the same every time and for everybody.
"""
EPILOG = """\
examples:
  swarm-node eval "$(swarm-node seed)"
  swarm-node eval runs/solo/checkpoints/step-100/model --config configs/solo.toml --samples 8
  swarm-node eval Qwen/Qwen3-0.6B --config configs/gpu.toml --tasks 200 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("dir", metavar="DIR", help="a model's directory, or its name on the hub")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="whose tasks and sampling (those of the seed model)"
    )
    parser.add_argument("--tasks", metavar="N", type=_positive, default=64, help="questions of each kind (64)")
    parser.add_argument("--samples", metavar="K", type=_positive, default=4, help="answers per question (4)")
    parser.add_argument("--json", action="store_true", help="as one JSON object, one entry per kind of task")


def main(arguments: argparse.Namespace) -> int:
    results = run(arguments)
    if arguments.json:
        print(json.dumps({family: dataclasses.asdict(result) for family, result in results.items()}))
    else:
        Console().print(render(results))
    return 0


def run(arguments: argparse.Namespace) -> dict[str, FamilyResult]:
    """By family. Raises ConfigError, PolicyError, or TaskError where a source has too few held-out questions."""
    config = None if arguments.config is None else load_config(arguments.config)
    from node.commands.evaluate_policy import evaluate_policy, seed_config  # torch: not for a config that is wrong

    return asyncio.run(evaluate_policy(arguments.dir, config or seed_config(), arguments.tasks, arguments.samples))


def render(results: Mapping[str, FamilyResult]) -> Table:
    """One row per family, and their mean where there are several."""
    k = max((result.samples for result in results.values()), default=0)
    table = Table("held out", "questions", "pass@1", "95 % interval", f"pass@{k}")
    for family, result in sorted(results.items()):
        low, high = result.interval
        one, several = f"{result.pass_at_1:.1%}", f"{result.pass_at_k:.1%}"
        table.add_row(Text(family), str(result.tasks), one, f"{low:.1%} to {high:.1%}", several)
    if len(results) > 1:
        asked = sum(result.tasks for result in results.values())
        one = f"{mean(result.pass_at_1 for result in results.values()):.1%}"
        several = f"{mean(result.pass_at_k for result in results.values()):.1%}"
        table.add_section()
        table.add_row("mean", str(asked), one, "", several)
    return table


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number
