"""The models around a fleet's run: seed models made before, every node's model evaluated before and after.

Each job is a process of its own, at most one per core at a time, so that the demo itself never imports torch.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from node.demo.plan import NodePlan
from node.demo.processes import ChildFailed, Children
from node.demo.state import short

Made = TypeVar("Made")
Progress = Callable[[float], None]
"""Told the share of jobs that are done, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What the demo runs. Replaced in tests, where nothing is to be learned."""

    swarm_node: tuple[str, ...] = (sys.executable, "-m", "node.cli")
    seed: tuple[str, ...] = (sys.executable, "-m", "node.seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """pass@1 of one model on the held-out questions of one family."""

    pass_at_1: float
    low: float
    """The confidence interval's ends."""
    high: float
    tasks: int


Scores = Mapping[str, Score]
"""By family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSize:
    tasks: int
    """Held-out questions per family."""
    samples: int
    """Answers per question, at temperature 1."""


def evaluation_size(families: int, *, at_least: int = 200, samples: int = 4) -> EvaluationSize:
    """So many questions that every node is judged by `at_least` of them over its families."""
    return EvaluationSize(tasks=max(32, math.ceil(at_least / families / 32) * 32), samples=samples)


async def make_seed_models(
    plans: Sequence[NodePlan],
    children: Children,
    programs: Programs,
    progress: Progress,
    heard: Callable[[str], None],
) -> dict[str, Path]:
    """Node name -> its seed model's directory. Made once per family and seed, and then found in the cache.

    `heard` is told how the making goes, line by line.
    """

    async def make(plan: NodePlan) -> Path:
        command = [*programs.seed, "--strong", plan.strong, "--seed", str(plan.model_seed)]
        lines = (await children.output(command, lambda line: heard(f"{plan.name}: {line}"))).split("\n")
        path = Path(next((line.strip() for line in reversed(lines) if line.strip()), ""))
        if not _is_model(path):
            raise ChildFailed(f"{' '.join(command[1:])}: its last line is not a model's directory: {str(path)!r}")
        return path

    return await _for_each({plan.name: plan for plan in plans}, make, progress)


async def evaluate(
    models: Mapping[str, Path], size: EvaluationSize, children: Children, programs: Programs, progress: Progress
) -> dict[str, Scores]:
    """Node name -> scores of its model."""

    async def score(model: Path) -> Scores:
        command = [*programs.swarm_node, "eval", str(model), "--json"]
        return read_scores(
            await children.output([*command, "--tasks", str(size.tasks), "--samples", str(size.samples)])
        )

    return await _for_each(models, score, progress)


def read_scores(output: str) -> Scores:
    """Of `swarm-node eval --json`. Raises ChildFailed where it is something else."""
    try:
        return {short(family): _score(entry) for family, entry in json.loads(output)["families"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ChildFailed(f"swarm-node eval printed something unexpected ({error!r}): {output[:500]!r}") from error


def _score(entry: Mapping[str, object]) -> Score:
    match entry:
        case {
            "pass_at_k": {"1": {"value": float() | int() as value, "interval": [low, high]}},
            "tasks": int() as tasks,
        }:
            return Score(pass_at_1=float(value), low=float(low), high=float(high), tasks=tasks)
    raise KeyError("pass_at_k of 1 with its interval, and tasks expected")


def trained_model(plan: NodePlan) -> Path | None:
    """The model in the node's newest checkpoint; None if it never wrote one."""
    models = [path / "model" for path in plan.directory.glob("checkpoints/step-*") if path.name[5:].isdigit()]
    return max(filter(_is_model, models), key=lambda model: int(model.parent.name[5:]), default=None)


def _is_model(path: Path) -> bool:
    return path.is_dir()


Job = TypeVar("Job")


async def _for_each(
    jobs: Mapping[str, Job], do: Callable[[Job], Awaitable[Made]], progress: Progress
) -> dict[str, Made]:
    """At most one per core at a time. The first failure ends all and is raised as it is."""
    slots = asyncio.Semaphore(os.cpu_count() or 1)
    made: dict[str, Made] = {}

    async def run(name: str, job: Job) -> None:
        async with slots:
            made[name] = await do(job)
        progress(len(made) / len(jobs))

    progress(0.0)
    try:
        async with asyncio.TaskGroup() as group:
            for name, job in jobs.items():
                group.create_task(run(name, job))
    except* ChildFailed as failures:
        raise failures.exceptions[0] from None
    return {name: made[name] for name in jobs}
