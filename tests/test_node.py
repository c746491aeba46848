"""Whole nodes in one process: the real loops, judge, journal, learner and checkpoints, over the in-process exchange."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from node.checkpoint import CheckpointStore
from node.config import NodeConfig, PolicyConfig
from node.daemon import open_node
from node.engine.policy import load_policy
from node.journal import Journal
from node.operated import RunningNode
from swarm.errors import ConfigError, JournalError, PolicyError, SwarmError
from swarm.net.base import LogEntry
from swarm.net.memory import Hub, MemoryLog
from swarm.types import Reason
from swarm.wire.v1 import node_pb2
from tests.builders import identity, signed
from tests.policies import needs_bitsandbytes, save_tiny_policy
from tests.processes import PATIENCE_S


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def config_of(policy: Path, data_dir: Path, /, **settings: object) -> NodeConfig:
    plain = {"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}
    defaults: dict[str, object] = {
        "name": data_dir.name,
        "data_dir": data_dir,
        "policy": {"model": str(policy)},
        "tasks": [plain],
        "sampler": {"group_size": 4, "concurrency": 8, "max_new_tokens": 6},
        "learner": {"lr": 1e-2, "warmup_steps": 0, "truncated": "scored"},
        "pool": {"own_groups": 4, "foreign_groups": 4, "own_capacity": 4},
        "exchange": {"type": "none"},
        "eval": {"every_steps": 0},
        "checkpoint": {"every_steps": 1000},
    }
    return NodeConfig.model_validate(defaults | settings)


@asynccontextmanager
async def running(config: NodeConfig, hub: Hub | None = None) -> AsyncIterator[RunningNode]:
    """A node whose loops run; leaving stops it as its operator would. With a hub it is in a swarm."""
    stopping = asyncio.Event()
    join = None if hub is None else (lambda identity, swarm, journal: hub.join(identity.peer_id, journal))
    async with AsyncExitStack() as stack:
        node = await open_node(config, stack, stopping, join)
        task = asyncio.create_task(node.run())
        try:
            yield node
        finally:
            stopping.set()
            await asyncio.wait_for(task, PATIENCE_S)


async def until(condition: Callable[[], bool], node: RunningNode) -> None:
    """Returns at the end of the first step after which `condition` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await node.learning.reached(node.learning.steps + 1)


@pytest.mark.slow
async def test_a_node_alone_learns(policy: Path, tmp_path: Path):
    async with running(config_of(policy, tmp_path / "solo")) as node:
        await until(lambda: node.learning.steps >= 1, node)
        before = node.status().values["plain"]
        await until(lambda: node.status().values["plain"] > 0.95, node)
    assert before < 0.8


@pytest.mark.slow
async def test_three_nodes_learn_from_each_other(policy: Path, tmp_path: Path):
    hub = Hub()
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(running(config_of(policy, tmp_path / name), hub))
            for name in ("a", "b", "c")
        ]
        peers = {node.author.identity.peer_id for node in nodes}
        for node in nodes:
            others = peers - {node.author.identity.peer_id}
            await until(lambda node=node, others=others: set(node.ledger.admitted) == others, node)
            await until(lambda node=node: node.ledger.counters["foreign_groups_trained"] > 0, node)
            assert node.ledger.refused.total() == 0
            assert {peer.name for peer in node.exchange.peers()} == {"a", "b", "c"} - {node.config.name}


async def test_a_peer_that_sends_garbage_is_refused_by_name_and_the_node_goes_on(policy: Path, tmp_path: Path):
    class Garbage(MemoryLog):
        async def read(self, cursor: int, limit: int) -> list[LogEntry]:
            entries = await super().read(cursor, limit)
            return [LogEntry(cursor=e.cursor, body=b"\xff garbage", signature=e.signature) for e in entries]

    hub, hostile, log = Hub(), identity(7), Garbage()
    log.append(signed(author=hostile))
    async with hub.join(hostile.peer_id, log), running(config_of(policy, tmp_path / "node"), hub) as node:
        await until(lambda: node.ledger.refused[hostile.peer_id, Reason.MALFORMED] >= 1, node)
        steps = node.learning.steps
        await until(lambda: node.learning.steps >= steps + 3, node)
        records = node.verdicts(10)
        assert records[0].origin == hostile.peer_id
        assert records[0].reason == "malformed"
        assert records[0].detail
        assert node.ledger.admitted.total() == 0


