"""Splits a swarm of real nodes in two, heals it, says what became of it (needs root and Linux's network namespaces).

    python -m tests.bench.partition --split 120

Two namespaces, each with some nodes, and one cable between them: a pair of virtual interfaces, which is down for as
long as the split lasts. Nodes of one half reach each other over the loopback device, whose address is the half's own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.children import Child, reported, reports, started
from tests.bench.light_words import Report, Task

HALVES = ("a", "b")
ADDRESSES = {"a": "10.77.1.1", "b": "10.77.2.1"}
MEETING_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Healed:
    """What a split came to."""

    before: list[Report]
    """When it began."""
    apart: list[Report]
    """When it ended."""
    merged: list[Report]
    merged_s: float
    """Until all had all others' groups of the time of the split; as long as was waited if they never had."""
    complete: bool


class Cable:
    """Between two network namespaces."""

    def __init__(self) -> None:
        tag = secrets.token_hex(2)
        self.spaces = {half: f"swarm-{tag}-{half}" for half in HALVES}
        self.ends = {half: f"sw{tag}{half}" for half in HALVES}

    def lay(self) -> None:
        for half in HALVES:
            _ip("netns", "add", self.spaces[half])
        _ip("link", "add", self.ends["a"], "type", "veth", "peer", "name", self.ends["b"])
        for half in HALVES:
            _ip("link", "set", self.ends[half], "netns", self.spaces[half])
            self._in(half, "link", "set", "lo", "up")
            self._in(half, "address", "add", f"{ADDRESSES[half]}/32", "dev", "lo")
        self.join()

    def join(self) -> None:
        for half in HALVES:
            self._in(half, "link", "set", self.ends[half], "up")
        for half, other in (HALVES, HALVES[::-1]):
            route = ("route", "replace", f"{ADDRESSES[other]}/32", "dev", self.ends[half], "src", ADDRESSES[half])
            self._in(half, *route)

    def cut(self) -> None:
        for half in HALVES:
            self._in(half, "link", "set", self.ends[half], "down")

    def remove(self) -> None:
        for space in self.spaces.values():
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)

    def inside(self, half: str) -> tuple[str, ...]:
        """What a command is run with to be in that half."""
        return ("ip", "netns", "exec", self.spaces[half])

    def _in(self, half: str, *command: str) -> None:
        _ip("-n", self.spaces[half], *command)


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True, text=True)


@contextmanager
def cable() -> Iterator[Cable]:
    """Raises OSError or CalledProcessError where there are no namespaces, or none for us."""
    it = Cable()
    try:
        it.lay()
        yield it
    finally:
        it.remove()


def unavailable() -> str:
    """Why this machine cannot do it; empty if it can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    try:
        with cable():
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {error}"


async def split(
    directory: Path, seconds: float, each: int = 2, every_s: float = 0.5, heartbeat_s: float = 2.0
) -> Healed:
    """`each`: nodes in a half. Every node makes a group `every_s` from the beginning to the end."""
    with cable() as between:
        async with AsyncExitStack() as stack:

            async def start(number: int, *peers: str) -> Child:
                half = HALVES[number % 2]
                task = Task(
                    directory=str(directory / f"node-{number}"),
                    listen=f"/ip4/{ADDRESSES[half]}/tcp/{4001 + number}",
                    initial_peers=list(peers),
                    heartbeat_s=heartbeat_s,
                    every_s=every_s,
                )
                return await stack.enter_async_context(started(task, *between.inside(half)))

            first = await start(0)
            others = (start(number, *first.addresses) for number in range(1, 2 * each))
            nodes = [first, *await asyncio.gather(*others)]
            before = await reported(nodes, lambda them: all(_heard_of(it, nodes) for it in them), MEETING_S)
            between.cut()
            await asyncio.sleep(seconds)
            apart = await reports(nodes)
            between.join()
            begin = asyncio.get_running_loop().time()
            merged = await reported(nodes, lambda them: _have(them, nodes, apart), MEETING_S)
            took = asyncio.get_running_loop().time() - begin
            return Healed(
                before=before, apart=apart, merged=merged, merged_s=took, complete=_have(merged, nodes, apart)
            )


def _heard_of(it: Report, nodes: Sequence[Child]) -> bool:
    """Whether it has groups of all others."""
    return len(it.peers) == len(nodes) - 1 == len(it.got)


def _have(them: Sequence[Report], nodes: Sequence[Child], apart: Sequence[Report]) -> bool:
    """Whether everybody knows everybody and has all that was made before the end of the split."""
    return all(
        len(it.peers) == len(nodes) - 1
        and all(
            set(it.got.get(other.peer, [])) >= set(range(min(it.got.get(other.peer, [1])), then.made + 1))
            for other, then in zip(nodes, apart, strict=True)
            if other is not node
        )
        for node, it in zip(nodes, them, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", type=float, default=120.0, help="seconds")
    parser.add_argument("--each", type=int, default=3, help="nodes in a half")
    arguments = parser.parse_args()
    if why := unavailable():
        raise SystemExit(why)
    with tempfile.TemporaryDirectory() as directory:
        healed = asyncio.run(split(Path(directory), arguments.split, arguments.each))
    print(f"| {2 * arguments.each} nodes, split for {arguments.split:g} s | |\n|---|---|")
    print(
        f"| all groups of all nodes everywhere | {f'{healed.merged_s:.1f} s after' if healed.complete else 'never'} |"
    )
    steps = [then.steps - first.steps for first, then in zip(healed.before, healed.apart, strict=True)]
    print(f"| steps of each node meanwhile | {min(steps)} to {max(steps)} |")
    print(f"| longest step | {max(it.longest_step_s for it in healed.merged):.1f} s |")
    print(f"| groups out of their origin's log twice | {sum(it.pulled_again for it in healed.merged)} |")
    print(f"| relayed of what was there | {sum(it.relayed_again for it in healed.merged)} |")


if __name__ == "__main__":
    main()
