"""Experiment 4: how old may one's own rollouts be, under which correction?

Every batch is exactly `lag` policy versions old when it is learned from. Token-level TIS is AReaL's decoupled objective
with cap 2: with one update per batch its PPO ratio is 1. The experiments' usual learning rate is too large for this
node (docs/experiments/learning-rate.md), and old rollouts are where that shows first: what decides is asked again at
a quarter of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, LOOK, PASS, SINGLE_STEPS, UNIFORM
from node.lab.settings import LR, arm

LAGS = (0, 2, 8, 32)
#: And of those that can still do at lag 32 what they could before.
OLDEST = 128
#: With a rule for the learning rate.
RULED_LAGS = (8, 32)
#: Seeds of lags 0 and 32 at the usual rate.
PLAIN = (1, 2, 3)
#: Of the other lags. Not the first two: lags 0 and 32 of those were made on another kind of processor.
BETWEEN = (3,)
#: Of the default at lags 0 and 32 and of what the rules make of that, for the same reason.
RULED_SEEDS = (3, 4, 5)
OBJECTIVES: dict[str, dict[str, object]] = {
    "none": {"type": "reinforce"},
    "token-TIS": {"type": "decoupled_ppo", "cap": 2.0},
    "decoupled-PPO": {"type": "decoupled_ppo", "cap": 5.0},
    "PPO": {"type": "ppo_clip", "low": 0.2, "high": 0.28},
    "IcePop": {"type": "icepop", "least": 0.5, "most": 5.0},
    "DPPO-TV": {"type": "dppo_tv", "delta": 0.2, "cap": 2.0, "squared_log_ratio": 1e-3},
    "CISPO": {"type": "cispo", "cap": 5.0},
    "GSPO": {"type": "gspo", "low": 3e-4, "high": 4e-4},
    "M2PO": {"type": "m2po", "budget": 0.04},
    "VESPO": {"type": "vespo"},
}
DEFAULT = "DPPO-TV"
HARDY = ("PPO", DEFAULT, "M2PO", "VESPO")
#: Of the learning rate.
RULES = ("staleness", "ess")
RULED = [*((name, lag) for lag in RULED_LAGS for name in (DEFAULT, "CISPO")), (DEFAULT, OLDEST)]
QUARTER = 0.25 * LR
#: What staleness costs is the difference of these, with every seed.
DECIDING = (0, 32)
PAIRS = [*((name, lag) for lag in LAGS for name in OBJECTIVES), *((name, OLDEST) for name in HARDY)]
#: At lag 0 every ratio is 1 and every correction the same, up to rounding.
FRESH = f"{DEFAULT},lag=0,quarter"
QUARTER_PAIRS = [
    *((name, 0) for name in ("none", DEFAULT)),
    *((name, lag) for lag in (32, OLDEST) for name in OBJECTIVES),
]
#: Of ten corrections: token-TIS, decoupled PPO and CISPO are nearly alike, and so are IcePop and they.
DRAWN = ("none", "PPO", DEFAULT, "CISPO", "GSPO", "M2PO", "VESPO")
PANELS = [
    [FRESH, *(f"{name},lag=32,quarter" for name in DRAWN)],
    [FRESH, *(f"{name},lag={OLDEST},quarter" for name in DRAWN)],
    [f"{DEFAULT},lag=0", *(f"{name},lag=32" for name in DRAWN)],
]


def _arm(name: str, objective: str, lag: int, seeds: Sequence[int] | None, **learner: object) -> Arm:
    return arm(
        name,
        world="same",
        nodes=1,
        steps=SINGLE_STEPS,
        tables={
            "objective": OBJECTIVES[objective],
            "sampler": UNIFORM,
            "pool": {"max_lag": 1000},
            "learner": learner,
        },
        lag=lag,
        seeds=seeds,
    )


def _seeds(name: str, lag: int, *, ruled: bool = False) -> Sequence[int]:
    if lag not in DECIDING:
        return BETWEEN
    if name != DEFAULT:
        return BETWEEN if ruled else PLAIN
    return RULED_SEEDS if ruled else sorted({*PLAIN, *RULED_SEEDS})


ARMS = [
    *(_arm(f"{name},lag={lag}", name, lag, _seeds(name, lag)) for name, lag in PAIRS),
    *(
        _arm(f"{name},lag={lag},quarter", name, lag, None if lag in DECIDING else LOOK, lr=QUARTER)
        for name, lag in QUARTER_PAIRS
    ),
    *(
        _arm(f"{name},lag={lag},lr={rule}", name, lag, _seeds(name, lag, ruled=True), lr_rule=rule)
        for name, lag in RULED
        for rule in RULES
    ),
]

EXPERIMENT = Experiment(
    name="staleness",
    version=1,
    question="At which age of one's own rollouts does each correction stop learning?",
    setting=f"One node, {SINGLE_STEPS} steps of 8 groups of 8 rollouts, tracker baseline, tasks drawn uniformly;"
    " quarter: at a quarter of the learning rate.",
    arms=ARMS,
    comparisons=[Comparison(f"{name},lag={lag}", f"{name},lag=0") for name, lag in PAIRS if lag]
    + [Comparison(f"{name},lag=32", "none,lag=32") for name in OBJECTIVES if name != "none"]
    + [Comparison(f"{name},lag={lag},quarter", FRESH) for name, lag in QUARTER_PAIRS if (name, lag) != (DEFAULT, 0)]
    + [Comparison(f"{name},lag=32,quarter", "none,lag=32,quarter") for name in OBJECTIVES if name != "none"]
    + [
        Comparison(f"{name},lag={lag},lr={rule}", f"{name},lag={against}")
        for name, lag in RULED
        for rule in RULES
        for against in (0, lag)
    ],
    metrics=LEARNED
    | {
        "masked_share": Metric("tokens masked", ".1%", higher_is_better=False),
        "log_rho_p99": Metric("99th percentile of log rho", ".2f", higher_is_better=False),
        "ess_share": Metric("ESS / tokens", ".2f"),
        "entropy": Metric("entropy", ".2f"),
    },
    plots=[PASS],
    panels=PANELS,
)
