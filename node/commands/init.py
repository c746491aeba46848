"""swarm-node init: a directory with an identity and a config, ready to run."""

from __future__ import annotations

import argparse
from pathlib import Path

from node.home import CONFIG, make_home

DESCRIPTION = """\
Makes a directory for a node: an identity and a config, in a swarm or for a swarm of your own.
What is there already stays as it is.
"""
EPILOG = """\
examples:
  swarm-node init runs/first
  swarm-node init runs/second --swarm reasoning.swarm.toml --name second
  swarm-node run runs/second/config.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("dir", metavar="DIR", type=Path, help="the node's data_dir")
    parser.add_argument("--swarm", metavar="FILE", type=Path, help="the swarm file of the swarm that it is for")
    parser.add_argument("--key-file", metavar="F", type=Path, help="holds the swarm's key, where it asks for one")
    parser.add_argument("--name", metavar="N", help="what others see (the directory's name)")


def main(arguments: argparse.Namespace) -> int:
    directory = arguments.dir
    name = arguments.name or directory.resolve().name
    for line in make_home(directory, name=name, swarm=arguments.swarm, key_file=arguments.key_file):
        print(line)
    print(f"next: look through {directory / CONFIG}, then swarm-node run {directory / CONFIG}")
    if arguments.swarm is None:
        print(f"or make a swarm of it: swarm-node swarm create {directory / CONFIG} --name N --out N.swarm.toml")
    return 0