async def test_paused_it_makes_no_steps_and_resumed_it_does(policy: Path, tmp_path: Path):
    async with running(config_of(policy, tmp_path / "node")) as node:
        await until(lambda: node.learning.steps >= 2, node)
        node.pause()
        assert node.state == node_pb2.NODE_STATE_PAUSED
        async with node.learning.at_rest():  # the step that was under way is over
            paused_at = node.learning.steps
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.learning.reached(paused_at + 2), timeout=0.5)
        node.resume()
        await until(lambda: node.learning.steps >= paused_at + 2, node)


async def test_stopped_and_started_again_it_goes_on_where_it_was(policy: Path, tmp_path: Path):
    config = config_of(policy, tmp_path / "node")
    async with running(config) as node:
        await until(lambda: node.learning.steps >= 5, node)
        peer = node.author.identity.peer_id
        fingerprint = node.author.model
    steps, values, groups = node.learning.steps, node.status().values["plain"], node.ledger.counters["own_groups"]
    async with AsyncExitStack() as stack:
        again = await open_node(config, stack, asyncio.Event())
        assert again.learning.steps == steps
        assert again.author.identity.peer_id == peer
        assert again.author.model == fingerprint
        assert again.status().values["plain"] == pytest.approx(values)
        assert again.ledger.counters["own_groups"] == groups
        assert again.status().policy_version == node.status().policy_version


