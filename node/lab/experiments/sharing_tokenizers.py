"""Experiment 1: sharing, world "tokenizers"."""

from __future__ import annotations

from node.lab.experiments.sharing import sharing

EXPERIMENT = sharing(
    "tokenizers",
    question="Does sharing help nodes whose models have different tokenizers?",
    setting="Middling models, made apart; every second one's tokenizer merges the 16 most frequent pairs of letters.",
)
