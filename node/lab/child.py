"""One run, in a process of its own: `python -m node.lab.child EXPERIMENT ARM SEED RESULTS_DIR [RECORDS_DIR]`.

The result is in its file when this ends with exit code 0; that of a run that failed is not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from node.lab.experiments import load
from node.lab.records import records_path, write_records
from node.lab.results import ResultStore


def main(words: Sequence[str]) -> None:
    reference, name, seed, results, *records = words
    experiment = load(reference)
    arm = experiment.arm(name)
    key = experiment.key(arm, int(seed))
    begin = time.perf_counter()
    outcome = arm.run(key.seed)
    wall_s = time.perf_counter() - begin
    experiment.check(outcome)
    for root in records:  # first: who finds a result does not look for its records
        write_records(records_path(Path(root), key), outcome.records)
    ResultStore(Path(results)).put(key, experiment.digest(arm), outcome, wall_s)


if __name__ == "__main__":
    main(sys.argv[1:])
