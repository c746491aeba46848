"""Experiment 8: more than one update per batch, and what ReMix (arXiv 2507.06892) does about its price."""

from __future__ import annotations

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, LOOK, PASS, SINGLE_STEPS, UNIFORM
from node.lab.settings import arm

UPDATES = (1, 2, 4)
RUINOUS = 4
"""Updates after which nothing is left of any policy: two seeds say so."""


def _arm(name: str, updates: int, objective: dict[str, object] | None = None, **learner: object) -> Arm:
    changes = {} if objective is None else {"objective": objective}
    return arm(
        name,
        world="same",
        nodes=1,
        steps=SINGLE_STEPS,
        tables={"sampler": UNIFORM, "learner": {"updates_per_batch": updates, **learner}, **changes},
        seeds=LOOK if updates == RUINOUS else None,
    )


EXPERIMENT = Experiment(
    name="reuse",
    version=1,
    question="Does it pay to update more than once per batch?",
    setting=f"One node, {SINGLE_STEPS} batches of 8 groups of 8 rollouts, tracker baseline, tasks drawn uniformly.",
    arms=[
        *(_arm(f"DPPO-TV-x{n}", n) for n in UPDATES),
        *(_arm(f"PPO-x{n}", n, {"type": "ppo_clip", "low": 0.2, "high": 0.28}) for n in UPDATES),
        *(_arm(f"ReMix-x{n}", n, {"type": "remix"}) for n in UPDATES),
        *(_arm(f"ReMix-x{n},reincarnated", n, {"type": "remix"}, reincarnate_every=50) for n in UPDATES),
    ],
    comparisons=[
        *(Comparison(f"{name}-x{n}", f"{name}-x1") for name in ("DPPO-TV", "PPO", "ReMix") for n in UPDATES[1:]),
        *(Comparison(f"ReMix-x{n}", f"DPPO-TV-x{n}") for n in UPDATES),
        *(Comparison(f"ReMix-x{n},reincarnated", f"ReMix-x{n}") for n in UPDATES),
    ],
    metrics=LEARNED
    | {
        "entropy": Metric("entropy", ".2f"),
        "log_rho_p99": Metric("99th percentile of log rho", ".2f", higher_is_better=False),
        "masked_share": Metric("tokens masked", ".1%", higher_is_better=False),
        "trained_tokens": Metric("tokens per pass", ",.0f"),
    },
    plots=[PASS],
)
