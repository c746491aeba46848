"""Experiment 8: more than one update per batch, and what ReMix (arXiv 2507.06892) does about its price.

The experiments' usual learning rate is too large for this node (docs/experiments/learning-rate.md), the more so with
more than one update: asked again at a quarter of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, LOOK, PASS, SINGLE_STEPS, UNIFORM
from node.lab.settings import LR, arm

UPDATES = (1, 2, 4)
#: By the number of updates, at a quarter of the rate.
SEEDS = {1: None, 2: None, 4: LOOK}
QUARTER = 0.25 * LR
OBJECTIVES: dict[str, dict[str, object] | None] = {
    "DPPO-TV": None,
    "PPO": {"type": "ppo_clip", "low": 0.2, "high": 0.28},
    "ReMix": {"type": "remix"},
}
REINCARNATE_EVERY = 50


def _arm(name: str, updates: int, objective: str, seeds: Sequence[int] | None, **learner: object) -> Arm:
    chosen = OBJECTIVES[objective]
    changes = {} if chosen is None else {"objective": chosen}
    return arm(
        name,
        world="same",
        nodes=1,
        steps=SINGLE_STEPS,
        tables={"sampler": UNIFORM, "learner": {"updates_per_batch": updates, **learner}, **changes},
        seeds=seeds,
    )


EXPERIMENT = Experiment(
    name="reuse",
    version=1,
    question="Does it pay to update more than once per batch?",
    setting=f"One node, {SINGLE_STEPS} batches of 8 groups of 8 rollouts, tracker baseline, tasks drawn uniformly;"
    " quarter: at a quarter of the learning rate.",
    arms=[
        *(_arm(f"{name}-x{n}", n, name, LOOK) for name in OBJECTIVES for n in UPDATES),
        *(_arm(f"ReMix-x{n},reincarnated", n, "ReMix", LOOK, reincarnate_every=REINCARNATE_EVERY) for n in UPDATES),
        *(_arm(f"{name}-x{n},quarter", n, name, SEEDS[n], lr=QUARTER) for name in OBJECTIVES for n in UPDATES),
        *(
            _arm(
                f"ReMix-x{n},reincarnated,quarter",
                n,
                "ReMix",
                SEEDS[n],
                lr=QUARTER,
                reincarnate_every=REINCARNATE_EVERY,
            )
            for n in UPDATES[1:]
        ),
    ],
    comparisons=[
        *(Comparison(f"{name}-x{n}", f"{name}-x1") for name in OBJECTIVES for n in UPDATES[1:]),
        *(Comparison(f"ReMix-x{n}", f"DPPO-TV-x{n}") for n in UPDATES),
        *(Comparison(f"ReMix-x{n},reincarnated", f"ReMix-x{n}") for n in UPDATES),
        *(Comparison(f"{name}-x{n},quarter", f"{name}-x1,quarter") for name in OBJECTIVES for n in UPDATES[1:]),
        *(Comparison(f"ReMix-x{n},quarter", f"DPPO-TV-x{n},quarter") for n in UPDATES),
        *(Comparison(f"ReMix-x{n},reincarnated,quarter", f"ReMix-x{n},quarter") for n in UPDATES[1:]),
    ],
    metrics=LEARNED
    | {
        "entropy": Metric("entropy", ".2f"),
        "log_rho_p99": Metric("99th percentile of log rho", ".2f", higher_is_better=False),
        "masked_share": Metric("tokens masked", ".1%", higher_is_better=False),
        "trained_tokens": Metric("tokens per pass", ",.0f"),
    },
    plots=[PASS],
    panels=[
        *([f"{name}-x{n}{rate}" for rate in ("", ",quarter") for n in UPDATES] for name in OBJECTIVES),
        [f"ReMix-x{n}{changed}" for changed in (",reincarnated", ",reincarnated,quarter") for n in UPDATES[1:]],
    ],
)
