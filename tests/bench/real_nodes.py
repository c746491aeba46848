"""Many real nodes on one machine: what they need, and how soon they know each other and have each other's groups.

    nice python -m tests.bench.real_nodes --nodes 32

Each is a process of its own with a libp2p daemon of its own and no learner (`tests.bench.light_node`); four start at
a time, and know the address of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from statistics import median

from tests.bench.children import Child, reported, reports, started
from tests.bench.light_words import Report, Task

KNOWN_S, DELIVERED_S = 120.0, 60.0
ROUNDS = 5
HEARTBEAT_S = 10.0
AT_ONCE = 4
"""Nodes that are being started."""


async def measure(nodes: int) -> list[tuple[str, str]]:
    """Rows of a table."""
    with tempfile.TemporaryDirectory() as directory:
        async with AsyncExitStack() as stack:
            starting = asyncio.Semaphore(AT_ONCE)

            async def start(number: int, *peers: str) -> Child:
                task = Task(
                    directory=f"{directory}/{number}",
                    listen="/ip4/127.0.0.1/tcp/0",
                    initial_peers=list(peers),
                    heartbeat_s=HEARTBEAT_S,
                    every_s=0.0,
                )
                async with starting:
                    return await stack.enter_async_context(started(task))

            first = await start(0)
            begin = time.monotonic()
            others = await asyncio.gather(*(start(number, *first.addresses) for number in range(1, nodes)))
            children = [first, *others]
            up_s = time.monotonic() - begin
            them = await reported(children, lambda them: all(len(it.peers) == nodes - 1 for it in them), KNOWN_S)
            known_s = time.monotonic() - begin
            known = [len(it.peers) / (nodes - 1) for it in them]
            rounds: list[list[float]] = []
            for round in range(1, ROUNDS + 1):
                for child in children:
                    child.publish(1)
                rounds.append(sorted(await _delivered(children, round)))
            last = await reports(children)
            await asyncio.gather(*(child.stop() for child in children))
    wanted = ROUNDS * nodes * (nodes - 1)
    came = sum(len(indices) for it in last for indices in it.got.values())
    load = os.getloadavg()[0]
    return [
        ("nodes", f"{nodes}"),
        ("load of the machine at the end", f"{load:.0f} on {os.cpu_count()} cores"),
        ("until a node is up, median (slowest)", f"{median(c.up_s for c in others):.1f} ({_most(others):.1f}) s"),
        ("until all are up", f"{up_s:.1f} s"),
        ("until all know all", f"{known_s:.1f} s" if min(known) == 1 else f"never: {min(known):.0%} at least"),
        ("memory of a node, median", f"{median(it.rss_mb for it in last):.0f} MB"),
        ("memory of its libp2p daemon, median", f"{median(it.daemon_mb for it in last):.0f} MB"),
        ("groups that came, of all that were made", f"{came} of {wanted}"),
        *(
            (f"round {number}: from made to received, 50 / 90 / 99 %", _quantiles(late))
            for number, late in enumerate(rounds, 1)
        ),
        ("came out of their origin's log twice", f"{sum(it.pulled_again for it in last)}"),
        ("relayed of what was there", f"{sum(it.relayed_again for it in last)}"),
    ]


async def _delivered(children: Sequence[Child], round: int) -> list[float]:
    """Seconds that each group of the round took; a report has those since the one before it."""
    seconds = list[float]()

    def all_have(them: list[Report]) -> bool:
        seconds.extend(late for it in them for late in it.latencies_s)
        return _all_have(them, round)

    await reported(children, all_have, DELIVERED_S)
    return seconds


def _all_have(them: list[Report], round: int) -> bool:
    return all(sum(map(len, it.got.values())) >= round * (len(them) - 1) for it in them)


def _most(children: list[Child]) -> float:
    return max(child.up_s for child in children)


def _quantiles(ordered: list[float]) -> str:
    if not ordered:
        return "nothing came"
    at = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.5, 0.9, 0.99))
    return " / ".join(f"{seconds:.2f}" for seconds in at) + f" s ({len(ordered)} groups)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=32)
    arguments = parser.parse_args()
    print("\n".join(f"| {name} | {value} |" for name, value in asyncio.run(measure(arguments.nodes))))


if __name__ == "__main__":
    main()
