"""What should a rollout be worth that was cut off? Where only the last answer counts, one that has answered loses
nothing by going on, and peers learn it from each other."""

from __future__ import annotations

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, NODES, PASS
from node.lab.settings import arm

STEPS = 300
WAYS = ("scored", "failed", "ignored")


def _arm(way: str, foreign: int) -> Arm:
    pool = {"own_groups": 8, "foreign_groups": foreign, "own_capacity": 8}
    tables = {"pool": pool, "learner": {"truncated": way}}
    return arm(f"{way}:8+{foreign}", world="skills", nodes=NODES, steps=STEPS, tables=tables)


EXPERIMENT = Experiment(
    name="truncation",
    version=1,
    question="What should a rollout be worth that was cut off?",
    setting=f"{NODES} nodes, each good at a family of its own, {STEPS} steps of 8 own and up to J foreign groups, tasks"
    " drawn by their promise, responses of at most 24 tokens (answers have 4 to 13).",
    arms=[_arm(way, foreign) for foreign in (0, 24) for way in WAYS],
    comparisons=[
        Comparison(f"{way}:8+{foreign}", f"scored:8+{foreign}")
        for foreign in (0, 24)
        for way in WAYS
        if way != "scored"
    ],
    metrics=LEARNED
    | {
        "own_truncated_share": Metric("cut off", ".1%", higher_is_better=False),
        "own_length": Metric("tokens per response", ".1f", higher_is_better=False),
        "entropy": Metric("entropy", ".2f"),
    },
    plots=[PASS],
)
