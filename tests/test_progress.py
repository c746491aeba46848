"""What a node knows apart from its weights comes back from a checkpoint as it went in, chance included."""

from __future__ import annotations

from pathlib import Path

import torch

from node.checkpoint import CheckpointStore
from node.config import Lora, NodeConfig, PolicyConfig
from node.engine.policy import Policy, load_policy
from node.progress import Progress
from node.settings import task_specs
from swarm.tasks.judge import LocalJudge
from swarm.types import PolicyVersion
from tests.builders import task
from tests.policies import save_tiny_policy


def parts(tmp_path: Path) -> tuple[NodeConfig, Policy, LocalJudge]:
    plain = {"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}
    model = str(save_tiny_policy(tmp_path / "policy"))
    config = NodeConfig.model_validate({"tasks": [plain], "policy": {"model": model}, "seed": 7})
    return config, load_policy(PolicyConfig(model=model, device="cpu")), LocalJudge(task_specs(config))


def drawn(progress: Progress) -> tuple[object, ...]:
    """What chance says next, everywhere."""
    tokens = torch.rand(4, generator=progress.sampling_rng).tolist()
    return tokens, progress.drawing_rng.random(), progress.sampler.propose(progress.version)


def test_a_checkpoint_brings_everything_back(tmp_path: Path):
    config, policy, judge = parts(tmp_path)
    before = Progress(config, policy, judge.sources, None)
    before.steps, before.version = 12, PolicyVersion(11)
    before.tracker.observe(task(), 1.0, before.version)
    before.ledger.counters["own_groups"] = 99
    drawn(before)  # not where a new node starts
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(12, policy.model.save_pretrained, before.tensors(), before.freeze()())

    checkpoint = store.latest()
    assert checkpoint is not None
    after = Progress(config, policy, judge.sources, checkpoint)
    assert (after.steps, after.version, after.fingerprint) == (12, 11, before.fingerprint)
    assert after.tracker.value(task(), after.version) == before.tracker.value(task(), before.version)
    assert after.ledger.counters == before.ledger.counters
    assert drawn(after) == drawn(before)
    assert drawn(after) != drawn(Progress(config, policy, judge.sources, None))


def test_what_is_frozen_is_of_its_moment(tmp_path: Path):
    config, policy, judge = parts(tmp_path)
    progress = Progress(config, policy, judge.sources, None)
    frozen = progress.freeze()
    progress.steps = 5
    progress.ledger.counters["own_groups"] += 1
    progress.tracker.observe(task(), 1.0, PolicyVersion(0))
    assert frozen()["steps"] == 0
    assert frozen()["counters"]["own_groups"] == 0
    assert frozen()["tracker"]["prompts"] == []


def test_a_node_that_moves_with_the_base_of_its_adapter_is_not_warned(tmp_path: Path):
    """The weights of the base are compared, not its name; a checkpoint of an adapter is of no use without them."""
    config, _, judge = parts(tmp_path)
    policies = [
        load_policy(PolicyConfig(model=str(save_tiny_policy(tmp_path / name)), adapter=Lora(rank=2), device="cpu"))
        for name in ("policy", "moved")
    ]
    before = Progress(config, policies[0], judge.sources, None)
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, lambda directory: None, before.tensors(), before.freeze()())
    moved = config.model_copy(update={"policy": PolicyConfig(model=str(tmp_path / "moved"), adapter=Lora(rank=2))})
    after = Progress(moved, policies[1], judge.sources, store.latest())
    assert after.base == str(tmp_path / "moved")
    assert after.fingerprint == before.fingerprint
    assert not after.ledger.warnings
