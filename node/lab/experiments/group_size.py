"""Experiment 2, third part: how many rollouts of one task, in a swarm? The tracker needs none beside it, but a group
is what is signed, sent, checked and prefilled."""

from __future__ import annotations

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import COSTS, LEARNED, LOOK, NODES, PASS, STEPS, UNIFORM
from node.lab.settings import arm

ROLLOUTS = 64
#: Groups of 8 are 8+0 and 8+24 of sharing-skills, with the same seeds.
SIZES = (4, 2, 1)
CHOSEN = 2
HERE = SIZES.index(CHOSEN)  # in ALONE and SHARED
#: Foreign groups for each own one: all that the others make.
PEERS = NODES - 1


def _arm(size: int, shared: bool) -> Arm:
    own = ROLLOUTS // size
    foreign = PEERS * own if shared else 0
    pool = {"own_groups": own, "foreign_groups": foreign, "own_capacity": own, "foreign_capacity": 32 * own}
    tables = {"pool": pool, "sampler": {**UNIFORM, "group_size": size}}
    seeds = None if size == CHOSEN else LOOK
    return arm(f"{own}x{size}+{foreign}", world="skills", nodes=NODES, steps=STEPS, tables=tables, seeds=seeds)


ALONE = [_arm(size, shared=False) for size in SIZES]
SHARED = [_arm(size, shared=True) for size in SIZES]

EXPERIMENT = Experiment(
    name="group-size",
    version=1,
    question="How many rollouts should a group have, in a swarm?",
    setting=f"{NODES} nodes, each good at a family of its own, {STEPS} steps of {ROLLOUTS} own rollouts (groups x"
    " rollouts per group) and up to J foreign groups, tasks drawn uniformly.",
    arms=[*ALONE, *SHARED],
    comparisons=[
        *(Comparison(shared.name, alone.name) for shared, alone in zip(SHARED, ALONE, strict=True)),
        *(Comparison(other.name, arms[HERE].name) for arms in (ALONE, SHARED) for other in arms if other != arms[HERE]),
    ],
    metrics=LEARNED
    | {"reward_gain": Metric("cumulative gain", ".1f"), "value_mse": Metric("error of v", ".3f")}
    | COSTS,
    plots=[PASS],
)
