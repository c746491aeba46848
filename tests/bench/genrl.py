"""Our way of sharing beside GenRL's `HivemindBackend.all_gather_object`: the same groups, two processes, loopback."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.child import Child, child
from tests.bench.rounds import ROLLOUTS, Round, make, play, player

SILENCE_S = 25.0
"""Without a word of theirs: a node whose DHT process has died waits for it for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    who: str
    failed: int
    """Rounds that did not bring all of the other node's groups."""
    round_ms: float
    """Median of those that did; NaN if none."""
    rollouts_per_s: float
    """That one node got from the other, in rounds that succeeded; 0 if none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    kilobytes: float
    """Per node and round."""
    results: tuple[Result, ...]


async def compare(genrl_python: str, *, groups: int, rounds: int) -> Comparison:
    """`groups` of 8 kB per node and round. Theirs twice: as published, and with Python's own event loop in the DHT's
    process instead of uvloop, under which that process dies of larger values."""
    plan = [groups] * rounds
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        played, bodies = await _ours(Path(directory), plan)
        theirs = {loop: await _theirs(Path(directory), bodies, genrl_python, loop) for loop in ("uvloop", "asyncio")}
    return Comparison(
        kilobytes=statistics.mean(sum(map(len, each)) for each in bodies) / 1000,
        results=(
            result("swarm-node", played, groups, rounds),
            result("GenRL", theirs["uvloop"], groups, rounds),
            result("GenRL, asyncio", theirs["asyncio"], groups, rounds),
        ),
    )


def result(who: str, found: Sequence[Round], groups: int, rounds: int) -> Result:
    """`found`: those rounds that anything was heard of."""
    times = [each.ended - each.began for each in found if each.groups == groups]
    return Result(
        who=who,
        failed=rounds - len(times),
        round_ms=1000 * statistics.median(times or [math.nan]),
        rollouts_per_s=ROLLOUTS * groups * len(times) / sum(times) if times else 0.0,
    )


async def _ours(directory: Path, plan: Sequence[int]) -> tuple[list[Round], list[list[bytes]]]:
    """What became of the rounds, and the groups that were published in them. A round more comes first: until they have
    found each other."""
    async with player(directory / "one") as (peer, arrivals):
        rounds = await make(peer, 1, [1, *plan])
        task = {"directory": str(directory / "two"), "peers": peer.exchange.addresses, "rounds": [1, *plan]}
        async with child("tests.bench.rounds", task) as other:
            await other.tell()
            await other.say({})
            played = [each async for each in play(peer, arrivals, rounds)]
    return played[1:], [[signed.body for signed in groups] for groups in rounds[1:]]


async def _theirs(directory: Path, bodies: Sequence[Sequence[bytes]], python: str, loop: str) -> list[Round]:
    files = []
    for number, groups in enumerate(bodies):
        files.append(directory / f"round-{number}.json")
        files[-1].write_text(json.dumps([body.hex() for body in groups]))
    task: dict[str, object] = {"peers": [], "rounds": list(map(str, files)), "loop": loop}
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(child("tests.bench.genrl_side", task, python))
        task["peers"] = (await first.tell())["addresses"]
        second = await stack.enter_async_context(child("tests.bench.genrl_side", task, python))
        await second.tell()
        await asyncio.gather(first.say({}), second.say({}))
        return await _told(first)


async def _told(first: Child) -> list[Round]:
    rounds: list[Round] = []
    with suppress(TimeoutError, RuntimeError):
        while answer := await first.tell(SILENCE_S):
            rounds.append(Round(**answer))
    return rounds
