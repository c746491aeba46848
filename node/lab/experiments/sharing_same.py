"""Experiment 1: sharing, world "same"."""

from __future__ import annotations

from node.lab.experiments.sharing import sharing

EXPERIMENT = sharing(
    "same",
    question="Does sharing help nodes that start alike?",
    setting="All nodes start from the same middling model.",
)
