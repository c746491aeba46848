"""A whole node whose parts fail alone: the others go on, and it comes back from its last good state, or ends with a
sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from node import exit_codes
from node.checkpoint import CheckpointStore
from node.daemon import open_node
from node.engine.transformers import TransformersGenerator
from node.engine.updates import Updates
from node.operated import RunningNode
from swarm.errors import CrashLoop
from swarm.wire.v1 import node_pb2
from tests.policies import save_tiny_policy
from tests.test_node import PATIENCE_S, config_of, parameters, running, until

QUICK = {"first_pause_s": 0.0, "max_restarts": 5}


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def failing(original: Callable[..., Any], *calls: int, error: Exception | None = None) -> Callable[..., Any]:
    """`original`, which raises instead in these of its calls, counted from 0; in all of them if none are named."""
    made = 0

    def function(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if not calls or made - 1 in calls:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        return original(*arguments, **named)

    return function


def part_of(node: RunningNode, name: str) -> node_pb2.Part:
    return next(part for part in node.status().parts if part.name == name)


async def test_a_step_that_fails_costs_its_batch_and_nothing_else(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Updates, "packed", failing(Updates.packed, 1, 2))
    async with running(config_of(policy, tmp_path / "node", supervision=QUICK)) as node:
        await until(lambda: node.learning.steps >= 1, node)
        await until(lambda: node.learning.steps >= 4, node)
        part = part_of(node, "learner")
        assert (part.state, part.restarts, part.recent_failures, part.allowed_failures) == ("up", 2, 2, 5)
        assert part.last_error == "OutOfMemoryError: CUDA out of memory"
        assert node.status().counters["learner_restarts"] == 2
        assert node.status().policy_version == node.learning.steps, "no version was skipped"


async def test_gradients_of_a_failed_step_are_dropped(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with AsyncExitStack() as stack:
        node = await open_node(config_of(policy, tmp_path / "node"), stack, asyncio.Event())
        batch = [(await node.producer.next_group()).experience]
        before = parameters(node)
        with monkeypatch.context() as patched:
            patched.setattr(Updates, "_clipped_norm", failing(Updates._clipped_norm))
            with pytest.raises(torch.OutOfMemoryError):
                await node.learning.step(batch)
        model = node.learning._saving._policy.model
        assert any(p.grad is not None for p in model.parameters())
        assert not await node.learning.recover(), "the weights are what they were"
        assert all(p.grad is None for p in model.parameters())
        after = parameters(node)
        assert all(torch.equal(before[name], after[name]) for name in before)
        await node.learning.step(batch)


async def test_a_step_that_fails_half_way_takes_the_policy_back_to_the_newest_checkpoint(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with AsyncExitStack() as stack:
        node = await open_node(config_of(policy, tmp_path / "node"), stack, asyncio.Event())
        batch = [(await node.producer.next_group()).experience]
        await node.learning.step(batch)
        path = await node.learning.checkpoint()
        await node.learning.step(batch)
        version = node.status().policy_version
        monkeypatch.setattr(torch.optim.AdamW, "step", failing(torch.optim.AdamW.step, 0))
        with torch.no_grad():
            next(node.learning._saving._policy.model.parameters()).add_(1.0)
        with pytest.raises(torch.OutOfMemoryError):
            await node.learning.step(batch)
        assert await node.learning.recover()
        saved, now = load_file(path / "model" / "model.safetensors"), parameters(node)
        assert all(torch.equal(saved[name], now[name]) for name in now)
        weights = await node.learning.weights()
        assert weights.version == version + 1, "the generator takes it, because it is newer"
        assert any("half-way" in warning for warning in node.ledger.warnings)
        assert not await node.learning.recover(), "once is enough"
        await node.learning.step(batch)


async def test_what_is_saved_after_a_failed_step_is_a_good_state(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The operator's Checkpoint, or a stop, while the learner waits to be started again."""
    async with AsyncExitStack() as stack:
        node = await open_node(config_of(policy, tmp_path / "node"), stack, asyncio.Event())
        batch = [(await node.producer.next_group()).experience]
        await node.learning.step(batch)
        first = await node.learning.checkpoint()
        good = load_file(first / "model" / "model.safetensors")
        monkeypatch.setattr(torch.optim.AdamW, "step", failing(torch.optim.AdamW.step))
        with torch.no_grad():
            next(node.learning._saving._policy.model.parameters()).add_(1.0)
        with pytest.raises(torch.OutOfMemoryError):
            await node.learning.step(batch)
        second = await node.learning.checkpoint()
        again = load_file(second / "model" / "model.safetensors")
        assert all(torch.equal(good[name], again[name]) for name in good)


async def test_a_learner_that_never_comes_back_ends_the_node_and_the_others_go_on_meanwhile(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Updates, "packed", failing(Updates.packed, error=ZeroDivisionError("a bug")))
    config = config_of(policy, tmp_path / "node", supervision={"first_pause_s": 0.05, "max_restarts": 3})
    async with AsyncExitStack() as stack:
        node = await open_node(config, stack, asyncio.Event())
        with pytest.raises(CrashLoop, match=r"^the learner failed 4 times .*ZeroDivisionError: a bug$"):
            await asyncio.wait_for(node.run(), PATIENCE_S)
        part = part_of(node, "learner")
        assert (part.state, part.restarts, part.recent_failures) == ("given up", 3, 4)
        assert node.ledger.counters["own_groups"] >= 4 * config.pool.own_groups, "it went on sampling"
        assert CheckpointStore(tmp_path / "node" / "checkpoints").latest() is None, "there is nothing good to save"


async def test_an_engine_that_fails_is_replaced_and_the_node_learns_on(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TransformersGenerator, "_sample", failing(TransformersGenerator._sample, 1, 3))
    async with running(config_of(policy, tmp_path / "node", supervision=QUICK)) as node:
        await until(lambda: part_of(node, "engine").restarts == 2, node)
        # it is up again with the first batch that it finishes, which the learner need not wait for
        await until(lambda: part_of(node, "engine").state == "up", node)
        seen = node.learning.steps
        await until(lambda: node.learning.steps >= seen + 2, node)
        part = part_of(node, "engine")
        assert (part.state, part.restarts) == ("up", 2)
        assert node.status().counters["failed_rollouts"] >= 8, "a rollout that the engine failed on is data"


async def test_a_node_whose_engine_does_not_come_back_saves_what_it_has_learned_and_ends(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(policy, tmp_path / "broken", supervision={"first_pause_s": 0.1, "max_restarts": 4})

    async with AsyncExitStack() as stack:
        node = await open_node(config, stack, asyncio.Event())
        life = asyncio.create_task(node.run())
        await until(lambda: node.learning.steps >= 2, node)
        monkeypatch.setattr(TransformersGenerator, "_sample", failing(TransformersGenerator._sample))
        with pytest.raises(CrashLoop, match=r"^the engine failed 5 times .*OutOfMemoryError"):
            await asyncio.wait_for(life, PATIENCE_S)
        newest = CheckpointStore(tmp_path / "broken" / "checkpoints").latest()
        assert newest is not None
        assert newest.step == node.learning.steps >= 2


def test_exit_codes_are_all_different():
    codes = [value for name, value in vars(exit_codes).items() if name.isupper()]
    assert len(set(codes)) == len(codes)
