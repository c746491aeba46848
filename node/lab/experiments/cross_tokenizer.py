"""Experiment 5: how far may a peer's tokens be from ours, when its tokenizer is another one?"""

from __future__ import annotations

from node.lab.experiment import Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, LEARNER, LOOK, NODES, PASS, STEPS, UNIFORM
from node.lab.experiments.sharing import SHARED
from node.lab.settings import arm

RULES: dict[str, dict[str, object]] = {
    "none": {"type": "receiver_baseline"},
    "sequence": {"type": "rec_oneside", "floor": 0.8, "negative_floor": 0.9},
    "sequence-loose": {"type": "rec_oneside", "floor": 0.5, "negative_floor": 0.9},
    "chunk": {"type": "chunk_aligned", "chunk_low": 0.5, "chunk_high": 5.0},
    "chunk-loose": {"type": "chunk_aligned", "chunk_low": 0.1, "chunk_high": 10.0},
}

#: With every seed; the others fell behind "none" in both of two.
DECIDING = ("none", "sequence-loose")

EXPERIMENT = Experiment(
    name="cross-tokenizer",
    version=1,
    question="Is a likelihood ratio across tokenizers worth its trouble, by sequence or by chunk?",
    setting=f"{NODES} nodes, two tokenizers, {STEPS} steps of 8 own and up to 8 foreign groups, tasks drawn uniformly.",
    arms=[
        arm("alone", world="tokenizers", nodes=NODES, steps=STEPS, tables={"sampler": UNIFORM, "learner": LEARNER}),
        *(
            arm(
                name,
                world="tokenizers",
                nodes=NODES,
                steps=STEPS,
                tables={"sampler": UNIFORM, "learner": LEARNER, "pool": SHARED, "foreign": rule},
                seeds=None if name in DECIDING else LOOK,
            )
            for name, rule in RULES.items()
        ),
    ],
    comparisons=[Comparison(name, "alone") for name in RULES]
    + [Comparison(name, "none") for name in RULES if name != "none"],
    metrics=LEARNED
    | {
        "foreign_ratio": Metric("s of peers' rollouts", ".2f"),
        "foreign_masked_share": Metric("foreign tokens masked", ".0%", higher_is_better=False),
    },
    plots=[PASS],
)
