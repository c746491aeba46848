"""Experiment 7, one side: what the own-likelihood gate keeps a node from learning."""

from __future__ import annotations

from collections.abc import Sequence

from node.lab.experiment import Comparison, Experiment, Metric
from node.lab.experiments.common import LEARNER, LOOK, PASS, UNIFORM
from node.lab.experiments.sharing import SHARED
from node.lab.settings import arm
from node.lab.worlds import TAUGHT

STEPS = 120
RATES = ("0", "0.05", "0.2")
GATES: dict[str, dict[str, object]] = {
    "open": {"type": "none"},
    "absolute-1": {"type": "absolute", "max_bits_per_byte": 1.0},
    "absolute-2": {"type": "absolute", "max_bits_per_byte": 2.0},
    "absolute-4": {"type": "absolute", "max_bits_per_byte": 4.0},
    "relative-0.5": {"type": "relative", "quantile": 0.5},
    "relative-0.9": {"type": "relative", "quantile": 0.9},
    "own": {"type": "own", "window_bytes": 16, "quantile": 0.95, "slack": 2.0, "window": 512},
    "own-tight": {"type": "own", "window_bytes": 16, "quantile": 0.95, "slack": 1.25, "window": 512},
}
#: No gate, and the one that was chosen: with every seed, but where nobody learns (in the world of 0).
DECIDING = ("open", "own")


def _seeds(rate: str, deciding: bool) -> Sequence[int] | None:
    return None if deciding and rate != "0" else LOOK


EXPERIMENT = Experiment(
    name="novelty",
    version=1,
    question="Which gate still lets a node learn from an expert what it can hardly do itself?",
    setting=f"An expert of one family and a node that begins there at pass@1 0, 0.05 or 0.2; {STEPS} steps of 8 own and"
    " up to 8 foreign groups, tasks drawn uniformly.",
    arms=[
        *(
            arm(
                f"{rate}:alone",
                world=f"apprentices-{rate}",
                nodes=2,
                steps=STEPS,
                tables={"sampler": UNIFORM, "learner": LEARNER},
                seeds=_seeds(rate, deciding=True),
            )
            for rate in RATES
        ),
        *(
            arm(
                f"{rate}:{name}",
                world=f"apprentices-{rate}",
                nodes=2,
                steps=STEPS,
                tables={"sampler": UNIFORM, "learner": LEARNER, "pool": SHARED, "foreign_gate": gate},
                seeds=_seeds(rate, name in DECIDING),
            )
            for rate in RATES
            for name, gate in GATES.items()
        ),
    ],
    comparisons=[
        *(Comparison(f"{rate}:open", f"{rate}:alone") for rate in RATES),
        *(Comparison(f"{rate}:{name}", f"{rate}:open") for rate in RATES for name in GATES if name != "open"),
    ],
    metrics={
        f"node-2/{TAUGHT}/start": Metric("apprentice's start", ".1%"),
        f"node-2/{TAUGHT}/final": Metric("apprentice's pass@1", ".1%", decides=True),
        "final": Metric("both, all families", ".1%"),
        "foreign_gated_share": Metric("foreign rollouts gated", ".0%"),
    },
    plots=[PASS],
    panels=[[f"{rate}:{name}" for name in ("alone", *DECIDING)] for rate in RATES],
)
