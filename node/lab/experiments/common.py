"""What the experiments' tables and plots have in common."""

from __future__ import annotations

from node.lab.experiment import Metric, Plot

#: Of a run's summary (node/lab/summary.py), in the order of a table's columns.
LEARNED = {
    "start": Metric("start", ".1%"),
    "final": Metric("held-out pass@1", ".1%", decides=True),
    "area": Metric("mean gain over the run", ".1%"),
}
COSTS = {
    "sampled_tokens": Metric("tokens sampled", ",.0f", higher_is_better=False),
    "trained_tokens": Metric("tokens trained on", ",.0f", higher_is_better=False),
}
PASS = Plot("pass", "own steps", "held-out pass@1, mean over nodes", percent=True)
PASS_BY_COST = Plot("pass_by_cost", "tokens sampled + 3 x tokens trained on, per node", "held-out pass@1", percent=True)
PASS_BY_TIME = Plot("pass_by_time", "virtual seconds", "held-out pass@1", percent=True)
RELIABILITY = Plot("reliability", "value before sampling", "mean reward of the group", percent=True, diagonal=True)
REWARD = Plot("reward", "own steps", "mean reward of own rollouts")

NODES = 4
"""Where more add nothing: sharing needs somebody else, and four families have four experts."""
STEPS = 160
SINGLE_STEPS = 200
"""Of experiments with one node."""
LEARNER = {"truncated": "failed"}
"""What the sharing experiments chose: without it some runs unlearn to end their responses, whatever is compared."""
LOOK = (1, 2)
"""Seeds of an arm that is there to be looked at, or whose two say plainly what five would."""
UNIFORM = {"exploration": 1000.0}
"""Sampler: every task as likely as any other, so that rewards of different arms are of the same tasks."""
