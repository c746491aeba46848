"""Experiment: a third of what a node receives is hostile, of every kind that passes the checks. What is lost by it?

What a check refuses (forged signatures, replays, stale floods, wrong tasks) never gets so far as to be learned from,
and is tested over the network instead (tests/test_adversaries.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from node.lab.adversary import BODIES, Attack
from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.ablation import DEFAULT
from node.lab.experiments.common import LEARNED, LOOK, PASS, UNIFORM
from node.lab.experiments.novelty import GATES
from node.lab.experiments.poison import LIKELY, UNLIKELY
from node.lab.settings import Tables, arm

STEPS = 120
HONEST = 3
SHARE = 0.3
#: Groups per virtual second of an honest node, and their rollouts.
HONEST_RATE, ROLLOUTS = 32.0, 2
#: Every text with either lie about its likelihood; each is an identity.
KINDS = [(body, logprob) for body in BODIES for logprob in (LIKELY, UNLIKELY)]
GATE = "own"

OPEN: Tables = {**DEFAULT, "sampler": {**DEFAULT["sampler"], **UNIFORM}}
#: As in `PoolConfig`, which the laboratory's other arms do without (`IMPLIED` in settings.py). The limits on claimed
#: log-probabilities stay off: whoever claims less passes them, and nothing else would change.
GUARDS = {"newcomer_share": 0.25, "lineage_share": 0.5, "distinct": True, "max_length_ratio": 4.0}
GUARDED: Tables = {**OPEN, "pool": {**OPEN["pool"], **GUARDS}}
GATED: Tables = {**GUARDED, "foreign_gate": GATES[GATE]}


def attacks() -> list[Attack]:
    """SHARE of the groups that a node receives are hostile, as many of each kind."""
    rate = SHARE / (1 - SHARE) * HONEST_RATE * (HONEST - 1) / len(KINDS)
    return [Attack(body=body, logprob=logprob, interval_s=1 / rate, rollouts=ROLLOUTS) for body, logprob in KINDS]


def _arm(name: str, tables: Tables, hostile: list[Attack], seeds: Sequence[int] | None = None) -> Arm:
    return arm(name, world="skills", nodes=HONEST, steps=STEPS, tables=tables, attacks=hostile, seeds=seeds)


EXPERIMENT = Experiment(
    name="hostile",
    version=1,
    question=f"What do honest nodes lose when {SHARE:.0%} of what they receive is hostile, of every kind?",
    setting=f"{HONEST} honest nodes, each good at a family of its own, {STEPS} steps of 32 own groups of 2 and up to 96"
    f" foreign ones, tasks drawn uniformly; {len(KINDS)} hostile identities: {', '.join(BODIES)} texts, said to be"
    " likely or unlikely. Guarded: a quarter for newcomers, no copies, no needless length, as the daemon has it.",
    arms=[
        _arm("clean", GUARDED, []),
        _arm("hostile", GUARDED, attacks(), LOOK),
        _arm("hostile, no guards", OPEN, attacks(), LOOK),
        _arm("clean, gated", GATED, [], LOOK),
        _arm("hostile, gated", GATED, attacks()),
    ],
    comparisons=[
        Comparison("hostile", "clean"),
        Comparison("hostile, no guards", "clean"),
        Comparison("clean, gated", "clean"),
        Comparison("hostile, gated", "clean"),
    ],
    metrics=LEARNED
    | {
        "odd": Metric("answers in the attackers' style", ".1%", higher_is_better=False),
        "foreign_gated_share": Metric("foreign rollouts gated", ".0%"),
    },
    plots=[PASS],
)
