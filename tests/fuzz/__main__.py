"""Runs targets one after the other and says what came of it: docs/fuzzing.md.

python -m tests.fuzz                                     all targets, 100,000 inputs each
python -m tests.fuzz group record --inputs 1000000       some of them, for longer
python -m tests.fuzz --seconds 60 --corpus runs/fuzz     a minute each, going on from an earlier run
python -m tests.fuzz group --replay FILE                 one input, as it was saved
"""

from __future__ import annotations

import argparse
import gc
import re
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.loop import fuzz
from tests.fuzz.report import HEADER, Report
from tests.fuzz.seeds import bombs
from tests.fuzz.targets import LIMITS, TARGETS, Target
from tests.fuzz.watch import DefectError, Watch

INPUTS = 100_000
_EDGES = re.compile(r"\bcov: (\d+)")
_TAIL_LINES = 40
_REPAIR_BYTES = 1024
"""Room for what signed-verdict puts behind a body."""


def main() -> None:
    arguments = _parser().parse_args()
    targets = [TARGETS[name] for name in arguments.target or TARGETS]
    if arguments.bombs:
        _bombs()
        return
    if arguments.replay is not None:
        for target in targets:
            _replay(target, arguments.replay)
        return
    folder = arguments.corpus or Path(tempfile.mkdtemp(prefix="fuzz-"))
    (folder / "failures").mkdir(parents=True, exist_ok=True)
    print(f"{_ENGINES[arguments.engine]}; corpus and failures in {folder}\n\n{HEADER}", flush=True)
    reports: list[Report] = []
    for target in targets:
        if arguments.engine == "guided":
            report = _guided(target, arguments.seed, arguments.inputs, arguments.seconds, folder)
        else:
            report = fuzz(target, arguments.seed, arguments.inputs, arguments.seconds, folder / "failures")
        reports.append(report)
        print(report.line(), flush=True)
        if report.defect:
            print(report.defect, flush=True)
    defects = sum(bool(report.defect) for report in reports)
    print(f"\n{sum(report.inputs for report in reports)} inputs, {defects} targets with a defect")
    raise SystemExit(1 if defects else 0)


_ENGINES = {"guided": "guided by coverage (atheris)", "blind": "blind: mutations of the seeds, no coverage"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Hostile bytes for what reads bytes.")
    parser.add_argument("target", nargs="*", choices=[[], *TARGETS], help="which; all if none is named")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="per target (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="per target, at most")
    parser.add_argument("--corpus", type=Path, help="directory to keep what was found, and to go on from")
    parser.add_argument("--seed", type=int, default=1, help="another one, other inputs (default: %(default)s)")
    parser.add_argument(
        "--engine",
        choices=_ENGINES,
        default="guided" if find_spec("atheris") else "blind",
        help="guided needs atheris, which pip install '.[fuzz]' brings (default: %(default)s)",
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run the targets on this one input")
    parser.add_argument("--bombs", action="store_true", help="run the groups that cost most")
    return parser


def _replay(target: Target, path: Path) -> None:
    watch = Watch(target)
    watch(path.read_bytes())
    print(f"{HEADER}\n{Report.of(watch, 0).line()}")


def _bombs() -> None:
    """The groups that cost most, of the size that a node takes by default."""
    print(f"{'':26} {'':15} slowest      traced  outcome")
    for what, body in bombs(LIMITS.max_group_bytes - _REPAIR_BYTES).items():
        for target in (TARGETS["group"], TARGETS["signed-verdict"]):
            watch = Watch(target)
            try:
                outcome = watch(body)
            except DefectError as error:
                outcome = str(error)
            spent = f"{watch.slowest_s * 1e3:5.1f} ms {watch.traced_bytes / 1e6:8.2f} MB"
            print(f"{what:26} {target.name:15} {spent}  {outcome}")


def _guided(target: Target, seed: int, inputs: int, seconds: float, folder: Path) -> Report:
    """In a process of its own (guided.py): libFuzzer ends the process that it runs in."""
    corpus, written = folder / target.name, folder / f"{target.name}.json"
    corpus.mkdir(exist_ok=True)
    written.unlink(missing_ok=True)
    prefix = folder / "failures" / f"{target.name}-"
    command = [sys.executable, "-m", "tests.fuzz.guided", target.name, inputs, seconds, seed, corpus, prefix, written]
    edges, tail = 0, deque[str](maxlen=_TAIL_LINES)
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line)
            edges = max(edges, *map(int, _EDGES.findall(line)), 0)
    defect = "".join(tail) if process.returncode else ""
    if not written.exists():
        raise SystemExit(f"{target.name}: ended without a report\n{defect}")
    return replace(Report.read(written), edges=edges, defect=defect)


if __name__ == "__main__":
    gc.freeze()  # Nobody's input is to pay for a collection of what was imported.
    main()
