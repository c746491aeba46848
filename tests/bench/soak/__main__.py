"""An hour of two real daemons that learn from each other while strangers come and go: does anything grow?

    nice -n 5 python -m tests.bench.soak --minutes 60 --out soak.jsonl --plot docs/soak.png
    python -m tests.bench.soak --read soak.jsonl --plot docs/soak.png

Each daemon is `swarm-node run` with a small model; guests (`tests.bench.peer`: a real exchange, groups that are valid)
join, send, receive and leave, one after the other. Every few seconds each daemon's processes are measured from outside
and its status is asked. The first quarter of the time is for tables and caches to fill up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from node.loops import gather
from node.operator_client import NodeClient, discover
from swarm.errors import NetworkError, SwarmError
from swarm.wire.codec import seal
from tests.bench.peer import SPEC, Parts, open_peer
from tests.bench.soak.figures import drawn, table
from tests.bench.soak.samples import Sample, measured
from tests.policies import save_tiny_policy

ROOT = Path(__file__).parents[3]
UP_S, STOP_S = 300.0, 60.0
PERIOD_S = 10.0
"""A daemon works for a part of each such period and is paused for the rest."""
GUEST_S, GUEST_GROUPS_PER_S = 30.0, 2.0

SETTINGS = """\
name = "{name}"
data_dir = "{directory}"
threads = 1
policy.model = "{model}"
swarm.name = "bench"
sampler = {{ group_size = 2, concurrency = 8, max_new_tokens = 32 }}
learner = {{ lr = 1e-5, truncated = "scored" }}
pool = {{ own_groups = 8, foreign_groups = 8, own_capacity = 16 }}
tracker.max_prompts = 2000
journal.max_groups = 1500
checkpoint.every_steps = 20
eval = {{ every_steps = 100, tasks_per_family = 8 }}
exchange = {{ type = "p2p", listen = ["/ip4/127.0.0.1/tcp/0"], initial_peers = {peers}, heartbeat_s = 5.0 }}
[[tasks]]
type = "{task_type}"
name = "{task_name}"
"""


class Daemon:
    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self.process, self.directory = process, directory

    async def addresses(self) -> list[str]:
        """Once it has some."""
        async with asyncio.timeout(UP_S):
            while True:
                with suppress(NetworkError):
                    async with NodeClient(discover(self.directory)) as client:
                        if found := list((await client.status()).addresses):
                            return found
                if self.process.returncode is not None:
                    raise SystemExit(f"{self.directory.name} ended: see {self.directory}.log")
                await asyncio.sleep(0.5)

    async def pace(self, duty: float, offset_s: float) -> None:
        """Works for `duty` of each period."""
        await asyncio.sleep(offset_s)
        while True:
            for resume, seconds in ((True, duty), (False, 1.0 - duty)):
                with suppress(NetworkError):
                    async with NodeClient(discover(self.directory)) as client:
                        await (client.resume() if resume else client.pause())
                await asyncio.sleep(seconds * PERIOD_S)

    async def sample(self, elapsed_s: float) -> Sample | None:
        """None where it does not answer."""
        with suppress(NetworkError):
            async with NodeClient(discover(self.directory)) as client:
                return await asyncio.to_thread(
                    measured, self.directory, self.process.pid, elapsed_s, await client.status()
                )
        return None


@asynccontextmanager
async def daemon(root: Path, name: str, model: Path, peers: list[str]) -> AsyncIterator[Daemon]:
    directory, config = root / name, root / f"{name}.toml"
    config.write_text(
        SETTINGS.format(
            name=name,
            directory=directory,
            model=model,
            peers=json.dumps(peers),
            task_type=SPEC.type,
            task_name=SPEC.name,
        )
    )
    with (root / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "node.cli", "run", str(config), stdout=log, stderr=log, cwd=ROOT
        )
    try:
        yield Daemon(process, directory)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        print(f"{name} ended with {process.returncode}", flush=True)


async def guests(root: Path, addresses: list[str], rest_s: float) -> None:
    """One after the other, for ever. One that this machine is too busy to start is no fault of the daemons'."""
    for number in range(1 << 30):
        try:
            await visit(root / f"guest-{number}", addresses, number)
        except SwarmError as error:
            print(f"guest {number}: {error}", flush=True)
        await asyncio.sleep(rest_s)


async def visit(directory: Path, addresses: list[str], number: int) -> None:
    rng = random.Random(number)
    async with open_peer(directory, *addresses, parts=Parts(max_groups=200)) as guest:
        await guest.exchange.announce(guest.announcement(0))
        gathering = asyncio.create_task(gather(guest.exchange, guest.intake, guest.journal, guest.pool))
        with suppress(TimeoutError):
            async with asyncio.timeout(GUEST_S):
                async for ref in guest.refs(seed=number):
                    signed = seal(guest.group(rng, ref, rollouts=4, tokens=64), guest.identity)
                    await guest.journal.append(signed, [None] * 4, own=True)
                    await asyncio.sleep(1.0 / GUEST_GROUPS_PER_S)
        gathering.cancel()
        await asyncio.wait({gathering})


async def soak(arguments: argparse.Namespace, root: Path) -> None:
    model = save_tiny_policy(root / "model")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(daemon(root, "first", model, []))
        known = await first.addresses()
        second = await stack.enter_async_context(daemon(root, "second", model, known))
        known += await second.addresses()
        began = time.monotonic()
        beside = [
            asyncio.create_task(guests(root, known, arguments.rest)),
            asyncio.create_task(first.pace(arguments.duty, 0.0)),
            asyncio.create_task(second.pace(arguments.duty, PERIOD_S / 2)),
        ]
        try:
            with arguments.out.open("w") as out:
                while (elapsed := time.monotonic() - began) < arguments.minutes * 60:
                    for one in (first, second):
                        if sample := await one.sample(elapsed):
                            out.write(json.dumps(sample) + "\n")
                    out.flush()
                    for task in beside:
                        if task.done():
                            task.result()
                    await asyncio.sleep(arguments.every)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)


def read(path: Path) -> Iterator[Sample]:
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--rest", type=float, default=10.0, help="seconds between two guests")
    parser.add_argument("--duty", type=float, default=0.5, help="share of the time that the daemons work")
    parser.add_argument("--out", type=Path, default=Path("soak.jsonl"), help="where the samples go")
    parser.add_argument("--plot", type=Path, help="a picture of them (PNG)")
    parser.add_argument("--read", type=Path, help="samples of an earlier run, instead of a new one")
    arguments = parser.parse_args()
    if arguments.read is None:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(soak(arguments, Path(directory)))
    samples = list(read(arguments.read or arguments.out))
    rows, flat = table(samples)
    print(f"load of the machine: {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    print("\n".join(rows))
    if arguments.plot:
        drawn(samples, arguments.plot)
    sys.exit(0 if flat else 1)


if __name__ == "__main__":
    main()
