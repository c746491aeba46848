"""swarm-node seed: the built-in model, made if it is not there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Makes the built-in model in seconds, or finds it where it was made before, and prints its
directory. `policy.model = "seed"` does the same by itself.
"""
EPILOG = """\
examples:
  swarm-node seed
  swarm-node seed --strong spell_backward --seed 1
  swarm-node run configs/solo.toml --set policy.model="$(swarm-node seed --seed 7)"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--strong", metavar="FAMILY", help="be good at this kind of task and poor at the others")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="another one is another model (0)")
    parser.add_argument("--cache-dir", metavar="DIR", type=Path, help="where models are kept (the user's cache)")


def main(arguments: argparse.Namespace) -> int:
    from node.seed.cache import seed_model  # torch

    print(seed_model(strong=arguments.strong, seed=arguments.seed, cache_dir=arguments.cache_dir, report=_to_stderr))
    return 0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
