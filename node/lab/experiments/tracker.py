"""Experiment 2, second part: which memory makes the best baseline where hardly any task comes back?"""

from __future__ import annotations

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, PASS, RELIABILITY, SINGLE_STEPS, UNIFORM
from node.lab.settings import arm

#: (groups, rollouts per group): with single rollouts, the tracker is all the baseline there is.
SIZES = ((8, 8), (64, 1))
OTHERS = ("prompt", "source", "visits")


def _arm(tracker: str, groups: int, size: int) -> Arm:
    tables = {"sampler": {**UNIFORM, "group_size": size}, "pool": {"own_groups": groups, "own_capacity": groups}}
    return arm(
        f"{tracker}:{groups}x{size}",
        world="same",
        nodes=1,
        steps=SINGLE_STEPS,
        tables=tables,
        tracker="" if tracker == "ours" else tracker,
    )


EXPERIMENT = Experiment(
    name="tracker",
    version=1,
    question="Do the hierarchy and the event time of the value tracker pay?",
    setting=f"One node, {SINGLE_STEPS} steps of 64 rollouts (groups x rollouts per group), own rollouts only. Ours:"
    " prompt in cell in source, on event time. Prompt: SPO's, every prompt by itself. Source: one mean per source."
    " Visits: the hierarchy, but outcomes fade with every further one instead of with every update.",
    arms=[_arm(tracker, *size) for size in SIZES for tracker in ("ours", *OTHERS)],
    comparisons=[
        Comparison(f"ours:{groups}x{size}", f"{other}:{groups}x{size}") for groups, size in SIZES for other in OTHERS
    ],
    metrics=LEARNED
    | {
        "value_mse": Metric("squared error of v", ".4f", higher_is_better=False),
        "value_bias": Metric("mean r - v", ".3f"),
        "value_ece": Metric("calibration error", ".3f", higher_is_better=False),
    },
    plots=[PASS, RELIABILITY],
    panels=[[f"{tracker}:{groups}x{size}" for tracker in ("ours", *OTHERS)] for groups, size in SIZES],
)
