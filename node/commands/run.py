"""swarm-node run: one node, until it is stopped."""

from __future__ import annotations

import argparse

from node import logs
from node.commands.config import add_config_arguments
from node.settings import load_config

DESCRIPTION = """\
Runs a node in the foreground. SIGTERM or Ctrl-C writes a checkpoint and ends it; the next
start in the same data_dir goes on from there.
"""
EPILOG = """\
examples:
  swarm-node run configs/solo.toml
  swarm-node run configs/solo.toml --set learner.lr=1e-4 --set threads=2
  swarm-node run configs/local.toml --set name=second --set data_dir=runs/second
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_config_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    logs.set_up(config.log)
    from node import daemon  # torch and hivemind: not for a config that is wrong

    return daemon.run(config)
