"""Experiment 2: a value tracker and single rollouts (SPO, arXiv 2509.13232) against groups.

Response times are log-normal, ten to one between the 10th and the 90th percentile: a group is as slow as its slowest
rollout, a single rollout is not. How large a learning rate one stands depends on the number of groups
(docs/experiments/learning-rate.md), so what decides is asked at half of the usual one too.
"""

from __future__ import annotations

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, PASS, PASS_BY_TIME, SINGLE_STEPS, UNIFORM
from node.lab.settings import LR, Tables, arm

#: Sigma of log response times: exp(2 * 1.2816 * 0.9) is 10.
SPREAD = 0.9
#: What decides: the way to a baseline, groups, rollouts per group.
HALVED = {
    "grpo-8x8": ("grpo", 8, 8),
    "spo-8x8": ("spo", 8, 8),
    "spo-32x2": ("spo", 32, 2),
    "spo-64x1": ("spo", 64, 1),
    "spo-32x1": ("spo", 32, 1),
}


def _arm(name: str, advantage: str, groups: int, size: int, steps: int = SINGLE_STEPS, lr: float = LR) -> Arm:
    tables: Tables = {
        "learner": {"lr": lr},
        "advantage": {"type": advantage},
        "sampler": {**UNIFORM, "group_size": size},
        "pool": {"own_groups": groups, "own_capacity": groups, "max_lag": 64},
    }
    return arm(name, world="same", nodes=1, steps=steps, tables=tables, spread=SPREAD)


EXPERIMENT = Experiment(
    name="single-stream",
    version=1,
    question="Is a persistent value tracker a better baseline than the group's own mean, and are groups needed at all?",
    setting=f"One node, {SINGLE_STEPS} steps of 64 rollouts (groups x rollouts per group), tasks that hardly ever come"
    " back, drawn uniformly; own rollouts only.",
    arms=[
        _arm("grpo-8x8", "grpo", 8, 8),
        _arm("rloo-8x8", "rloo", 8, 8),
        _arm("dr_grpo-8x8", "dr_grpo", 8, 8),
        _arm("spo-8x8", "spo", 8, 8),
        _arm("grpo-16x4", "grpo", 16, 4),
        _arm("spo-16x4", "spo", 16, 4),
        _arm("spo-32x2", "spo", 32, 2),
        _arm("spo-64x1", "spo", 64, 1),
        _arm("spo-32x1", "spo", 32, 1),
        _arm("spo-64x1,half-the-steps", "spo", 64, 1, SINGLE_STEPS // 2),
        *(_arm(f"{name},half-the-rate", *way, lr=0.5 * LR) for name, way in HALVED.items()),
    ],
    comparisons=[
        Comparison("rloo-8x8", "grpo-8x8"),
        Comparison("dr_grpo-8x8", "grpo-8x8"),
        Comparison("spo-8x8", "grpo-8x8"),
        Comparison("spo-16x4", "grpo-16x4"),
        Comparison("spo-64x1", "grpo-8x8"),
        Comparison("spo-64x1", "spo-8x8"),
        Comparison("spo-32x1", "grpo-8x8"),
        Comparison("spo-64x1,half-the-steps", "grpo-8x8"),
        *(Comparison(f"{name},half-the-rate", name) for name in HALVED),
        *(Comparison(f"{name},half-the-rate", "grpo-8x8,half-the-rate") for name in HALVED if name != "grpo-8x8"),
        *(Comparison(name, "grpo-8x8,half-the-rate") for name in ("spo-32x2", "spo-64x1", "spo-32x1")),
    ],
    metrics=LEARNED
    | {
        "zero_advantage_share": Metric("rollouts without gradient", ".0%", higher_is_better=False),
        "rollouts": Metric("rollouts", ",.0f", higher_is_better=False),
        "virtual_s": Metric("virtual seconds", ",.0f", higher_is_better=False),
        "value_mse": Metric("squared error of v", ".3f", higher_is_better=False),
    },
    plots=[PASS, PASS_BY_TIME],
)
