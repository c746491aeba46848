"""What the exchange does in numbers. Everything is real but the model: two or more processes on loopback, each with a
libp2p daemon, journal, judge's process, verdict and pool.

    python -m tests.bench.exchange latency                  from complete to a peer's pool, by stage
    python -m tests.bench.exchange throughput               groups per second, to `receive()` and into the pool
    python -m tests.bench.exchange wire                     bytes per token, and what they are
    python -m tests.bench.exchange genrl --genrl-python P   beside GenRL's all_gather_object; P has gensyn-genrl==0.3.0
    python -m tests.bench.exchange slow-peer                what a node that is slowed ten times costs the others

Ratios are between things that were measured in one run. Each takes less than two minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence

import uvloop

from tests.bench import genrl, ids, latency, slow_peer, slow_virtual, throughput, wire
from tests.bench.statistics import Spread

TARGETS = {"median": 100.0, "p99": 500.0}
"""Of the latency, in ms."""


def report_latency(options: argparse.Namespace) -> None:
    stages = uvloop.run(latency.measure(options.groups, options.rate, options.rollouts, options.tokens))
    print(f"{options.groups} groups of {options.rollouts} x {options.tokens} tokens, {options.rate:g} a second")
    print("| ms | median | 99 % | most |\n|---|---|---|---|")
    for stage, found in stages.items():
        print(f"| {stage} | {found.median:.1f} | {found.p99:.1f} | {found.most:.1f} |")
    print(verdict(stages["all"]))


def verdict(found: Spread) -> str:
    """Whether the targets are met."""
    met = found.median <= TARGETS["median"] and found.p99 <= TARGETS["p99"]
    return f"target: median {TARGETS['median']:g} ms, 99 % {TARGETS['p99']:g} ms: {'met' if met else 'MISSED'}"


def report_throughput(options: argparse.Namespace) -> None:
    print("| groups/s | median | rounds | CPU ms a group: publisher | reader | daemons |\n|---|---|---|---|---|---|")
    rows = [("exchange", True), ("exchange", False)] * options.turns + [("pool", True)]
    for through, compression in rows:
        groups = options.groups if through == "exchange" else options.pool_groups
        rates = uvloop.run(
            throughput.measure(
                through=through,
                rounds=options.rounds,
                groups=groups,
                rollouts=options.rollouts,
                tokens=options.tokens,
                compression=compression,
            )
        )
        each = " ".join(f"{rate:.0f}" for rate in rates.groups_per_s)
        median = statistics.median(rates.groups_per_s)
        how = "" if compression else ", not compressed"
        spent = f"{rates.publisher_ms:.2f} | {rates.reader_ms:.2f} | {rates.daemons_ms:.2f}"
        print(
            f"| journal -> {through}, {rates.body_bytes} bytes each{how} | {median:.0f} | {each} | {spent} |",
            flush=True,
        )


def report_wire(options: argparse.Namespace) -> None:
    print(f"bytes per token, mean of {options.groups} groups of {options.tokens} tokens a rollout")
    print(wire.report(options.tokens, options.groups))
    print(f"\ntoken ids by text and byte lengths, {options.turns} turns of {options.tokens} tokens of a BPE")
    print(ids.report(options.turns, options.tokens))


def report_genrl(options: argparse.Namespace) -> None:
    if options.genrl_python is None:
        print("skipped: --genrl-python names the Python of an environment with gensyn-genrl==0.3.0")
        return
    found = uvloop.run(genrl.compare(options.genrl_python, groups=options.groups, rounds=options.rounds))
    ours = found.results[0]
    print(f"{found.kilobytes:.0f} kB per node and round, {options.rounds} rounds")
    print("| | failed rounds | ms a round, median | rollouts/s | slower than ours |\n|---|---|---|---|---|")
    for each in found.results:
        slower = f"{each.round_ms / ours.round_ms:.1f}"
        print(f"| {each.who} | {each.failed} | {each.round_ms:.0f} | {each.rollouts_per_s:.0f} | {slower} |")


def report_slow_peer(options: argparse.Namespace) -> None:
    for name, lost in slow_virtual.losses(options.steps).items():
        print(f"virtual time: {name} takes {lost:+.2%} longer beside a node that is {slow_virtual.SLOWER} times slower")
    windows = uvloop.run(slow_peer.real_windows(options.seconds, (False, True) * options.rounds))
    print("| third node | groups/s alone | groups/s of the others | ratio | groups/s they admit |")
    print("|---|---|---|---|---|")
    for each in windows:
        what = "slowed" if each.slowed else "as the others"
        print(f"| {what} | {each.alone:.2f} | {each.others:.2f} | {each.ratio:.4f} | {each.traded:.1f} |")
    for slowed in (False, True):
        ratios = [each.ratio for each in windows if each.slowed is slowed]
        what = "slowed" if slowed else "not slowed"
        print(f"{what}: median ratio {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(required=True, metavar="WHAT")

    def command(name: str, run: object) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.set_defaults(run=run)
        return added

    one = command("latency", report_latency)
    one.add_argument("--groups", type=int, default=400)
    one.add_argument("--rate", type=float, default=20.0, help="groups per second")
    one = command("throughput", report_throughput)
    one.add_argument("--groups", type=int, default=2000, help="per round")
    one.add_argument("--pool-groups", type=int, default=400, help="per round, through the verdict")
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--turns", type=int, default=1, help="each with and without compression, on the exchange")
    for each in ("latency", "throughput"):
        commands.choices[each].add_argument("--rollouts", type=int, default=8)
        commands.choices[each].add_argument("--tokens", type=int, default=256, help="per rollout")
    one = command("wire", report_wire)
    one.add_argument("--groups", type=int, default=16)
    one.add_argument("--turns", type=int, default=100, help="whose token ids are looked for")
    one.add_argument("--tokens", type=int, default=256, help="per rollout")
    one = command("genrl", report_genrl)
    one.add_argument("--genrl-python", help="of an environment with gensyn-genrl==0.3.0")
    one.add_argument("--groups", type=int, default=8, help="per node and round, 8 kB each")
    one.add_argument("--rounds", type=int, default=8)
    one = command("slow-peer", report_slow_peer)
    one.add_argument("--steps", type=int, default=30, help="in virtual time")
    one.add_argument("--rounds", type=int, default=2, help="in real time: windows with, and as many without")
    one.add_argument("--seconds", type=float, default=12.0, help="for each of them")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    options.run(options)


if __name__ == "__main__":
    main()
