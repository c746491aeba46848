"""One target under libFuzzer, in a process of its own, which ends when it has had enough inputs or found a defect.

    python -m tests.fuzz.guided TARGET INPUTS SECONDS SEED CORPUS_DIR FAILURES_PREFIX REPORT_FILE

What swarm/ consists of is instrumented when it is imported, so nothing of it is imported before. libFuzzer keeps what
reaches an edge that nothing has reached before, changes it further in its own way or in ours, and saves what fails. It
never gives the process back to Python: the report is written when the last input is done.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

STUCK_S = 60
"""Of real time, when even C hangs."""
RSS_MB = 2048


def main(name: str, most: int, seconds: float, number: int, corpus: Path, prefix: str, report: Path) -> None:
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["swarm"]):
        target: Target = import_module("tests.fuzz.targets").TARGETS[name]
    loop, reports, watches = (import_module(f"tests.fuzz.{module}") for module in ("loop", "report", "watch"))
    seeds = target.seeds()
    for i, seed in enumerate(seeds):
        (corpus / f"seed-{i}").write_bytes(seed)
    watch = watches.Watch(target)
    started = time.monotonic()
    gc.freeze()  # Nobody's input is to pay for a collection of what was imported.

    def one(data: bytes) -> None:
        enough = False
        try:
            watch(data)
            enough = watch.inputs >= most or time.monotonic() - started >= seconds
        except BaseException:
            reports.Report.of(watch, time.monotonic() - started).write(report)
            raise
        if enough:
            reports.Report.of(watch, time.monotonic() - started).write(report)
            os._exit(0)

    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, max_bytes)
        return loop.mutated(data, rng.choice(seeds), rng, max_bytes)

    flags = {
        "seed": number,
        "artifact_prefix": prefix,
        "max_len": target.max_bytes,
        "len_control": 0,
        "mutate_depth": 1,  # One call of ours is several changes.
        "timeout": STUCK_S,
        "rss_limit_mb": RSS_MB,
    }
    arguments = [sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items()), str(corpus)]
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    _, name, most, seconds, number, corpus, prefix, report = sys.argv
    main(name, int(most), float(seconds), int(number), Path(corpus), prefix, Path(report))
