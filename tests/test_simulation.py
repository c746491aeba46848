"""Swarms of real nodes in virtual time: they trade, they learn, and they do the same again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from node.config import NodeConfig
from node.engine.base import Completion, Weights
from node.lab.member import Member, NodeRecord
from node.lab.pace import Pace, PacedGenerator
from node.lab.simulation import Setup, simulate
from node.lab.summary import outcome_of
from swarm.net import virtual_time
from swarm.types import FinishReason, PolicyVersion, SamplingParams, VersionSpan
from tests.policies import save_tiny_policy

PARAMS = SamplingParams(max_new_tokens=4)
PROMPT = np.array([1, 2], dtype=np.int32)


def config(
    directory: Path, name: str, *, steps: int = 3, foreign: int = 2, lag_bound: int = 8, capacity: int = 256
) -> NodeConfig:
    return NodeConfig.model_validate(
        {
            "name": name,
            "max_steps": steps,
            "policy": {"model": str(directory)},
            "tasks": [{"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}],
            "sampler": {"group_size": 4, "max_new_tokens": 4, "concurrency": 2},
            "learner": {"lr": 1e-2, "warmup_steps": 1, "truncated": "scored"},
            "pool": {
                "own_groups": 2,
                "foreign_groups": foreign,
                "own_capacity": 2,
                "foreign_capacity": capacity,
                "max_lag": lag_bound,
            },
        }
    )


def swarm(tmp_path: Path, *, paces: tuple[Pace, ...] = (Pace(), Pace(rollout_s=2.0)), **changes: int) -> Setup:
    members = [
        Member(
            config=config(save_tiny_policy(tmp_path / f"model-{i}", seed=i), f"node-{i}", **changes),
            pace=pace,
        )
        for i, pace in enumerate(paces)
    ]
    return Setup(members=members, exam_every=2, exam_tasks=4, exam_samples=1)


def curves(record: NodeRecord) -> list[dict[str, float]]:
    """What was learned, without how long it really took."""
    clocked = ("step_s", "prepare_s", "learner_tokens_per_s")
    return [{name: value for name, value in step.items() if name not in clocked} for step in record.steps]


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path: Path):
    setup = swarm(tmp_path)
    first, again, other = simulate(setup, 1), simulate(setup, 1), simulate(setup, 2)
    assert [curves(node) for node in first.nodes] == [curves(node) for node in again.nodes]
    assert [node.exams for node in first.nodes] == [node.exams for node in again.nodes]
    assert [curves(node) for node in first.nodes] != [curves(node) for node in other.nodes]


ONE_RUN = """
import sys, pathlib
from tests.test_simulation import crowded, curves, simulate
print([curves(node) for node in simulate(crowded(pathlib.Path(sys.argv[1])), 1).nodes])
"""


def crowded(tmp_path: Path) -> Setup:
    """Pools have room for fewer groups than arrive, of several peers that are equally fast."""
    return swarm(tmp_path, paces=(Pace(rollout_s=4.0), *[Pace()] * 4), steps=6, capacity=8)


def test_the_same_seed_gives_the_same_run_in_every_process(tmp_path: Path):
    """Hashes of texts differ from process to process, and so does the order in which a set is walked through."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_RUN, tmp_path / f"{seed}"],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    runs = [process.communicate(timeout=120)[0] for process in processes]
    assert "own_reward" in runs[0]
    assert len(set(runs)) == 1


def test_every_node_makes_its_steps_and_trades(tmp_path: Path):
    run = simulate(swarm(tmp_path, steps=6), 0)
    assert [[step["step"] for step in node.steps] for node in run.nodes] == [[1, 2, 3, 4, 5, 6]] * 2
    assert all(node.counters["foreign_groups_trained"] > 0 for node in run.nodes)
    assert [[exam.step for exam in node.exams] for node in run.nodes] == [[0, 2, 4, 6]] * 2


def test_virtual_time_is_what_the_paces_make_of_it(tmp_path: Path):
    setup = swarm(tmp_path, paces=(Pace(rollout_s=10.0, step_s=1.0), Pace(rollout_s=1.0, step_s=1.0, start_s=500.0)))
    slow, late = simulate(setup, 0).nodes
    # the next batch is sampled while a step is made, and the first one is not
    assert [step["time"] for step in slow.steps] == pytest.approx([11, 21, 31], abs=0.1)
    assert late.steps[0]["time"] == pytest.approx(502, abs=0.1)


