"""Experiment 7, the other side: what hostile peers achieve, over the own-likelihood gate."""

from __future__ import annotations

from collections.abc import Sequence

from node.lab.adversary import BODIES, Attack
from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNED, LEARNER, LOOK, PASS, UNIFORM
from node.lab.experiments.cross_tokenizer import RULES
from node.lab.experiments.novelty import DECIDING, GATES
from node.lab.experiments.sharing import SAPO, SHARED
from node.lab.settings import Tables, arm

STEPS = 120
HONEST = 2
#: Groups per virtual second of an honest node.
HONEST_RATE = 8.0
#: Identities of the attacker: they cost nothing.
IDENTITIES = 3
#: Every gate against one attack, and against none; what is open and what was chosen, against the others.
ATTACKS: tuple[tuple[float, str, Sequence[str]], ...] = (
    (0.1, "poisoned", DECIDING),
    (0.3, "poisoned", tuple(GATES)),
    (0.5, "poisoned", DECIDING),
    (0.5, "degenerate", DECIDING),
    (0.5, "unfounded", DECIDING),
)
LIKELY, UNLIKELY = -0.01, -20.0


def attacks(body: str, share: float, logprob: float = LIKELY) -> list[Attack]:
    """`share` of the groups that a node receives are hostile."""
    rate = share / (1 - share) * HONEST_RATE * (HONEST - 1)
    return [Attack(body=body, logprob=logprob, interval_s=IDENTITIES / rate)] * IDENTITIES


def _arm(name: str, hostile: list[Attack], tables: Tables | None = None, seeds: Sequence[int] | None = LOOK) -> Arm:
    merged = {"sampler": UNIFORM, "learner": LEARNER, "pool": SHARED, **(tables or {})}
    return arm(name, world="skills", nodes=HONEST, steps=STEPS, tables=merged, attacks=hostile, seeds=seeds)


def _gated(name: str, hostile: list[Attack], gate: str) -> Arm:
    ruined = hostile and gate == "open"  # plain after two seeds
    deciding = gate in DECIDING and not ruined
    return _arm(f"{name}:{gate}", hostile, {"foreign_gate": GATES[gate]}, None if deciding else LOOK)


ARMS = [
    arm("alone", world="skills", nodes=HONEST, steps=STEPS, tables={"sampler": UNIFORM, "learner": LEARNER}),
    *(_gated("0%", [], gate) for gate in GATES),
    *(_gated(f"{share:.0%}:{body}", attacks(body, share), gate) for share, body, gates in ATTACKS for gate in gates),
    *(
        _arm(f"50%:{body}:{forged}:sequence", attacks(body, 0.5, logprob), {"foreign": RULES["sequence-loose"]})
        for body in BODIES
        for forged, logprob in (("likely", LIKELY), ("unlikely", UNLIKELY))
    ),
    *(_arm(f"50%:{body}:sapo", attacks(body, 0.5), SAPO) for body in BODIES),
]

EXPERIMENT = Experiment(
    name="poison",
    version=1,
    question="How much do hostile peers spoil, and which gate stops them?",
    setting=f"{HONEST} honest nodes, each good at a family of its own, {STEPS} steps of 8 own and up to 8 foreign"
    f" groups; {IDENTITIES} hostile identities that send right answers in bad texts.",
    arms=ARMS,
    comparisons=[
        *(Comparison(f"0%:{gate}", "alone") for gate in GATES),
        *(Comparison(f"{share:.0%}:{body}:{gate}", f"0%:{gate}") for share, body, gates in ATTACKS for gate in gates),
    ],
    metrics=LEARNED
    | {
        "odd": Metric("answers in the attacker's style", ".1%", higher_is_better=False),
        "foreign_gated_share": Metric("foreign rollouts gated", ".0%"),
    },
    plots=[PASS],
    panels=[
        ["alone", *(f"{attack}:{gate}" for attack in ("0%", "10%:poisoned", "30%:poisoned") for gate in DECIDING)],
        ["alone", *(f"50%:{body}:{gate}" for body in BODIES for gate in DECIDING)],
    ],
)
