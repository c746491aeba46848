"""swarm-node join: into a swarm with nothing but its file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from node import logs
from node.home import CONFIG, default_directory, make_home
from node.joining import joining
from node.settings import load_config
from swarm.file import read_swarm_file

DESCRIPTION = """\
Joins a swarm: makes a directory with identity and config if there is none, and runs the node in
the foreground. The same command goes on where it stopped. `swarm-node swarm show FILE` says
beforehand what joining means.
"""
EPILOG = """\
examples:
  swarm-node join reasoning.swarm.toml
  swarm-node join reasoning.swarm.toml --key-file reasoning.key --data-dir runs/second
  swarm-node join reasoning.swarm.toml --set policy.model=Qwen/Qwen3-0.6B --set learner.lr=1e-6
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("file", metavar="FILE", type=Path, help="a swarm file")
    parser.add_argument("--data-dir", metavar="D", type=Path, help="the node's directory (runs/NAME-ID of the swarm)")
    parser.add_argument("--key-file", metavar="F", type=Path, help="holds the swarm's key, where it asks for one")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a setting for this run: name=second, threads=2 (may be repeated)",
    )


def main(arguments: argparse.Namespace) -> int:
    directory = arguments.data_dir or default_directory(read_swarm_file(arguments.file))
    name = directory.resolve().name
    for line in make_home(directory, name=name, swarm=arguments.file, key_file=arguments.key_file):
        print(line)
    overrides = list(arguments.set)
    if arguments.key_file is not None:
        overrides.append(f"swarm.key_file={json.dumps(str(arguments.key_file))}")
    config = load_config(directory / CONFIG, overrides)
    joining(config)  # what is wrong with it is said before anything heavy is loaded
    logs.set_up(config.log)
    from node import daemon  # torch and hivemind: not for a config that is wrong

    return daemon.run(config)
