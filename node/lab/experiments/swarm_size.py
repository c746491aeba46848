"""Experiment 1 once more with the paper's eight nodes: what do twice as many peers add?"""

from __future__ import annotations

from node.lab.experiment import Comparison, Experiment
from node.lab.experiments.common import LEARNED, LEARNER, LOOK, PASS, REWARD, STEPS
from node.lab.experiments.sharing import RESULTS, SAPO, mix_arm

NODES = 8
#: Name -> own and foreign groups, tables. With four nodes they are in sharing-skills.
MIXES = {
    "8+0": (8, 0, None),
    "8+24,failed": (8, 24, {"learner": LEARNER}),
    "sapo-8+0": (8, 0, SAPO),
    "sapo-4+4": (4, 4, SAPO),
}

EXPERIMENT = Experiment(
    name="swarm-size",
    version=1,
    question="Do twice as many peers teach more?",
    setting=f"{NODES} nodes, two good at each family (pass@1 about 0.5) and poor at the three others (about 0.15),"
    f" {STEPS} steps each, groups of 8 rollouts, tasks drawn uniformly.",
    arms=[
        mix_arm(name, "skills", own, foreign, tables, nodes=NODES, seeds=LOOK)
        for name, (own, foreign, tables) in MIXES.items()
    ],
    comparisons=[
        Comparison("8+24,failed", "8+0"),
        Comparison("sapo-8+0", "8+0"),
        Comparison("sapo-4+4", "sapo-8+0"),
    ],
    metrics=LEARNED | RESULTS,
    plots=[PASS, REWARD],
)
