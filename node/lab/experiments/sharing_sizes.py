"""Experiment 1: sharing, world "sizes"."""

from __future__ import annotations

from node.lab.experiments.sharing import sharing

EXPERIMENT = sharing(
    "sizes",
    question="Does sharing help nodes whose models differ in size?",
    setting="Middling models of 0.12, 0.26, 0.46 and 0.72 million parameters, made apart.",
)
