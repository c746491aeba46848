"""What a node that is slowed ten times costs the others, in virtual time: three simulated nodes (node/lab) with the
real loops, learner, verdict and pool, where a rollout and a step take as long as the setup says. It is exact."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from node.config import NodeConfig
from node.lab.member import Member
from node.lab.pace import Pace
from node.lab.simulation import Setup, simulate
from tests.policies import save_tiny_policy

SLOWER = 10


def losses(steps: int) -> dict[str, float]:
    """Node -> by how much longer its steps took beside a slow peer than alone, as a share; of the two that are not."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        members = [_member(Path(directory), number, steps) for number in range(3)]
        pace = members[2].pace
        slow = Pace(rollout_s=SLOWER * pace.rollout_s, step_s=SLOWER * pace.step_s, spread=pace.spread)
        alone = [_seconds([member])[0] for member in members[:2]]
        beside = _seconds([*members[:2], Member(config=_config(members[2], 1 + steps // SLOWER), pace=slow)])
    return {m.config.name: b / a - 1 for m, a, b in zip(members, alone, beside, strict=False)}


def _seconds(members: Sequence[Member]) -> list[float]:
    """When each made its last step."""
    record = simulate(Setup(members=members, exam_every=1_000_000, exam_tasks=1, exam_samples=1), seed=0)
    return [node.steps[-1]["time"] for node in record.nodes]


def _member(directory: Path, number: int, steps: int) -> Member:
    config = NodeConfig.model_validate(
        {
            "name": f"node-{number + 1}",
            "max_steps": steps,
            "policy": {"model": str(save_tiny_policy(directory / f"model-{number}", seed=number))},
            "tasks": [{"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}],
            "sampler": {"group_size": 2, "max_new_tokens": 8, "concurrency": 4},
            "pool": {"own_groups": 4, "foreign_groups": 12, "own_capacity": 4},
        }
    )
    return Member(config=config, pace=Pace(rollout_s=1.0, step_s=0.5))


def _config(member: Member, steps: int) -> NodeConfig:
    return member.config.model_copy(update={"max_steps": steps})
