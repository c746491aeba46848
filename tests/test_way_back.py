"""Going back to an earlier checkpoint with a real (tiny) policy: what is as it was, what goes on, that it helps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.appetite import Appetite
from node.assembly import trainer_of
from node.backlog import Nothing
from node.checkpoint import CheckpointStore
from node.config import NodeConfig
from node.divergence import GoBack
from node.engine.policy import load_policy
from node.engine.trainer import PolicyTrainer
from node.experience import Experience
from node.holds import Holds
from node.learning import POISONED, Learning
from node.metrics import MetricsLog
from node.progress import Progress, moments_of
from node.rl.batch import MicroBatch
from node.rl.loss import LossSums, micro_batch_loss
from node.settings import task_specs
from swarm.tasks.judge import LocalJudge
from swarm.types import GroupId, PeerId, PolicyVersion, Rollout
from swarm.wire.v1 import node_pb2
from tests.builders import group, task, task_ref, tokens, turn
from tests.policies import needs_bitsandbytes, save_tiny_policy
from tests.test_node import config_of, running, until

ORDER = GoBack(why="a test", to=3, lr_scale=0.5, rollbacks=0, stop=False)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@dataclass
class Bench:
    """A learner without loops."""

    learning: Learning
    progress: Progress
    trainer: PolicyTrainer
    store: CheckpointStore
    running: Holds
    credits: list[tuple[PeerId, float]] = field(default_factory=list)

    async def go_back(self, order: GoBack) -> None:
        assert self.learning._reload is not None
        await self.learning._go_back(order, self.learning._reload)


@asynccontextmanager
async def bench(policy: Path, directory: Path, /, **settings: object) -> AsyncIterator[Bench]:
    config = config_of(policy, directory, **settings)
    device = {"policy": config.policy.model_dump() | {"device": "cpu"}}
    config = NodeConfig.model_validate(config.model_dump() | device)
    store = CheckpointStore(directory / "checkpoints", keep=9)
    checkpoint = store.latest()
    loaded = load_policy(config.policy, checkpoint.model_dir if checkpoint else None)
    progress = Progress(config, loaded, LocalJudge(task_specs(config)).sources, checkpoint)
    credits, held = list[tuple[PeerId, float]](), Holds()
    async with AsyncExitStack() as stack:
        trainer = await stack.enter_async_context(trainer_of(config, loaded, None, progress.version, progress.gate))
        if checkpoint:
            await trainer.restore(moments_of(checkpoint))
        learning = Learning(
            policy=loaded,
            trainer=trainer,
            progress=progress,
            foreign=config.foreign,
            store=store,
            config=config.checkpoint,
            running=held,
            metrics_log=MetricsLog(directory / "metrics.jsonl"),
            credit=lambda peer, use: credits.append((peer, use)),
            appetite=Appetite(config.pool.foreign_groups),
            outstanding=Nothing(),
            reload=partial(load_policy, config.policy),
        )
        yield Bench(learning, progress, trainer, store, held, credits)


def experience(number: int = 0, *, origin: str = "me", logprob: float = -5.5, version: int = 0) -> Experience:
    """One right and one wrong answer; the tiny policy gives every token about exp(-5.5)."""
    rollouts = [Rollout(turns=(turn(text, sampled=tokens(text, logprob=logprob)),)) for text in ("0", "1")]
    return Experience(
        id=GroupId(f"{origin}-{number}"),
        group=group(*rollouts, ref=task_ref(number), origin=PeerId(origin)),
        task=task(task_ref(number)),
        rewards=np.array([1.0, 0.0], dtype=np.float32),
        scored=np.ones(2, dtype=bool),
        own=origin == "me",
        value=0.5,
        version=PolicyVersion(version),
        arrived_at=0.0,
    )


async def learn(on: Bench, steps: int) -> None:
    for _ in range(steps):
        number = on.learning.steps
        await on.learning.step([experience(number)])
        on.progress.tracker.observe(task(task_ref(number)), 1.0, on.trainer.version)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


async def test_weights_moments_and_values_are_what_they_were_and_versions_grow(policy: Path, tmp_path: Path) -> None:
    async with bench(policy, tmp_path) as on:
        await learn(on, 3)
        await on.learning.checkpoint()
        weights, moments = await on.trainer.snapshot()
        then = on.trainer.version
        values = [on.progress.tracker.value(task(task_ref(n)), then) for n in range(6)]
        seen = on.progress.gate.state()
        await learn(on, 2)
        await on.learning.checkpoint()
        await learn(on, 1)
        assert not same(weights, (await on.trainer.snapshot())[0])
        assert len(seen["recent"]) == 6 != len(on.progress.gate.state()["recent"])
        assert values != [on.progress.tracker.value(task(task_ref(n)), on.trainer.version) for n in range(6)]

        await on.go_back(ORDER)
        now = on.trainer.version
        assert (then, now, on.learning.steps) == (3, 7, 6)
        assert on.progress.gate.state() == seen
        assert same(weights, (await on.trainer.snapshot())[0])
        assert same(moments, (await on.trainer.snapshot())[1])
        assert (await on.learning.weights()).version == now
        assert values == [on.progress.tracker.value(task(task_ref(n)), now) for n in range(6)]
        on.progress.tracker.observe(task(task_ref(0)), 0.0, PolicyVersion(now - 1))  # sampled by what was given up
        assert values[0] == on.progress.tracker.value(task(task_ref(0)), now)
        assert on.progress.ledger.counters["rollbacks"] == 1
        assert on.progress.ledger.policy_version == now
        assert "step 6: a test: the policy is that of the checkpoint of step 3 again" in on.progress.ledger.warnings[-1]
        assert [path.name for path in sorted(on.store.directory.iterdir())] == ["step-00000003", "step-00000006"]
        await learn(on, 1)
        assert on.trainer.version == now + 1

    async with bench(policy, tmp_path) as again:  # a crash right after it would have gone on from here
        assert (again.learning.steps, again.trainer.version) == (6, 7)
        assert same(weights, (await again.trainer.snapshot())[0])
        assert same(moments, (await again.trainer.snapshot())[1])


async def test_without_any_checkpoint_it_begins_again(policy: Path, tmp_path: Path) -> None:
    async with bench(policy, tmp_path) as on:
        born, _ = await on.trainer.snapshot()
        await learn(on, 2)
        await on.go_back(replace(ORDER, to=None))
        weights, moments = await on.trainer.snapshot()
        assert same(born, weights)
        assert moments == {}
        assert on.progress.tracker.value(task(task_ref(0)), on.trainer.version) == 0.5
        assert (on.learning.steps, on.trainer.version) == (2, 3)


@pytest.mark.parametrize("base", ["full", pytest.param("nf4", marks=needs_bitsandbytes)])
async def test_an_adapter_goes_back_as_well(policy: Path, tmp_path: Path, base: str) -> None:
    lora = {"model": str(policy), "adapter": {"type": "lora", "rank": 2, "base": base}}
    async with bench(policy, tmp_path, policy=lora) as on:
        await learn(on, 3)
        await on.learning.checkpoint()
        weights, _ = await on.trainer.snapshot()
        await learn(on, 2)
        await on.go_back(ORDER)
        assert same(weights, (await on.trainer.snapshot())[0])


async def test_a_damaged_checkpoint_is_not_gone_back_to(policy: Path, tmp_path: Path) -> None:
    async with bench(policy, tmp_path) as on:
        await learn(on, 3)
        path = await on.learning.checkpoint()
        (path / "state.json").write_text("{}")
        await learn(on, 1)
        await on.learning.checkpoint()
        weights, _ = await on.trainer.snapshot()
        await learn(on, 1)
        await on.go_back(ORDER)
        assert same(weights, (await on.trainer.snapshot())[0]), "of the newest that is whole"


# What it is for -------------------------------------------------------------------------------------------------------


async def test_a_peer_whose_groups_make_steps_impossible_pays_for_it_and_nobody_else(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No group that comes through the door does that, as far as we know: so it is done to those of one origin here."""

    def loss_of(micro: MicroBatch, logp: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, LossSums]:
        loss, sums = micro_batch_loss(micro, logp, *rest)
        poison = torch.nan if any(row.origin == "hostile" for row in micro.rows) else 1.0
        return loss * poison, replace(sums, loss=sums.loss * poison)

    monkeypatch.setattr("node.engine.updates.micro_batch_loss", loss_of)
    async with bench(policy, tmp_path, divergence={"skipped_steps": 3}) as on:
        await learn(on, 2)
        weights, moments = await on.trainer.snapshot()
        on.credits.clear()
        for number in range(2):
            peers = [experience(number, origin=origin) for origin in ("honest", "hostile")]
            await on.learning.step([experience(number), *peers])
        assert on.credits == [(PeerId("hostile"), -POISONED)] * 2
        assert same(weights, (await on.trainer.snapshot())[0])
        assert same(moments, (await on.trainer.snapshot())[1])
        assert on.trainer.version == 2
        assert on.progress.ledger.counters["poisoned_steps"] == 2
        await on.learning.step([experience(0), experience(0, origin="honest")])
        assert on.progress.ledger.metrics["skipped_update"] == 0
        assert on.progress.ledger.counters["rollbacks"] == 0


