"""swarm-node checkpoints: what a node has written down, and which of it is to stay."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from node.datadir import DataDirectory
from swarm.errors import CheckpointError

DESCRIPTION = """\
Shows the checkpoints of a node, which may be running. One that is pinned stays until
it is unpinned; of the others, the newest and the best do (table checkpoint of the config).
"""
EPILOG = """\
examples:
  swarm-node checkpoints runs/solo
  swarm-node checkpoints runs/solo --pin 150
  swarm-node checkpoints runs/solo --unpin 150
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("dir", metavar="DIR", type=Path, help="the node's data_dir")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--pin", metavar="STEP", type=int, help="keep the checkpoint of this step")
    what.add_argument("--unpin", metavar="STEP", type=int, help="let it go when its time comes")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def main(arguments: argparse.Namespace) -> int:
    from node.checkpoint import CheckpointStore  # torch

    store = CheckpointStore(DataDirectory(arguments.dir).checkpoints)
    if (step := arguments.pin if arguments.pin is not None else arguments.unpin) is not None:
        store.pin(step, arguments.pin is not None)
    entries = store.entries()
    if not entries:
        raise CheckpointError(f"there is no checkpoint in {store.directory}")
    if arguments.json:
        for entry in entries:
            score = entry.score.model_dump() if entry.score else None
            print(json.dumps({"step": entry.step, "path": str(entry.path), "score": score, "pinned": entry.pinned}))
        return 0
    table = Table("step", "how good", "pinned", "path", box=None)
    for entry in entries:
        how = f"{entry.score.metric} {entry.score.value:.3f} at step {entry.score.step}" if entry.score else "not known"
        table.add_row(str(entry.step), how, "yes" if entry.pinned else "", str(entry.path))
    Console().print(table)
    return 0
