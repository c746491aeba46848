"""What a step was worth to whom: by what was trained on, never by what was sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from node.appetite import Appetite
from node.assembly import trainer_of
from node.backlog import Nothing
from node.checkpoint import CheckpointStore
from node.config import NodeConfig
from node.engine.policy import load_policy
from node.experience import Experience
from node.holds import Holds
from node.learning import Learning
from node.metrics import MetricsLog
from node.progress import Progress
from node.rl.batch import MicroBatch, pack
from node.rl.lessons import REFUSED, Lesson, credits, lessons
from node.rl.samples import TokenRow
from node.settings import task_specs
from swarm.net.standing import Standing
from swarm.tasks.judge import LocalJudge
from swarm.types import GroupId, PeerId, PolicyVersion
from tests.builders import group, identity, rollout, task
from tests.policies import save_tiny_policy

A, B = identity(1).peer_id, identity(2).peer_id


def row(advantage: float, origin: PeerId, own: bool = False) -> TokenRow:
    return TokenRow(
        prompt_ids=np.array([1], dtype=np.int32),
        response_ids=np.array([2, 3], dtype=np.int32),
        byte_lengths=np.array([1, 1], dtype=np.int32),
        behaviour=None,
        peer=None,
        advantage=advantage,
        reward=1.0,
        own=own,
        origin=origin,
        staleness=0,
        truncated=False,
    )


def micro_batches(*rows: TokenRow, gated: tuple[int, ...] = ()) -> list[MicroBatch]:
    """One each; `gated` are their numbers."""
    made = [pack([one], 100)[0] for one in rows]
    return [replace(m, advantage=torch.zeros(1)) if i in gated else m for i, m in enumerate(made)]


def experience(origin: PeerId, rollouts: int, own: bool = False) -> Experience:
    return Experience(
        id=GroupId("g"),
        group=group(*(rollout(str(i)) for i in range(rollouts)), origin=origin),
        task=task(),
        rewards=np.ones(rollouts, dtype=np.float32),
        scored=np.ones(rollouts, dtype=bool),
        own=own,
        value=0.5,
        version=PolicyVersion(0),
        arrived_at=0.0,
    )


def test_a_lesson_is_what_was_trained_on_in_the_unit_of_rewards() -> None:
    rows = [row(2.0, A), row(-1.0, A), row(3.0, B), row(9.0, A, own=True), row(1.0, B)]
    taught = lessons(micro_batches(*rows, gated=(2,)), scale=0.25)
    assert taught == {
        A: Lesson(learned=0.25 + 0.0625, refused=0.0, gated=0),
        B: Lesson(learned=0.0625, refused=0.5625, gated=1),
    }


def test_one_rollout_is_worth_at_most_one() -> None:
    assert lessons(micro_batches(row(5.0, A)), scale=10.0)[A].learned == 1.0


def test_many_rollouts_earn_no_more_than_few() -> None:
    few = credits([experience(A, 2)], {A: Lesson(learned=2.0, refused=0.0, gated=0)})
    many = credits([experience(A, 64)], {A: Lesson(learned=64.0, refused=0.0, gated=0)})
    assert few == many == {A: 1.0}


def test_one_response_many_times_is_one_response() -> None:
    alike = replace(experience(A, 2), group=group(*[rollout("0")] * 8, origin=A))
    # A rule that trains on every one of them, and one that takes the first.
    assert credits([alike], {A: Lesson(learned=8 * 0.25, refused=0.0, gated=0)}) == {A: 1.0}
    assert credits([alike], {A: Lesson(learned=0.25, refused=0.0, gated=0)}) == {A: 0.25}


def test_rollouts_without_a_lesson_count_as_well() -> None:
    batch = [experience(A, 4), experience(A, 4), experience(B, 8), experience(B, 8, own=True)]
    taught = {A: Lesson(learned=1.0, refused=0.0, gated=0), B: Lesson(learned=1.0, refused=0.75, gated=3)}
    earned = credits(batch, taught)
    assert earned[A] == pytest.approx(2 * 1.0 / 8)
    assert earned[B] == pytest.approx((1.0 - REFUSED * 0.75) / 8)


def test_who_taught_nothing_earns_nothing() -> None:
    assert credits([experience(A, 4)], {}) == {}


async def test_the_learner_credits_whom_it_learned_from_and_nobody_for_a_step_that_changed_nothing(tmp_path: Path):
    plain = {"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}
    model = {"model": str(save_tiny_policy(tmp_path / "policy")), "device": "cpu"}
    # the gate lets nothing of peers' pass until it knows texts of our own
    config = NodeConfig.model_validate({"tasks": [plain], "policy": model, "foreign_gate": {"type": "none"}})
    policy, standing = load_policy(config.policy), Standing(lambda: 0.0)
    progress = Progress(config, policy, LocalJudge(task_specs(config)).sources, None)
    async with trainer_of(config, policy, None, progress.version, progress.gate) as trainer:
        learning = Learning(
            policy=policy,
            trainer=trainer,
            progress=progress,
            foreign=config.foreign,
            store=CheckpointStore(tmp_path / "checkpoints"),
            config=config.checkpoint,
            running=Holds(),
            metrics_log=MetricsLog(tmp_path / "metrics.jsonl"),
            credit=standing.credit,
            appetite=Appetite(config.pool.foreign_groups),
            outstanding=Nothing(),
        )
        await learning.step([experience(A, 4)])
        assert standing.trust(A) == pytest.approx(0.25)  # (1 - 0.5)^2 of every rollout
        with torch.no_grad():
            next(policy.model.parameters())[0] = torch.inf
        await learning.step([experience(B, 4)])
        assert standing.trust(B) == 0.0
