"""SAPO's table (arXiv 2509.08721 section 4): own and foreign groups per step, where peers differ in one thing.

Own groups cost sampling, foreign ones do not: I + J = 8 trains on as much as 8+0 and samples less; 8+J samples as much
and trains on more. The whole table is made where there is most to gain, among nodes of different skills; elsewhere what
the paper recommends and what we do.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import COSTS, LEARNED, LEARNER, LOOK, NODES, PASS, PASS_BY_COST, REWARD, STEPS, UNIFORM
from node.lab.settings import LR, Tables, arm

#: The paper's arm: GRPO's advantage, PPO's clip, peers' groups as if they were one's own.
SAPO: Tables = {
    "advantage": {"type": "grpo"},
    "objective": {"type": "ppo_clip", "low": 0.2, "high": 0.28},
    "foreign": {"type": "sapo_plain", "low": 0.2, "high": 0.28},
}

#: A response that was cut off counts as failed; the same at the rate at which nodes with groups of 8 learn best alone.
FAILED: Tables = {"learner": LEARNER}
HALF_THE_RATE: Tables = {"learner": {**LEARNER, "lr": 0.5 * LR}}

#: Pool: every own group, and as many of others' on top, which cost no sampling.
SHARED = {"own_groups": 8, "foreign_groups": 8, "own_capacity": 8}

#: Of a run's summary, beside what was learned.
RESULTS = {
    "reward": Metric("cumulative reward", ".1f"),
    "reward_gain": Metric("cumulative gain", ".1f"),
    "worst": Metric("gain of the worst node", ".1%"),
    "own_truncated_share": Metric("cut off", ".1%", higher_is_better=False),
} | COSTS

Mixes = Sequence[tuple[int, int]]
"""Own and foreign groups."""
WHOLE: tuple[Mixes, Mixes] = (
    ((8, 0), (6, 2), (4, 4), (2, 6), (8, 8), (8, 24)),
    ((8, 0), (6, 2), (4, 4), (2, 6)),
)
ENDS: tuple[Mixes, Mixes] = (((8, 0), (8, 24)), ((8, 0), (4, 4)))
BETWEEN: Mixes = ((6, 2), (2, 6))
"""Which two seeds place beside their neighbours."""


def sharing(world: str, question: str, setting: str, mixes: tuple[Mixes, Mixes] = ENDS) -> Experiment:
    """`mixes`: ours, and those of the paper's arm, which is only looked at where its table is not the whole one.

    One of ours counts a response that was cut off as failed: where only the last answer counts, one that has answered
    loses nothing by going on, and peers learn it from each other.

    Nodes alone learn best at half of the usual rate (docs/experiments/learning-rate.md, which has it for the whole
    table's world), so they are compared with at that one too."""
    ours = [mix_arm(f"{i}+{j}", world, i, j, seeds=LOOK if (i, j) in BETWEEN else None) for i, j in mixes[0]]
    failed = mix_arm("8+24,failed", world, 8, 24, FAILED)
    best_alone = [mix_arm("8+0,half-the-rate", world, 8, 0, HALF_THE_RATE)] if mixes == ENDS else []
    theirs = [
        mix_arm(f"sapo-{i}+{j}", world, i, j, SAPO, seeds=LOOK if mixes == ENDS or (i, j) in BETWEEN else None)
        for i, j in mixes[1]
    ]
    return Experiment(
        name=f"sharing-{world}",
        version=1,
        question=question,
        setting=f"{setting} {NODES} nodes, {STEPS} steps each, groups of 8 rollouts, tasks drawn uniformly.",
        arms=[*ours, failed, *best_alone, *theirs],
        comparisons=[
            *(Comparison(each.name, ours[0].name) for each in [*ours[1:], failed]),
            *(Comparison(each.name, theirs[0].name) for each in theirs[1:]),
            Comparison(ours[0].name, theirs[0].name),
            Comparison(failed.name, ours[-1].name),
            *(Comparison(failed.name, each.name) for each in best_alone),
        ],
        metrics=LEARNED | RESULTS,
        plots=[PASS, PASS_BY_COST, REWARD],
    )


def mix_arm(
    name: str,
    world: str,
    own: int,
    foreign: int,
    tables: Tables | None = None,
    *,
    nodes: int = NODES,
    seeds: Sequence[int] | None = None,
) -> Arm:
    pool = {"own_groups": own, "foreign_groups": foreign, "own_capacity": own}
    tables = {**(tables or {}), "sampler": UNIFORM, "pool": pool}
    return arm(name, world=world, nodes=nodes, steps=STEPS, tables=tables, seeds=seeds)
