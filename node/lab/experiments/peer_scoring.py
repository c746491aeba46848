"""Experiment 9: is a stronger peer's view of our own tokens worth a message on the wire?"""

from __future__ import annotations

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, LEARNER, LOOK, NODES, PASS, STEPS, UNIFORM
from node.lab.scoring import Scoring
from node.lab.settings import Tables, arm

#: World, and foreign groups per step beside 8 own ones.
CASES = (("skills", 0), ("skills", 8), ("tokenizers", 8))
GUIDED: Tables = {"guidance": {"type": "peer_scores", "weight": 0.5, "clip": 1.0, "bound": 0.5}}
HONEST = Scoring(latency_s=1.0)
LIARS = Scoring(latency_s=1.0, liars=NODES // 2)
WAYS = (("", None), (":scored", HONEST))


def _arm(world: str, foreign: int, how: str = "", scoring: Scoring | None = None) -> Arm:
    pool = {"own_groups": 8, "foreign_groups": foreign, "own_capacity": 8}
    tables = {"sampler": UNIFORM, "learner": LEARNER, "pool": pool, **(GUIDED if scoring else {})}
    name, seeds = f"{world}:8+{foreign}{how}", None if (world, foreign) == ("skills", 8) else LOOK
    return arm(name, world=world, nodes=NODES, steps=STEPS, tables=tables, scoring=scoring, seeds=seeds)


EXPERIMENT = Experiment(
    name="peer-scoring",
    version=1,
    question="Does a stronger peer's view of our own tokens teach us anything, and what does a lying one spoil?",
    setting=f"{NODES} nodes, {STEPS} steps of 8 own and up to 8 foreign groups, tasks drawn uniformly; each is good at"
    " a family of its own (skills), or they have two tokenizers (tokenizers). Own groups are scored by the peer with"
    " the best rewards on the task's source, if they are above our own value; half of the peers may be liars.",
    arms=[
        *(_arm(world, foreign, how, scoring) for world, foreign in CASES for how, scoring in WAYS),
        _arm("skills", 8, ":liars", LIARS),
    ],
    comparisons=[
        *(Comparison(f"{world}:8+{foreign}:scored", f"{world}:8+{foreign}") for world, foreign in CASES),
        *(Comparison("skills:8+8:liars", f"skills:8+8{how}") for how, _ in WAYS),
    ],
    metrics=LEARNED
    | {
        "guided_share": Metric("own rollouts scored", ".0%"),
        "guidance": Metric("change of a token's advantage", ".2f"),
    },
    plots=[PASS],
)
