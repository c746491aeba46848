"""Experiment 3: what should peers' outcomes mean for our own values?"""

from __future__ import annotations

from collections.abc import Mapping

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, LEARNER, LOOK, NODES, PASS, RELIABILITY, STEPS, UNIFORM
from node.lab.experiments.sharing import SHARED
from node.lab.settings import arm

WAYS: dict[str, dict[str, object]] = {
    "ignore": {},
    "weigh": {"peers": "weigh"},
    "weigh-fully": {"peers": "weigh", "peer_weight": 1.0},
    "prior": {"peers": "prior"},
}
#: With every seed; the others are ways of weighing that two seeds place between these or beyond.
DECIDING = ("ignore", "weigh")
WORLDS = ("same", "skills")


def _arm(name: str, world: str, tracker: Mapping[str, object], deciding: bool) -> Arm:
    tables = {"sampler": UNIFORM, "learner": LEARNER, "pool": SHARED, "tracker": tracker}
    return arm(name, world=world, nodes=NODES, steps=STEPS, tables=tables, seeds=None if deciding else LOOK)


EXPERIMENT = Experiment(
    name="peers-in-tracker",
    version=1,
    question="Do peers' outcomes make our own values better?",
    setting=f"{NODES} nodes, {STEPS} steps of 8 own and up to 8 foreign groups, tasks drawn uniformly; all start alike"
    " (same) or each is good at a family of its own (skills).",
    arms=[
        _arm(f"{world}:{name}", world, tracker, name in DECIDING) for world in WORLDS for name, tracker in WAYS.items()
    ],
    comparisons=[
        Comparison(f"{world}:{name}", f"{world}:ignore") for world in WORLDS for name in WAYS if name != "ignore"
    ],
    metrics=LEARNED
    | {
        "value_mse": Metric("squared error of v", ".4f", higher_is_better=False, decides=True),
        "value_bias": Metric("mean r - v", ".3f"),
        "value_ece": Metric("calibration error", ".3f", higher_is_better=False),
    },
    plots=[PASS, RELIABILITY],
    panels=[[f"{world}:{name}" for name in WAYS] for world in WORLDS],
)