def test_with_a_lag_every_batch_is_exactly_so_old(tmp_path: Path):
    model = save_tiny_policy(tmp_path / "model")
    for lag in (0, 3):
        member = Member(config=config(model, "node", steps=8, foreign=0), pace=Pace(), lag=lag)
        (node,) = simulate(Setup(members=[member], exam_tasks=2), 0).nodes
        assert [step["own_staleness"] for step in node.steps] == [min(step, lag) for step in range(8)]


def test_a_summary_counts_every_node_alike(tmp_path: Path):
    run = simulate(swarm(tmp_path, steps=4), 0)
    outcome = outcome_of(run)
    finals = [np.mean([exam.rates["plain"] for exam in node.exams[-3:]]) for node in run.nodes]
    assert outcome.summary["final"] == pytest.approx(np.mean(finals))
    assert outcome.summary["gain"] == pytest.approx(outcome.summary["final"] - outcome.summary["start"])
    assert [x for x, _ in outcome.curves["pass"]] == [0, 2, 4]
    assert len(outcome.records) == 8
    # 4 steps of 2 groups of 4 each, and what is under way or waits at the end
    assert 32 <= outcome.summary["rollouts"] <= 64


class Stub:
    """An engine that answers at once with the version that it has loaded."""

    max_length, in_flight = 100, 8

    def __init__(self) -> None:
        self.version = PolicyVersion(0)

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        one = Completion(
            ids=np.zeros(1, dtype=np.int32),
            logprobs=np.zeros(1, dtype=np.float32),
            versions=(VersionSpan(version=self.version, length=1),),
            finish=FinishReason.LENGTH,
        )
        return [one] * n

    async def load(self, weights: Weights) -> None:
        self.version = weights.version

    def make_room(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def gauges(self) -> dict[str, float]:
        return {}


def paced(pace: Pace, lag: int | None = None) -> PacedGenerator:
    return PacedGenerator(Stub(), pace, np.random.default_rng(0), lambda: None, lag=lag)


def test_a_group_takes_as_long_as_its_slowest_rollout():
    async def seconds(n: int) -> float:
        generator, loop = paced(Pace(rollout_s=2.0, spread=1.0)), asyncio.get_running_loop()
        begin = loop.time()
        await generator.sample(PROMPT, n, PARAMS)
        return loop.time() - begin

    noise = np.exp(np.random.default_rng(0).standard_normal(8))
    assert virtual_time.run(seconds(8)) == pytest.approx(2.0 * noise.max())
    assert virtual_time.run(seconds(1)) == pytest.approx(2.0 * noise[0])


def test_a_request_waits_for_the_step_that_its_lag_names():
    async def main() -> tuple[float, int]:
        generator, loop = paced(Pace(rollout_s=0.0), lag=1), asyncio.get_running_loop()

        async def learner() -> None:
            for version in (1, 2, 3):
                await asyncio.sleep(10)
                await generator.load(Weights(version=PolicyVersion(version), tensors={}))

        learning = asyncio.create_task(learner())
        for _ in range(2):  # of batches 0 and 1: weights of the start
            await generator.sample(PROMPT, 1, PARAMS)
        assert loop.time() == 0
        (completion,) = await generator.sample(PROMPT, 1, PARAMS)
        at = loop.time()
        await learning
        return at, completion.versions[0].version

    assert virtual_time.run(main()) == (10, 1)


def test_a_rollout_is_of_the_weights_it_was_asked_under_however_late_it_is_sampled():
    async def main() -> list[tuple[float, int]]:
        generator, loop = paced(Pace(rollout_s=10.0)), asyncio.get_running_loop()

        async def ask() -> tuple[float, int]:
            (completion,) = await generator.sample(PROMPT, 1, PARAMS)
            return loop.time(), completion.versions[0].version

        early = asyncio.create_task(ask())
        await asyncio.sleep(4)
        await generator.load(Weights(version=PolicyVersion(1), tensors={}))
        late = asyncio.create_task(ask())
        return [await early, await late]

    assert virtual_time.run(main()) == [(10, 0), (14, 1)]


def test_requests_that_wait_together_are_sampled_together():
    class Counting(Stub):
        def __init__(self) -> None:
            super().__init__()
            self.asked_at: list[float] = []

        async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
            self.asked_at.append(asyncio.get_running_loop().time())
            return await super().sample(prompt, n, params)

    async def main() -> list[float]:
        engine = Counting()
        pace = Pace(rollout_s=1.0, spread=1.0)
        generator = PacedGenerator(engine, pace, np.random.default_rng(0), lambda: None)
        await asyncio.gather(*(generator.sample(PROMPT, 1, PARAMS) for _ in range(8)))
        return engine.asked_at

    first = float(np.exp(np.random.default_rng(0).standard_normal(8).min()))
    assert virtual_time.run(main()) == pytest.approx([first] * 8)
