"""Is anybody idle? A real node, alone: the shares of wall time in which its learner and its generator work.

    python -m tests.bench.overlap                              the built-in model, in this process, for 120 s
    python -m tests.bench.overlap --seconds 600 --ahead
    python -m tests.bench.overlap --set engine.type=vllm --set policy.model=DIR

Learner and generator have a thread each, with one thread of torch (`threads = 1`): on two cores, one core each. Which
of the two is the slower one depends on the rollouts and how many of them are worth a forward pass, which changes as the
policy learns. Shares are of the last `--seconds`, a window that begins after the first steps.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from node.config import NodeConfig
from node.daemon import open_node
from node.engine.policy import prepare_process
from node.settings import load_config
from node.time_account import SAMPLING, WORKING

SOLO = Path(__file__).parents[2] / "configs" / "solo.toml"
WARM_STEPS = 3


async def measure(config: NodeConfig, seconds: float) -> None:
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        node = await open_node(config, stack, stopping)
        running = asyncio.create_task(node.run())
        await node.learning.reached(WARM_STEPS)
        times = node.learning.times
        times.learner.forget()
        times.generator.forget()
        steps, began = node.learning.steps, time.perf_counter()
        await asyncio.sleep(seconds)
        wall, made = time.perf_counter() - began, node.learning.steps - steps
        learner, generator = times.learner.shares(), times.generator.shares()
        metrics = dict(node.ledger.metrics)
        stopping.set()
        await running
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{made} steps in {wall:.0f} s; load average {load}; {os.cpu_count()} cores")
    print(f"learner    {_shown(learner)}")
    print(f"generator  {_shown(generator)}")
    print(f"busy       learner {learner.get(WORKING, 0):.1%}, generator {generator.get(SAMPLING, 0):.1%}")
    print(f"last step  {metrics['step_s']:.2f} s, of which prepared in {metrics['prepare_s']:.3f} s")


def _shown(shares: Mapping[str, float]) -> str:
    return "   ".join(f"{name} {share:.1%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="at most 290")
    parser.add_argument("--groups", type=int, default=32, help="own groups a step (pool.own_groups)")
    parser.add_argument("--ahead", action="store_true", help="learner.draw_ahead")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        overrides = [
            f"data_dir={directory}",
            "threads=1",
            "eval.every_steps=0",
            f"pool.own_groups={arguments.groups}",
            f"pool.own_capacity={2 * arguments.groups}",
            f"learner.draw_ahead={str(arguments.ahead).lower()}",
        ]
        config = load_config(SOLO, [*overrides, *arguments.overrides])
        prepare_process(config.threads)
        uvloop.run(measure(config, arguments.seconds))


if __name__ == "__main__":
    main()
