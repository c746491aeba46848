"""An experiment whose runs take no time: good ones, one that fails, one that dies, and one that never ends."""

from __future__ import annotations

import math
import os
import signal

from node.lab.experiment import Arm, Comparison, Experiment, Metric, Plot
from node.lab.results import Outcome


def outcome(gain: float, seed: int) -> Outcome:
    """pass@1 rises to 0.5 + gain, and a little more for every seed."""
    end = 0.5 + gain + seed / 100
    curve = [(float(step), end * (1 - math.exp(-step / 10))) for step in range(0, 41, 2)]
    return Outcome(
        summary={"pass": end, "loss": 2 - end},
        curves={"pass": curve},
        records=[{"step": int(step), "node": "alder", "pass": value} for step, value in curve],
    )


def raises(seed: int) -> Outcome:
    raise ZeroDivisionError(f"nothing divides by seed {seed} - 1")


def dies(seed: int) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return outcome(0.0, seed)


def never_ends(seed: int) -> Outcome:
    signal.pause()
    return outcome(0.0, seed)


EXPERIMENT = Experiment(
    name="fake",
    version=1,
    question="Does gain help?",
    setting="No model, no tokens, no time.",
    arms=[
        Arm("plain", {"gain": 0.0}, lambda seed: outcome(0.0, seed)),
        Arm("gain=0.2", {"gain": 0.2}, lambda seed: outcome(0.2, seed)),
        Arm("raises", {}, raises),
        Arm("dies", {}, dies),
        Arm("never/ends", {}, never_ends),
        Arm("forgets", {}, lambda seed: Outcome(summary={"pass": 1.0}, curves={})),
    ],
    comparisons=[Comparison("gain=0.2", "plain")],
    metrics={"pass": Metric("pass@1", ".1%", decides=True), "loss": Metric("loss", ".2f", higher_is_better=False)},
    plots=[Plot("pass", "own steps", "held-out pass@1", percent=True)],
    seeds=(1, 2, 3),
    screening_seeds=(101,),
)
