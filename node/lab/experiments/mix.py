"""Experiment 6: how much of others' experience, and when?"""

from __future__ import annotations

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import COSTS, LEARNED, LEARNER, LOOK, NODES, PASS, REWARD, UNIFORM
from node.lab.settings import arm

#: Longer than elsewhere: oscillation and forgetting take their time.
STEPS = 240
SHARES: dict[str, dict[str, object]] = {
    "fixed": {"type": "fixed"},
    "scheduled": {"type": "scheduled", "start_step": STEPS // 3, "end_step": STEPS, "final_groups": 1},
    "useful": {"type": "useful"},
    "guarded": {"type": "guarded"},
}


def _arm(name: str, own: int, foreign: int, share: str) -> Arm:
    pool = {"own_groups": own, "foreign_groups": foreign, "own_capacity": own, "share": SHARES[share]}
    tables = {"sampler": UNIFORM, "learner": LEARNER, "pool": pool}
    # the guard found nothing to act upon in two seeds; of the mixes the one with more own groups is the better one
    seeds = LOOK if share == "guarded" or own < foreign else None
    return arm(name, world="skills", nodes=NODES, steps=STEPS, tables=tables, seeds=seeds)


MIXES = ((4, 4), (2, 6))

EXPERIMENT = Experiment(
    name="mix",
    version=1,
    question="Should the share of foreign experience be fixed, scheduled, or follow its use?",
    setting=f"{NODES} nodes, each good at a family of its own, {STEPS} steps of I own and up to J foreign groups, tasks"
    " drawn uniformly.",
    arms=[_arm("8+0", 8, 0, "fixed"), *(_arm(f"{i}+{j}:{share}", i, j, share) for i, j in MIXES for share in SHARES)],
    comparisons=[
        *(Comparison(f"{i}+{j}:fixed", "8+0") for i, j in MIXES),
        *(Comparison(f"{i}+{j}:{share}", f"{i}+{j}:fixed") for i, j in MIXES for share in SHARES if share != "fixed"),
    ],
    metrics=LEARNED
    | {
        "wobble": Metric("wobble of the reward", ".3f", higher_is_better=False),
        "foreign_groups": Metric("foreign groups", ",.0f"),
    }
    | COSTS,
    plots=[PASS, REWARD],
)
