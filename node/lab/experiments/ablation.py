"""Experiment 10: the default, with one part at a time taken away or changed. A part that shows no gain and guards
nothing goes."""

from __future__ import annotations

from node.lab.experiment import Comparison, Experiment, Metric
from node.lab.experiments.common import COSTS, LEARNED, LEARNER, LOOK, NODES, PASS, UNIFORM
from node.lab.experiments.cross_tokenizer import RULES
from node.lab.experiments.peer_scoring import GUIDED, HONEST
from node.lab.settings import LR, Tables, arm

#: What the other experiments chose.
DEFAULT: Tables = {
    "sampler": {"group_size": 2},
    "learner": LEARNER,
    "pool": {"own_groups": 32, "foreign_groups": 96, "own_capacity": 32, "foreign_capacity": 1024},
}
#: Shorter than elsewhere: with so many groups a step takes twice as long.
STEPS = 100
#: Switched off, a bound is so wide that nothing reaches it.
NEVER = 1e6

CHANGES: dict[str, Tables] = {
    "no-peers": {"pool": {"foreign_groups": 0}},
    # groups of two hardly ever have a mean to compare with
    "group-baseline": {
        "advantage": {"type": "grpo"},
        "sampler": {"group_size": 4},
        "pool": {"own_groups": 16, "foreign_groups": 48},
    },
    "groups-of-4": {"sampler": {"group_size": 4}, "pool": {"own_groups": 16, "foreign_groups": 48}},
    "no-mask": {"objective": {"type": "dppo_tv", "delta": NEVER, "cap": 2.0, "squared_log_ratio": 1e-3}},
    "no-squared-log-ratio": {"objective": {"type": "dppo_tv", "delta": 0.2, "cap": 2.0, "squared_log_ratio": 0.0}},
    "no-weights": {"objective": {"type": "reinforce"}},
    "no-veto": {"learner": {"opsm_delta": NEVER}},
    "no-filter": {"learner": {"min_advantage": 0.0}},
    "no-warmup": {"learner": {"warmup_steps": 0}},
    "no-clipping": {"learner": {"grad_clip": NEVER}},
    "lr-staleness": {"learner": {"lr_rule": "staleness"}},
    "lr-ess": {"learner": {"lr_rule": "ess"}},
    # two shorter steps instead of one: at its own rate a second update undoes the first (docs/experiments/reuse.md)
    "two-half-updates": {"learner": {"updates_per_batch": 2, "lr": 0.5 * LR}},
    "uniform-tasks": {"sampler": UNIFORM},
    "half-for-swarm": {"sampler": {"for_swarm": 0.5}},
    "one-candidate": {"sampler": {"candidates": 1}},
    "demand-0": {"foreign": {"demand": 0.0}},
    "peers-failures": {"foreign": {"negatives": 1.0}},
    "peers-likelihood": {"foreign": RULES["sequence-loose"]},
    "any-share": {"pool": {"peer_share": 1.0}},
    "cut-off-scored": {"learner": {"truncated": "scored"}},
    "peer-scored": GUIDED,
}

#: Two seeds are enough: of what is plain after two, what was measured elsewhere (weights, mask: staleness; a ratio with
#: the peer: cross-tokenizer; cut-off responses: sharing), what is off, and what guards and so stays whatever it gains.
SETTLED = (
    *("no-peers", "group-baseline", "groups-of-4", "peers-likelihood", "no-mask", "no-weights", "cut-off-scored"),
    *("no-veto", "no-clipping", "any-share", "two-half-updates", "peers-failures"),
)


def tables(change: Tables) -> Tables:
    """The default's, with `change`'s keys over them."""
    return {name: {**DEFAULT.get(name, {}), **change.get(name, {})} for name in {**DEFAULT, **change}}


EXPERIMENT = Experiment(
    name="ablation",
    version=1,
    question="Which parts of the default earn their place?",
    setting=f"{NODES} nodes, each good at a family of its own, {STEPS} steps of 32 own groups of 2 and up to"
    " 96 foreign ones.",
    arms=[
        arm(
            name,
            world="skills",
            nodes=NODES,
            steps=STEPS,
            tables=tables(change),
            scoring=HONEST if "guidance" in change else None,
            seeds=LOOK if name in SETTLED else None,
        )
        for name, change in {"default": {}, **CHANGES}.items()
    ],
    comparisons=[
        *(Comparison(name, "default") for name in CHANGES),
        Comparison("group-baseline", "groups-of-4"),
    ],
    metrics=LEARNED
    | {
        "entropy": Metric("entropy", ".2f"),
        "grad_norm": Metric("gradient norm", ".2f", higher_is_better=False),
    }
    | COSTS,
    plots=[PASS],
    panels=[["default", "no-peers", "groups-of-4", "group-baseline", "peers-likelihood", "no-filter"]],
)
