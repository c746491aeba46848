"""swarm-node demo: several nodes on this machine, learning from each other before your eyes.

Everything real: each node is a process of its own with its own model, talks libp2p and gRPC, and is judged on questions
that nobody trains on, before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from node.demo.plan import DemoOptions, Family

if TYPE_CHECKING:
    from node.demo.models import Programs

DESCRIPTION = """\
Starts several nodes on this machine, each taught another kind of task, and shows how they
learn from each other. Judges every model before and after on questions that no node trains
on, and writes a summary and a picture. Needs no GPU, no download and no configuration.
"""
EPILOG = """\
examples:
  swarm-node demo
  swarm-node demo --nodes 8 --minutes 10
  swarm-node demo --engine vllm --nodes 2
  swarm-node demo --steps 200 --compare --summary summary.json
  swarm-node demo --set foreign.type=sapo_plain --set pool.foreign_groups=4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = DemoOptions()
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--nodes", type=_positive, default=defaults.nodes, help="how many (default %(default)s)")
    parser.add_argument(
        "--steps", type=_positive, default=defaults.steps, help="of training, per node (default %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=defaults.minutes,
        help="for the swarm's run, if its steps are not made by then (default %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default=defaults.engine,
        help="that samples (default %(default)s; see swarm-node version)",
    )
    parser.add_argument("--dir", type=Path, help="where everything goes (default ./demo/<time>)")
    parser.add_argument("--summary", type=Path, help="where the summary goes as JSON (default DIR/summary.json)")
    parser.add_argument(
        "--compare", action="store_true", help="afterwards the same nodes again, alone, for as many steps"
    )
    parser.add_argument("--seed", type=_not_negative, default=defaults.seed, help="another run (default %(default)s)")
    parser.add_argument(
        "--keep", action="store_true", help="keep journals and old checkpoints, not only the newest models and logs"
    )
    parser.add_argument("--plain", action="store_true", help="lines of text instead of a live screen")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every node; may be repeated"
    )


def main(
    arguments: argparse.Namespace, *, families: Sequence[Family] | None = None, programs: Programs | None = None
) -> int:
    """`families` and `programs`: in place of what the built-in seed models are taught, and of what is installed.

    Returns 0; 1 when a node died; 128 + n after signal n (130: Ctrl-C). Raises ConfigError for an argument that is
    wrong and SwarmError when a model cannot be made or judged.
    """
    from rich.console import Console

    from node.demo.models import Programs
    from node.demo.run import Demo  # grpc, rich and the configuration: not for `--help`

    console = Console(highlight=False)
    demo = Demo(
        options=DemoOptions(
            nodes=arguments.nodes,
            steps=arguments.steps,
            minutes=arguments.minutes,
            seed=arguments.seed,
            engine=arguments.engine,
            overrides=tuple(arguments.set),
        ),
        families=families or demo_families(),
        root=arguments.dir or Path("demo") / time.strftime("%Y-%m-%d-%H%M%S"),
        summary_file=arguments.summary,
        compare=arguments.compare,
        keep=arguments.keep,
        plain=arguments.plain or not console.is_terminal,
        console=console,
        programs=programs or Programs(),
    )
    demo.check()
    try:
        # Not uvloop: it forks where CPython's own loop uses vfork, and gRPC's threads complain of each fork on stderr.
        return asyncio.run(demo.run())
    except asyncio.CancelledError:
        print(f"interrupted: everything is stopped; what there is lies in {demo.root}", file=sys.stderr)
        return 128 + (demo.interrupted_by or signal.SIGINT)


def demo_families() -> list[Family]:
    """What the built-in seed models are taught."""
    from node.seed.demonstrations import DEMO_FAMILIES  # imports the task libraries: not for `--help`

    return [Family(name=spec.name, type=spec.type, config=json.loads(spec.config)) for spec in DEMO_FAMILIES]


def _positive(text: str) -> int:
    if (value := _not_negative(text)) == 0:
        raise argparse.ArgumentTypeError("0 is not allowed: it must be a whole number from 1 on")
    return value


def _not_negative(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: it must be a whole number, not negative")
    return int(text)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: it must be a number of minutes above 0")
    return value
