"""A stand-in for the programs that the demo starts: real processes and real gRPC, but nothing is learned.

    python fake_swarm_node.py run CONFIG [--set KEY=VALUE ...]   like `swarm-node run`
    python fake_swarm_node.py eval DIR --json ...                like `swarm-node eval`
    python fake_swarm_node.py seed --strong FAMILY --seed N      like `python -m node.seed`
    python fake_swarm_node.py demo DIR [ARGUMENTS ...]           the real demo, of these programs

FAKE_<NAME> in the environment makes the node of that name misbehave: "crash" (after some steps), "deaf" (to being told
to stop, by gRPC or SIGTERM), each with a child process of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from node.config import NodeConfig
from node.datadir import DataDirectory
from node.rpc import RpcServer
from node.settings import load_config
from swarm.wire.identity import Identity
from swarm.wire.v1 import node_pb2

STEPS_PER_S = 100.0
CRASH_AT_STEP = 20
NAMES = ("alder", "birch", "cedar", "dogwood")
FAMILIES = ("spell_backward", "rotate_matrix")
GRANDCHILD = ["sleep", "602.5"]
PROGRAM = (sys.executable, str(Path(__file__)))


def peer_of(name: str) -> str:
    return Identity(hashlib.sha256(name.encode()).digest()).peer_id


def address_of(name: str) -> str:
    return f"/ip4/127.0.0.1/tcp/4001/p2p/{peer_of(name)}"


class FakeNode:
    def __init__(self, config: NodeConfig, behaviour: str) -> None:
        self.config = config
        self.deaf = behaviour == "deaf"
        self.started = time.monotonic()
        self.stopping = asyncio.Event()

    @property
    def steps(self) -> int:
        return min(self.config.max_steps, int(STEPS_PER_S * (time.monotonic() - self.started)))

    @property
    def state(self) -> node_pb2.NodeState:
        return node_pb2.NODE_STATE_STOPPING if self.stopping.is_set() else node_pb2.NODE_STATE_RUNNING

    def status(self) -> node_pb2.NodeStatus:
        name, steps = self.config.name, self.steps
        others = [other for other in NAMES if other != name]
        evaluated = steps // 25 * 25
        return node_pb2.NodeStatus(
            name=name,
            peer=peer_of(name),
            state=self.state,
            steps=steps,
            addresses=[address_of(name)],
            peers=len(others),
            admitted={peer_of(other): steps + 1 for other in others},
            refused={"stale": 2},
            counters={"own_groups": 4 * steps, "own_tokens": 100 * steps, "foreign_tokens": 10 * steps},
            metrics={"own_reward": 0.5, "own_staleness": 1.0},
            held_out={task.name: min(0.9, 0.2 + evaluated / 500) for task in self.config.tasks},
            held_out_step=evaluated,
        )

    def peers(self) -> Sequence[node_pb2.Peer]:
        return ()

    def verdicts(self, limit: int) -> Sequence[node_pb2.VerdictRecord]:
        return ()

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def checkpoint(self) -> tuple[str, int]:
        return "", self.steps

    def stop(self) -> None:
        if not self.deaf:
            self.stopping.set()


async def run(config_file: Path, overrides: Sequence[str]) -> None:
    config = load_config(config_file, overrides)
    behaviour = os.environ.get(f"FAKE_{config.name.upper()}", "")
    node = FakeNode(config, behaviour)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, node.stop)
    print(f"{config.name} starts", flush=True)
    if behaviour:
        subprocess.Popen(GRANDCHILD)  # noqa: ASYNC220 - a child that nobody waits for is the point
    data = DataDirectory(config.data_dir)
    async with RpcServer(config.rpc, node) as server:
        with data.lock(), data.serving(server.address):
            while not node.stopping.is_set():
                if behaviour == "crash" and node.steps >= CRASH_AT_STEP:
                    raise RuntimeError("the [bold]crash[/bold] that was asked for")
                await asyncio.sleep(0.02)
    (config.data_dir / "checkpoints" / f"step-{node.steps:08d}" / "model").mkdir(parents=True)


def evaluate(model: Path) -> None:
    """Trained models are better, and all the same."""
    value = 0.3 if model.name == "seed-model" else 0.6
    entry = {"pass_at_k": {"1": {"value": value, "interval": [value - 0.05, value + 0.05]}}, "tasks": 128}
    print(json.dumps({"families": {f"reasoning_gym/{family}": entry for family in FAMILIES}}))


def make_seed(root: Path) -> None:
    model = root / "seed-model"
    model.mkdir(exist_ok=True, parents=True)
    print("step 1, 0.1 s", file=sys.stderr)
    print(f"trained\n{model}")


def demo(root: Path, arguments: Sequence[str]) -> int:
    import argparse

    from node.demo import command, models
    from node.demo.plan import Family

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    os.environ["FAKE_SEEDS"] = str(root.parent / "seeds")
    return command.main(
        parser.parse_args(["--dir", str(root), *arguments]),
        families=[Family(name=name, config={}) for name in FAMILIES],
        programs=models.Programs(swarm_node=PROGRAM, seed=(*PROGRAM, "seed")),
    )


def main(words: Sequence[str]) -> int:
    match words:
        case ["run", config, *rest]:
            asyncio.run(run(Path(config), rest[1::2]))
        case ["eval", model, *_]:
            evaluate(Path(model))
        case ["seed", *_]:
            make_seed(Path(os.environ["FAKE_SEEDS"]))
        case ["demo", root, *rest]:
            return demo(Path(root), rest)
        case _:
            raise SystemExit(f"unknown words: {words}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