async def test_weights_that_are_broken_are_nobodys_fault_and_are_replaced(policy: Path, tmp_path: Path) -> None:
    async with bench(policy, tmp_path, divergence={"skipped_steps": 3}) as on:
        await learn(on, 3)
        await on.learning.checkpoint()
        weights, _ = await on.trainer.snapshot()

        def breaks() -> None:
            with torch.no_grad():
                next(on.learning._saving._policy.model.parameters()).fill_(torch.nan)

        await on.trainer.call(breaks)
        on.credits.clear()
        for number in range(3):
            await on.learning.step([experience(number), experience(number, origin="honest")])
        assert on.credits == []
        assert on.progress.ledger.counters["rollbacks"] == 1
        assert same(weights, (await on.trainer.snapshot())[0])
        assert on.trainer.lr_scale == 0.5
        await on.learning.step([experience(9)])
        assert on.progress.ledger.metrics["lr"] == pytest.approx(0.5e-2)


WATCHFUL = {"window": 4, "hold": 2, "start": 2, "skipped_steps": 2, "rollbacks": 3}


@pytest.mark.slow
async def test_a_policy_that_came_apart_recovers_with_a_lower_rate(policy: Path, tmp_path: Path) -> None:
    """A hundred times the rate that it learns with: all that it says is wrong within a few steps."""
    config = config_of(
        policy,
        tmp_path / "node",
        learner={"lr": 1.0, "warmup_steps": 0, "truncated": "scored"},
        divergence=WATCHFUL | {"lr_factor": 0.01, "lr_floor": 0.01, "reward_fall": 0.3},
        checkpoint={"every_steps": 5},
    )
    async with running(config) as node:
        await until(lambda: node.ledger.counters["rollbacks"] >= 1, node)
        before = node.status()
        await until(lambda: node.status().values["plain"] > 0.9, node)
        after = node.status()
        assert after.state == node_pb2.NODE_STATE_RUNNING
        assert after.policy_version > before.policy_version
        assert after.metrics["lr_scale"] == 0.01
        assert any("the policy is that of" in warning for warning in after.warnings)


@pytest.mark.slow
async def test_a_node_that_keeps_coming_apart_stops_learning_and_says_why(policy: Path, tmp_path: Path) -> None:
    config = config_of(
        policy,
        tmp_path / "node",
        learner={"lr": 1e30, "warmup_steps": 0, "truncated": "scored"},
        divergence=WATCHFUL | {"lr_factor": 1.0},
    )
    async with running(config) as node:
        async with asyncio.timeout(60):
            while node.running.open:  # noqa: ASYNC110 - it makes no more steps whose end could be waited for
                await asyncio.sleep(0.02)
        status = node.status()
        assert status.state == node_pb2.NODE_STATE_PAUSED
        assert status.counters["rollbacks"] == 4
        assert status.holds[0].startswith("learning has stopped: after 3 roll-backs it came apart once more (")
        weights, _ = await node.learning._trainer.snapshot()
        assert all(tensor.isfinite().all() for tensor in weights.values()), "what is left is good"
        node.pause()
        node.resume()
        assert node.status().state == node_pb2.NODE_STATE_RUNNING
        await until(lambda: node.ledger.counters["rollbacks"] == 5, node)
        assert node.status().state == node_pb2.NODE_STATE_RUNNING, "an operator's word counts for as many as at first"
