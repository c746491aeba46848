"""From what was recorded of a swarm to what is compared between arms. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from node.lab.member import NodeRecord
from node.lab.results import Outcome, Record
from node.lab.simulation import SwarmRecord

#: Exams at the end of a run whose mean is the final pass rate: one alone has a standard error of 0.01 over four nodes.
FINAL_EXAMS = 3
FIRST, LAST = slice(0, 1), slice(-FINAL_EXAMS, None)
#: Steps whose mean reward is one point of the curve.
REWARD_BIN = 10
#: Of the predicted rewards in a reliability diagram.
RELIABILITY_BINS = 10
#: Training a token costs about three forward passes' worth of arithmetic, sampling it one.
TRAINING_COST = 3.0


def outcome_of(swarm: SwarmRecord) -> Outcome:
    """Means over nodes, each counting the same."""
    nodes = swarm.nodes
    start, final = _over(nodes, lambda n: _pass(n, FIRST)), _over(nodes, lambda n: _pass(n, LAST))
    rewards = _over(nodes, lambda n: math.fsum(_series(n, "own_reward")))
    steps = _over(nodes, lambda n: len(n.steps))
    summary = {
        "start": start,
        "final": final,
        "gain": final - start,
        "area": _over(nodes, _area),
        "worst": min(_pass(n, LAST) - _pass(n, FIRST) for n in nodes),
        "reward": rewards,
        "reward_gain": rewards - start * steps,
        "sampled_tokens": _over(nodes, lambda n: n.counters["own_tokens"]),
        "trained_tokens": _over(nodes, _trained_tokens),
        "cost": _over(nodes, lambda n: _costs(n)[-1]),
        "rollouts": _over(nodes, lambda n: n.counters["own_rollouts"]),
        "wobble": _over(nodes, _wobble),
        "foreign_groups": _over(nodes, lambda n: n.counters["foreign_groups_trained"]),
        "odd": _over(nodes, lambda n: float(np.mean([exam.marks.odd for exam in n.exams[LAST]]))),
        "virtual_s": _over(nodes, lambda n: n.steps[-1]["time"]),
    }
    summary |= {name: _over(nodes, lambda n, name=name: _mean_of(n, name)) for name in WATCHED}
    summary |= {
        f"{node.name}/{family}/{when}": float(np.mean([exam.rates[family] for exam in node.exams[exams]]))
        for node in nodes
        for family in node.exams[0].rates
        for when, exams in (("start", FIRST), ("final", LAST))
    }
    predictions = np.array([pair for node in nodes for pair in node.predictions])
    summary |= _calibration(predictions)
    return Outcome(summary=summary, curves=_curves(nodes, predictions), records=list(_records(nodes)))


#: Metrics of the learner whose mean over a run is kept.
WATCHED = (
    "zero_advantage_share",
    "own_length",
    "own_truncated_share",
    "own_staleness",
    "log_rho_mean",
    "log_rho_p99",
    "masked_share",
    "ess_share",
    "entropy",
    "grad_norm",
    "foreign_ratio",
    "foreign_masked_share",
    "foreign_gated_share",
    "foreign_reward",
    "guided_share",
    "guidance",
)


def _over(nodes: Sequence[NodeRecord], of: Callable[[NodeRecord], float]) -> float:
    values = [of(node) for node in nodes]
    return float(np.mean([v for v in values if not math.isnan(v)] or [math.nan]))


def _pass(node: NodeRecord, exams: slice) -> float:
    return float(np.mean([mean_pass(exam.rates) for exam in node.exams[exams]]))


def mean_pass(rates: Mapping[str, float]) -> float:
    """Over families, each counting the same."""
    return math.fsum(rates.values()) / len(rates)


def _area(node: NodeRecord) -> float:
    """Mean of pass@1 over the run above its start, by the trapezoidal rule over steps."""
    steps = [exam.step for exam in node.exams]
    rates = [mean_pass(exam.rates) for exam in node.exams]
    return float(np.trapezoid(rates, steps)) / steps[-1] - rates[0] if steps[-1] else 0.0


def _wobble(node: NodeRecord) -> float:
    """Standard deviation of the binned reward around its straight line: learning and forgetting in turns."""
    rewards = _binned(_series(node, "own_reward"))
    if len(rewards) < 3:
        return math.nan
    at = np.arange(len(rewards))
    return float(np.std(rewards - np.polyval(np.polyfit(at, rewards, 1), at)))


def _binned(rewards: Sequence[float]) -> np.ndarray:
    """Means of `REWARD_BIN` steps each; a rest is left out."""
    whole = len(rewards) // REWARD_BIN * REWARD_BIN
    return np.asarray(rewards[:whole]).reshape(-1, REWARD_BIN).mean(axis=1)


def _series(node: NodeRecord, name: str) -> list[float]:
    return [step[name] for step in node.steps if name in step]


def _mean_of(node: NodeRecord, name: str) -> float:
    series = _series(node, name)
    return float(np.mean(series)) if series else math.nan


def _trained_tokens(node: NodeRecord) -> float:
    return math.fsum(_series(node, "own_tokens")) + math.fsum(_series(node, "foreign_tokens"))


def _costs(node: NodeRecord) -> np.ndarray:
    """After each step, in tokens' worth of a forward pass: those sampled for it once, those trained on three times."""
    sampled = [s["own_rollouts"] * s["own_length"] if s.get("own_rollouts") else 0.0 for s in node.steps]
    trained = [s.get("own_tokens", 0.0) + s.get("foreign_tokens", 0.0) for s in node.steps]
    return np.cumsum(np.array(sampled) + TRAINING_COST * np.array(trained))


