"""Experiment 1 once more with the paper's eight nodes: what do twice as many peers add?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node.lab.experiment import Comparison, Experiment
from node.lab.experiments.common import LEARNED, LOOK, PASS, REWARD, STEPS
from node.lab.experiments.sharing import FAILED, HALF_THE_RATE, RESULTS, SAPO, mix_arm
from node.lab.settings import Tables

NODES = 8
#: Name -> own and foreign groups, tables, seeds. With four nodes they are in sharing-skills.
MIXES: Mapping[str, tuple[int, int, Tables, Sequence[int] | None]] = {
    "8+0": (8, 0, {}, None),
    "8+0,half-the-rate": (8, 0, HALF_THE_RATE, None),
    "8+24,failed": (8, 24, FAILED, None),
    "sapo-8+0": (8, 0, SAPO, LOOK),
    "sapo-4+4": (4, 4, SAPO, LOOK),
}

EXPERIMENT = Experiment(
    name="swarm-size",
    version=1,
    question="Do twice as many peers teach more?",
    setting=f"{NODES} nodes, two good at each family (pass@1 about 0.5) and poor at the three others (about 0.15),"
    f" {STEPS} steps each, groups of 8 rollouts, tasks drawn uniformly.",
    arms=[
        mix_arm(name, "skills", own, foreign, tables, nodes=NODES, seeds=seeds)
        for name, (own, foreign, tables, seeds) in MIXES.items()
    ],
    comparisons=[
        Comparison("8+24,failed", "8+0"),
        Comparison("8+24,failed", "8+0,half-the-rate"),
        Comparison("sapo-8+0", "8+0"),
        Comparison("sapo-4+4", "sapo-8+0"),
    ],
    metrics=LEARNED | RESULTS,
    plots=[PASS, REWARD],
)
