"""Experiment 9a: a share of one's own sampling is spent where one is strong and the swarm is weak."""

from __future__ import annotations

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import COSTS, LEARNED, LEARNER, LOOK, NODES, PASS, STEPS
from node.lab.settings import arm

SHARES = (0.0, 0.25, 0.5, 0.75)
WORLDS = ("skills", "same")


def _arm(world: str, share: float) -> Arm:
    pool = {"own_groups": 8, "foreign_groups": 24, "own_capacity": 8}
    tables = {"pool": pool, "sampler": {"for_swarm": share}, "learner": LEARNER}
    seeds = LOOK if world == "same" else None  # where nobody has an advantage
    return arm(f"{world}:{share:g}", world=world, nodes=NODES, steps=STEPS, tables=tables, seeds=seeds)


EXPERIMENT = Experiment(
    name="comparative-advantage",
    version=1,
    question="Does it pay to sample what one is good at and the others are not?",
    setting=f"{NODES} nodes, {STEPS} steps of 8 own and up to 24 foreign groups; a share of the picks is made with"
    " weight v (1 - mean v of the swarm), the rest by promise.",
    arms=[_arm(world, share) for world in WORLDS for share in SHARES],
    comparisons=[Comparison(f"{world}:{share:g}", f"{world}:0") for world in WORLDS for share in SHARES[1:]],
    metrics=LEARNED
    | {"worst": Metric("gain of the worst node", ".1%"), "foreign_groups": Metric("foreign groups", ",.0f")}
    | COSTS,
    plots=[PASS],
)