def _calibration(predictions: np.ndarray) -> dict[str, float]:
    """Of values against the mean rewards of the groups that they were predicted for: mean squared error, mean
    difference, and the expected calibration error over ten bins (Naeini et al. 2015)."""
    if not len(predictions):
        return {"value_mse": math.nan, "value_bias": math.nan, "value_ece": math.nan}
    v, r = predictions[:, 0], predictions[:, 1]
    bins = _reliability(predictions)
    weights = np.array([count for _, _, count in bins])
    gaps = np.array([abs(value - reward) for value, reward, _ in bins])
    return {
        "value_mse": float(np.mean((r - v) ** 2)),
        "value_bias": float(np.mean(r - v)),
        "value_ece": float(np.average(gaps, weights=weights)),
    }


def _reliability(predictions: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean value, mean reward, groups) of each bin that has any."""
    index = np.minimum((predictions[:, 0] * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    parts = [predictions[index == b] for b in range(RELIABILITY_BINS)]
    return [(float(p[:, 0].mean()), float(p[:, 1].mean()), len(p)) for p in parts if len(p)]


def _curves(nodes: Sequence[NodeRecord], predictions: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    exams = list(zip(*(node.exams for node in nodes), strict=False))
    rates = [float(np.mean([mean_pass(exam.rates) for exam in column])) for column in exams]
    seconds = [float(np.mean([exam.time for exam in column])) for column in exams]
    costs = [0.0, *np.mean([_costs(n)[: min(len(m.steps) for m in nodes)] for n in nodes], axis=0)]
    rewards = [_series(node, "own_reward") for node in nodes]
    length = min(map(len, rewards))
    binned = np.mean([_binned(series[:length]) for series in rewards], axis=0)
    return {
        "pass": [(float(column[0].step), rate) for column, rate in zip(exams, rates, strict=True)],
        "pass_by_time": list(zip(seconds, rates, strict=True)),
        "pass_by_cost": [(float(costs[column[0].step]), rate) for column, rate in zip(exams, rates, strict=True)],
        "reward": [((i + 1.0) * REWARD_BIN, float(reward)) for i, reward in enumerate(binned)],
        "reliability": [(v, r) for v, r, _ in _reliability(predictions)] if len(predictions) else [],
    }


def _records(nodes: Sequence[NodeRecord]) -> list[Record]:
    return [{"node": node.name} | step for node in nodes for step in node.steps]
