"""A run that was stopped and goes on is the run that was not, to the last bit; a crash costs steps and no rollouts."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import node.checkpoint
from node.config import NodeConfig
from node.daemon import open_node
from node.drawing import Drawing
from node.engine.base import StepReport
from node.engine.trainer import PreparedStep
from node.experience import Experience
from node.loops import replay, save, train
from node.operated import RunningNode
from swarm.net.base import Received
from swarm.tasks.base import held_out
from swarm.types import FinishReason
from swarm.wire.codec import seal
from tests.builders import group, identity, rollout, task_ref
from tests.policies import save_tiny_policy

OWN, ROOM = 3, 5
PEER = identity(9)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def config_of(policy: Path, data_dir: Path, /, **settings: object) -> NodeConfig:
    defaults: dict[str, object] = {
        "data_dir": data_dir,
        "policy": {"model": str(policy), "device": "cpu"},
        "tasks": [{"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}],
        "engine": {"type": "transformers"},
        "sampler": {"group_size": 4, "max_new_tokens": 6},
        "learner": {"lr": 1e-2, "warmup_steps": 0, "truncated": "scored"},
        "pool": {"own_groups": OWN, "foreign_groups": 2, "own_capacity": ROOM, "newcomer_share": 1.0},
        "exchange": {"type": "none"},
        "foreign_gate": {"type": "own", "quantile": 0.5},  # a threshold from the second step on
        "eval": {"every_steps": 0},
        "checkpoint": {"every_steps": 1},
    }
    return NodeConfig.model_validate(defaults | settings)


@asynccontextmanager
async def opened(config: NodeConfig) -> AsyncIterator[RunningNode]:
    """Its loops do not run: what happens when is for the test to say. Leaving is a crash."""
    async with AsyncExitStack() as stack:
        yield await open_node(config, stack, asyncio.Event())


async def receive(node: RunningNode, number: int) -> None:
    """A peer's group of a task from that number on."""
    index = next(n for n in itertools.count(number) if not held_out(f"Be plain. 0 {n}"))
    ref = task_ref(index, source="plain/plain")
    rollouts = rollout("so be it"), rollout("\N{SNOWMAN}", FinishReason.LENGTH)
    swarm, now = node.author.membership.swarm, node.author.wall_clock()
    made = group(*rollouts, ref=ref, origin=PEER.peer_id, swarm=swarm, created_at=now)
    signed = seal(made, PEER)
    received = Received(sender=PEER.peer_id, body=signed.body, signature=signed.signature)
    findings, judged = await node.intake.judge(received)
    assert judged is not None, findings.verdict
    assert await node.journal.keep(judged)
    node.pool.put_foreign(judged.experience)


async def step(node: RunningNode) -> dict[str, float]:
    """Draws what is there; what the trainer says of the step, times excepted."""
    trainer = node.learning._trainer
    original, reports = trainer.step, list[StepReport]()

    async def told(batch: Sequence[Experience], prepared: PreparedStep | None) -> StepReport:
        reports.append(await original(batch, prepared))
        return reports[-1]

    with mock.patch.object(trainer, "step", told):
        await node.learning.step(await node.learning.draw(node.pool))
    await node.generator.load(await node.learning.weights())
    return {k: v for k, v in reports[0].metrics.items() if not k.endswith("_s")}


async def live(node: RunningNode, steps: int, foreign: int = 2) -> list[dict[str, float]]:
    """Samples until the pool is full, and makes a step of some of it, again and again."""
    metrics = []
    for _ in range(steps):
        while node.pool.level.own < ROOM:
            judged = await node.producer.next_group()
            assert await node.journal.keep(judged)
            await node.pool.put_own(judged.experience)
        for number in range(foreign):
            await receive(node, 1000 * node.learning.steps + 100 * number)
        metrics.append(await step(node))
    return metrics


def weights(node: RunningNode) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in node.learning._saving._policy.model.named_parameters()}


def same(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert len(one) == len(other)
    for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        assert mine.keys() == theirs.keys()
        differing = {k for k in mine if not np.array_equal(mine[k], theirs[k], equal_nan=True)}
        assert not differing, f"step {number}: { ({k: (mine[k], theirs[k]) for k in differing}) }"


async def test_stopped_and_resumed_it_makes_the_same_steps(policy: Path, tmp_path: Path) -> None:
    async with opened(config_of(policy, tmp_path / "whole")) as node:
        expected = await live(node, 6)
        trained, values = weights(node), node.tracker.state()
    assert any(metrics.get("foreign_reward") for metrics in expected), "peers' groups were learned from"
    found = []
    for _ in range(3):
        async with opened(config_of(policy, tmp_path / "resumed")) as node:
            assert len(node.pool.waiting) >= (ROOM - OWN if found else 0)
            found += await live(node, 2)
            await node.learning.checkpoint()
    assert node.tracker.state() == values
    same(expected, found)
    assert all(torch.equal(trained[name], tensor) for name, tensor in weights(node).items())


async def test_after_a_crash_the_lost_steps_are_made_again_from_the_same_groups(policy: Path, tmp_path: Path) -> None:
    config = config_of(policy, tmp_path / "node")
    async with opened(config) as node:
        await live(node, 2, foreign=0)
        await node.learning.checkpoint()
        lost = await live(node, 2, foreign=0)
        waiting, groups = {e.id for e in node.pool.waiting}, node.ledger.counters["own_groups"]
        trained = weights(node)
    async with opened(config) as node:
        assert node.learning.steps == 2
        replaying = asyncio.create_task(replay(node.backlog, node.pool, node.ledger.counters))
        again = []
        for _ in range(2):
            async with asyncio.timeout(60):
                while node.pool.level.own < ROOM and not replaying.done():  # noqa: ASYNC110 - another task fills it
                    await asyncio.sleep(0.001)
            again.append(await step(node))
        await replaying
        assert {e.id for e in node.pool.waiting if e.own} <= waiting
        assert node.ledger.counters["own_groups"] == groups, "nothing was sampled again"
        assert all(torch.equal(trained[name], tensor) for name, tensor in weights(node).items())
    same(lost, again)


async def test_steps_go_on_while_a_slow_disk_writes(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begun, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    fsync = node.checkpoint.sync

    def slow(path: Path) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert release.wait(60)
        fsync(path)

    monkeypatch.setattr(node.checkpoint, "sync", slow)
    async with opened(config_of(policy, tmp_path / "node")) as running:
        learning = running.learning

        async def sample() -> None:
            while True:
                judged = await running.producer.next_group()
                await running.journal.keep(judged)
                await running.pool.put_own(judged.experience)

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(sample()),
                tasks.create_task(train(Drawing(learning, running.pool), learning, running.generator, 0)),
                tasks.create_task(save(learning)),
            ]
            await begun.wait()
            at = learning.steps
            await learning.reached(at + 5)
            assert not list((tmp_path / "node" / "checkpoints").glob("step-*")), "the disk is still at it"
            release.set()
            while running.ledger.counters["checkpoints"] < 2:  # noqa: ASYNC110 - a plain counter
                await asyncio.sleep(0.01)
            for task in loops:
                task.cancel()
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "node" / "checkpoints").glob("step-*"))
    assert steps[0] >= 1
    assert steps[-1] > at
