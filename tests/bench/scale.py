"""What a node pays in a swarm of 10 and of 10,000, and how long a useful group takes to reach them.

    python -m tests.bench.scale --nodes 10 100 1000 10000 --minutes 10 --seed 0

One process, one core, virtual time: see `tests.bench.crowd`. A crowd of 10,000 takes a few minutes of CPU time for each
of its own, and 3 GB.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from dataclasses import fields

from tests.bench.crowd.crowd import Crowd
from tests.bench.crowd.report import Report, report
from tests.bench.crowd.world import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--minutes", type=float, default=10.0, help="of virtual time")
    parser.add_argument("--warm", type=float, default=3.0, help="minutes of them before anything is measured")
    parser.add_argument("--probe", type=float, default=20.0, help="seconds from one useful group to the next")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    gc.disable()  # It would go through millions of objects again and again, and hardly any garbage here is a circle.
    reports = []
    for nodes in arguments.nodes:
        begin = time.process_time()
        crowd = Crowd(
            Plan(
                nodes=nodes,
                seconds=60 * arguments.minutes,
                warm_s=60 * arguments.warm,
                probe_s=arguments.probe,
                seed=arguments.seed,
            )
        )
        crowd.live(lambda crowd, begin=begin: _tell(crowd, begin))
        reports.append(report(crowd))
    print(table(reports))


def _tell(crowd: Crowd, begin: float) -> None:
    """What is known so far: a crowd of 10,000 takes long."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    used = f"{time.process_time() - begin:.0f} s of CPU, at most {peak:.1f} GiB so far"
    print(f"{crowd.plan.nodes} nodes, {crowd.world.now:.0f} s: {used}", flush=True)
    print("\n".join(report(crowd).lines()), flush=True)


def table(reports: list[Report]) -> str:
    """Markdown: a row for each number, a column for each size."""
    rows = [[field.name, *(_text(getattr(it, field.name)) for it in reports)] for field in fields(Report)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " / ".join(map(_text, value))
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)


if __name__ == "__main__":
    main()
