"""swarm-node config: is this file right, and what does it amount to?"""

from __future__ import annotations

import argparse
from pathlib import Path

from node.joining import joining
from node.settings import load_config, task_specs
from swarm.tasks import make_source
from swarm.toml import toml_lines

DESCRIPTION = """\
Checks a config file and prints every setting, defaults included, as TOML that `run` takes.
"""
EPILOG = """\
examples:
  swarm-node config configs/solo.toml
  swarm-node config configs/solo.toml --set learner.lr=1e-4 > mine.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_config_arguments(parser)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file, such as configs/solo.toml")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a setting: learner.lr=1e-4, tasks.0.weight=2, exchange.type=none (may be repeated)",
    )


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    swarm = joining(config)
    # Refuses a dataset that does not exist, settings that it does not have, and what is not the swarm file's.
    swarm.agreed([make_source(spec) for spec in task_specs(swarm.config)])
    without = {"tasks"} if swarm.file else set()  # they are not this file's to say
    print("\n".join(toml_lines(config.model_dump(mode="json", exclude_none=True, exclude=without))))
    return 0
