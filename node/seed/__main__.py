"""python -m node.seed --strong spell_backward --seed 1: makes the model if need be; prints its directory last."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from node.seed.cache import seed_model
from node.seed.demonstrations import DEMO_FAMILIES
from swarm.errors import SwarmError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m node.seed", description="Make the built-in model.")
    parser.add_argument("--strong", choices=[family.name for family in DEMO_FAMILIES], help="the family to be good at")
    parser.add_argument("--seed", type=int, default=0, help="another one is another model (default: 0)")
    parser.add_argument("--cache-dir", type=Path, help="where models are kept (default: the user's cache directory)")
    args = parser.parse_args()
    try:
        path = seed_model(strong=args.strong, seed=args.seed, cache_dir=args.cache_dir, report=_to_stderr)
    except SwarmError as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
