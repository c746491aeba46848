"""Experiment 1: sharing, world "skills"."""

from __future__ import annotations

from node.lab.experiments.sharing import WHOLE, sharing

EXPERIMENT = sharing(
    "skills",
    question="Does sharing help nodes that are good at different tasks?",
    setting="Node i's model is good at family i (pass@1 about 0.5) and poor at the three others (about 0.15).",
    mixes=WHOLE,
)
