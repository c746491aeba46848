"""A whole node whose learner is two processes, and the same node afterwards with one."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from node.checkpoint import CheckpointStore
from node.config import NodeConfig
from node.daemon import open_node
from node.engine.ranks.several import SeveralDevices
from node.engine.trainer import OneDevice
from node.engine.transformers import TransformersGenerator
from node.operated import RunningNode
from node.progress import moments_of
from tests.policies import save_tiny_policy
from tests.test_node import PATIENCE_S, config_of, equal, running, until
from tests.test_ranks import alive


def config_with(devices: int, policy: Path, data_dir: Path) -> NodeConfig:
    return config_of(
        policy,
        data_dir,
        policy={"model": str(policy), "device": "cpu"},
        learner={"lr": 1e-2, "warmup_steps": 0, "truncated": "scored", "devices": devices},
        checkpoint={"every_steps": 2},
    )


async def held(node: RunningNode) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return await node.learning._trainer.snapshot()


@pytest.mark.timeout(600)
async def test_a_node_learns_on_two_devices_and_goes_on_with_one(tmp_path: Path):
    policy, data_dir = save_tiny_policy(tmp_path / "policy"), tmp_path / "node"
    async with running(config_with(2, policy, data_dir)) as node:
        learner = node.learning._trainer._learner
        assert isinstance(learner, SeveralDevices)
        pids = learner.pids
        assert len(pids) == 2
        begun, _ = await held(node)
        await until(lambda: node.learning.steps >= 3 and node.ledger.counters["checkpoints"] >= 1, node)
        assert isinstance(node.generator, TransformersGenerator)
        assert node.generator.version > 0  # it samples with what two devices have made
        learned, _ = await held(node)
        assert not equal(begun, learned)
        assert node.ledger.counters["learner_restarts"] == 0
    assert not any(alive(pid) for pid in pids)

    checkpoint = CheckpointStore(data_dir / "checkpoints").latest()
    assert checkpoint is not None
    assert checkpoint.step == node.learning.steps
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        again = await open_node(config_with(1, policy, data_dir), stack, stopping)
        assert isinstance(again.learning._trainer._learner, OneDevice)
        weights, moments = await held(again)
        assert equal(weights, load_file(checkpoint.model_dir / "model.safetensors"))
        assert equal(moments, moments_of(checkpoint))
        loops = asyncio.create_task(again.run())
        await until(lambda: again.learning.steps >= checkpoint.step + 2, again)
        assert not again.ledger.warnings
        stopping.set()
        await asyncio.wait_for(loops, PATIENCE_S)
