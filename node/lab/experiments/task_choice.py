"""Experiment 2, third part: does it pay to choose tasks by their values, where some are easy and many too hard?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node.lab.experiment import Arm, Comparison, Experiment
from node.lab.experiments.common import COSTS, LEARNED, LEARNER, LOOK, PASS, SINGLE_STEPS, UNIFORM
from node.lab.settings import arm

#: Sampler: how sources are drawn, and out of how many candidates of one a task is.
WAYS: Mapping[str, Mapping[str, object]] = {
    "by promise, of 4": {},
    "by promise, of 1": {"candidates": 1},
    "by promise, of 16": {"candidates": 16},
    "uniformly": UNIFORM,
}
DEFAULT = "by promise, of 4"


def _arm(name: str, seeds: Sequence[int] | None) -> Arm:
    tables = {
        "sampler": {"group_size": 2, "max_new_tokens": 32, **WAYS[name]},
        "learner": LEARNER,
        "pool": {"own_groups": 32, "own_capacity": 32},
    }
    return arm(name, world="same", nodes=1, steps=SINGLE_STEPS, tables=tables, tasks="uneven", seeds=seeds)


EXPERIMENT = Experiment(
    name="task-choice",
    version=1,
    question="Does it pay to choose tasks by their values?",
    setting=f"One node, {SINGLE_STEPS} steps of 32 groups of 2, own rollouts only, on tasks of all difficulties:"
    " words of 3 to 10 letters, matrices of 2 and 3 rows, 2 to 5 numbers, palindromes of 3 to 9 letters; the model was"
    " shown the shorter half of them. Exams are of all lengths.",
    arms=[_arm(name, LOOK if name.endswith("16") else None) for name in WAYS],
    comparisons=[Comparison(name, DEFAULT) for name in WAYS if name != DEFAULT],
    metrics=LEARNED | COSTS,
    plots=[PASS],
)