@pytest.fixture(scope="session")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose frozen head can say something: with an untrained one, any hidden state means nearly the uniform
    distribution."""
    directory = save_tiny_policy(tmp_path_factory.mktemp("decided"), tied=False)
    tensors = load_file(directory / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["lm_head.weight"] * 20}, directory / "model.safetensors", {"format": "pt"}
    )
    return directory


def config_with_adapter(policy: Path, data_dir: Path, **settings: object) -> NodeConfig:
    adapter = {"type": "lora", "rank": 8} | settings
    return config_of(policy, data_dir, policy={"model": str(policy), "adapter": adapter})


def parameters(node: RunningNode) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in node.learning._saving._policy.model.named_parameters()}


def moments(node: RunningNode) -> dict[str, torch.Tensor]:
    return node.learning._trainer._learner.snapshot()[1]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
async def test_with_an_adapter_a_node_learns_and_its_base_stays_what_it_is(decided: Path, tmp_path: Path):
    async with running(config_with_adapter(decided, tmp_path / "node")) as node:
        await until(lambda: node.learning.steps >= 1, node)
        before = node.status().values["plain"]
        await until(lambda: node.status().values["plain"] > 0.95, node)
    assert before < 0.8
    base = load_file(decided / "model.safetensors")
    beside = {name.replace(".base_layer.", "."): p for name, p in parameters(node).items() if ".lora_" not in name}
    assert equal(beside, base)
    assert node.author.model == load_policy(PolicyConfig(model=str(decided), device="cpu")).fingerprint


@pytest.mark.parametrize("base", ["full", pytest.param("nf4", marks=needs_bitsandbytes)])
async def test_with_an_adapter_it_goes_on_exactly_where_it_was(policy: Path, tmp_path: Path, base: str):
    config = config_with_adapter(policy, tmp_path / "node", base=base)
    async with running(config) as node:
        await until(lambda: node.learning.steps >= 3, node)
    checkpoint = CheckpointStore(tmp_path / "node" / "checkpoints").latest()
    assert checkpoint is not None
    assert {path.name for path in checkpoint.model_dir.glob("*.safetensors")} == {"adapter_model.safetensors"}
    async with AsyncExitStack() as stack:
        again = await open_node(config, stack, asyncio.Event())
        assert again.learning.steps == node.learning.steps == checkpoint.step
        assert equal(parameters(again), parameters(node))
        assert equal(moments(again), moments(node))
        assert any(name.endswith("lora_A.default.weight/exp_avg") for name in moments(again))
        assert not again.ledger.warnings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 4}, r"^policy\.adapter\.rank is 4: .* has 8$"),
        ({"type": "none"}, r'^policy\.adapter\.type = "none": '),
    ],
    ids=["rank", "type"],
)
async def test_another_adapter_in_the_config_than_in_the_checkpoint_is_refused_and_nothing_is_lost(
    policy: Path, tmp_path: Path, settings: dict[str, object], sentence: str
):
    config = config_with_adapter(policy, tmp_path / "node")
    async with AsyncExitStack() as stack:
        await (await open_node(config, stack, asyncio.Event())).learning.checkpoint()
    files = {path: path.read_bytes() for path in (tmp_path / "node" / "checkpoints").rglob("*") if path.is_file()}
    other = {"model": str(policy), "adapter": {"type": "lora"} | settings}
    with pytest.raises(PolicyError, match=sentence):
        async with AsyncExitStack() as stack:
            await open_node(config_of(policy, tmp_path / "node", policy=other), stack, asyncio.Event())
    assert files == {path: path.read_bytes() for path in files}


async def test_a_checkpoint_that_is_cancelled_comes_to_its_end_before_another_begins(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loop, begun, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    original = CheckpointStore.save

    def slow(self: CheckpointStore, *parts: Any) -> Path:
        loop.call_soon_threadsafe(begun.set)
        assert release.wait(PATIENCE_S)
        return original(self, *parts)

    async with AsyncExitStack() as stack:
        node = await open_node(config_of(policy, tmp_path / "node"), stack, asyncio.Event())
        monkeypatch.setattr(CheckpointStore, "save", slow)
        first = asyncio.create_task(node.learning.checkpoint())
        await begun.wait()
        begun.clear()
        first.cancel()
        second = asyncio.create_task(node.learning.checkpoint())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(begun.wait(), timeout=0.3)
        release.set()
        assert (await second).is_dir()
        assert first.cancelled()


async def test_a_step_without_a_finite_gradient_is_said(policy: Path, tmp_path: Path):
    async with AsyncExitStack() as stack:
        node = await open_node(config_of(policy, tmp_path / "node"), stack, asyncio.Event())
        judged = await node.producer.next_group()
        batch = [replace(judged.experience, rewards=np.array([1, 0, 0, 0], dtype=np.float32))]
        await node.learning.step(batch)
        assert not node.ledger.warnings
        with torch.no_grad():
            next(node.learning._saving._policy.model.parameters()).fill_(torch.inf)
        await node.learning.step(batch)
        assert any("not finite" in warning for warning in node.ledger.warnings)


async def test_another_model_in_the_config_than_in_the_checkpoint_is_said(policy: Path, tmp_path: Path):
    data_dir = tmp_path / "node"
    for model, warnings in ((policy, 0), (policy, 0), (tmp_path / "other", 1), (tmp_path / "other", 1), (policy, 0)):
        async with AsyncExitStack() as stack:
            node = await open_node(config_of(model, data_dir), stack, asyncio.Event())
            assert len(node.ledger.warnings) == warnings
            assert all(str(model) in warning for warning in node.ledger.warnings)
            await node.learning.checkpoint()


async def test_with_max_steps_it_stops_learning_and_stays_up(policy: Path, tmp_path: Path):
    async with running(config_of(policy, tmp_path / "node", max_steps=3)) as node:
        await until(lambda: node.learning.steps >= 3, node)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.learning.reached(4), timeout=0.3)
        assert node.state == node_pb2.NODE_STATE_RUNNING


async def test_held_out_questions_are_tried_beside_the_loops(policy: Path, tmp_path: Path):
    config = config_of(policy, tmp_path / "node", eval={"every_steps": 2, "tasks_per_family": 8})
    async with running(config) as node:
        await until(lambda: node.ledger.held_out_step >= 2, node)
        assert 0.0 <= node.status().held_out["plain"] <= 1.0


async def test_own_groups_are_journalled_before_they_are_trained_on(policy: Path, tmp_path: Path):
    config = config_of(policy, tmp_path / "node")
    async with running(config) as node:
        await until(lambda: node.learning.steps >= 2, node)
        assert len(await node.journal.read(0, 1000)) >= node.ledger.steps * config.pool.own_groups
    async with Journal.open(tmp_path / "node" / "journal.db", 100) as journal:
        assert len(await journal.read(0, 1000)) == node.ledger.counters["own_groups"]


@pytest.mark.parametrize("error", [JournalError("the disk is full"), ZeroDivisionError("a bug")], ids=repr)
async def test_a_loop_that_fails_stops_the_node_with_a_sentence_or_a_traceback(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Journal, "append", fail)
    async with AsyncExitStack() as stack:
        node = await open_node(config_of(policy, tmp_path / "node"), stack, asyncio.Event())
        with pytest.raises((JournalError, ExceptionGroup)) as raised:
            await asyncio.wait_for(node.run(), PATIENCE_S)
    assert (raised.value is error) == isinstance(error, SwarmError)


async def test_two_nodes_cannot_share_a_data_directory(policy: Path, tmp_path: Path):
    config = config_of(policy, tmp_path / "node")
    async with AsyncExitStack() as stack:
        await open_node(config, stack, asyncio.Event())
        with pytest.raises(ConfigError, match="in use by another node"):
            async with AsyncExitStack() as second:
                await open_node(config, second, asyncio.Event())


async def test_a_policy_that_is_not_there_is_named(tmp_path: Path):
    config = config_of(tmp_path / "nowhere", tmp_path / "node")
    with pytest.raises(Exception, match=r"policy\.model = .*nowhere"):
        async with AsyncExitStack() as stack:
            await open_node(config, stack, asyncio.Event())
