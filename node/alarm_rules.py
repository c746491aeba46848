"""The rules that `node/alarms.py` applies: which metric, compared how, and what to tell an operator. Pure.

Some metrics mean nothing by themselves (0.2 nats a token is a lot for one policy and little for another): those are
compared with their own start, the mean of the node's first steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from node.rl.average import Average

#: An average must be further from its threshold than noise would take it once in about a thousand times.
STANDARD_ERRORS = 3.0

#: (moving average, mean at the start or NaN) -> what is compared with the threshold; NaN is beyond nothing.
Signal = Callable[[Average, float], float]


def level(average: Average, start: float) -> float:
    return average.mean


def relative(average: Average, start: float) -> float:
    """To the start; NaN as long as there is none."""
    return average.mean / start if start > 0 else math.nan


def surely_above(average: Average, start: float) -> float:
    """Lower end of the mean's interval: how far above 0 it is, noise taken off."""
    return average.mean - STANDARD_ERRORS * average.standard_error


def surely_below(average: Average, start: float) -> float:
    """How far below 0."""
    return -average.mean - STANDARD_ERRORS * average.standard_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    name: str
    """Also the key of its threshold in the table `alarms`."""
    metric: str
    """Of a step; one that it lacks says nothing."""
    signal: Signal = level
    below: bool = False
    """Whether the bad side is the one below the threshold."""
    text: str
    """What is happening and what can be done. {mean} is the moving average, {value} the signal of it."""

    def beyond(self, value: float, threshold: float) -> bool:
        return value < threshold if self.below else value > threshold

    def milder(self, threshold: float, clearance: float) -> float:
        """Where an alarm ends."""
        return threshold * (1.0 + clearance if self.below else 1.0 - clearance)


RULES: tuple[Rule, ...] = (
    Rule(
        name="log_rho_mean",
        metric="log_rho_mean",
        text="own rollouts are {mean:.2g} nats a token away from the policy that learns from them (alarm above "
        "{threshold:g}): lower pool.max_lag, pool.own_capacity, learner.lr or learner.updates_per_batch",
    ),
    Rule(
        name="log_rho_p99",
        metric="log_rho_p99",
        text="one own token in a hundred is {mean:.2g} nats away from the policy that learns from it (alarm above "
        "{threshold:g}): lower learner.lr or pool.max_lag; if own_staleness is near 0, engine and learner disagree",
    ),
    Rule(
        name="masked_share",
        metric="masked_share",
        text="{mean:.0%} of own tokens are masked (alarm above {threshold:.0%}): the policy moves too far between "
        "sampling and learning; lower learner.lr or pool.max_lag",
    ),
    Rule(
        name="opsm_share",
        metric="opsm_share",
        text="{mean:.0%} of own rollouts are vetoed because they drifted (alarm above {threshold:.0%}): lower "
        "learner.lr or pool.max_lag",
    ),
    Rule(
        name="ess_share",
        metric="ess_share",
        below=True,
        text="own tokens are worth {mean:.0%} of their number (alarm below {threshold:.0%}): few importance weights "
        "decide each step; lower pool.max_lag or learner.lr, or raise pool.own_groups",
    ),
    Rule(
        name="entropy_low",
        metric="entropy",
        signal=relative,
        below=True,
        text="entropy has fallen to {mean:.2g} nats a token, {value:.0%} of its start (alarm below {threshold:.0%}): "
        "the policy hardly explores any more; lower learner.lr, or give it harder tasks",
    ),
    Rule(
        name="entropy_high",
        metric="entropy",
        signal=relative,
        text="entropy has grown to {mean:.2g} nats a token, {value:.0%} of its start (alarm above {threshold:.0%}): "
        "the policy is coming apart; lower learner.lr, or learn less from peers (pool.foreign_groups)",
    ),
    Rule(
        name="length_low",
        metric="own_length",
        signal=relative,
        below=True,
        text="responses have shrunk to {mean:.0f} tokens, {value:.0%} of their start (alarm below {threshold:.0%}): "
        "stale data favours short ones; lower pool.max_lag or pool.foreign_groups, unless short is what you want",
    ),
    Rule(
        name="truncated_share",
        metric="own_truncated_share",
        text="{mean:.0%} of own responses do not end by themselves (alarm above {threshold:.0%}): raise "
        "sampler.max_new_tokens if they are sound; if they ramble, lower learner.lr or pool.foreign_groups",
    ),
    Rule(
        name="grad_norm",
        metric="grad_norm",
        signal=relative,
        text="the gradient's norm has grown to {mean:.2g}, {value:.1f} times its start (alarm above {threshold:g}): "
        "lower learner.lr, or raise pool.own_groups",
    ),
    Rule(
        name="skipped_updates",
        metric="skipped_update",
        text="{mean:.0%} of steps change nothing, because their gradient is not finite (alarm above {threshold:.0%}): "
        "lower learner.lr, or use policy.dtype = float32",
    ),
    Rule(
        name="calibration_low",
        metric="calibration",
        signal=surely_below,
        text="own rewards are {mean:+.2f} from what the tracker expects (alarm beyond -{threshold:g} and 3 standard "
        "errors): the policy is getting worse; lower learner.lr, or learn less from peers (pool.foreign_groups)",
    ),
    Rule(
        name="calibration_high",
        metric="calibration",
        signal=surely_above,
        text="own rewards are {mean:+.2f} from what the tracker expects (alarm beyond +{threshold:g} and 3 standard "
        "errors): its baselines lag behind the policy; lower tracker.cell_decay and tracker.prompt_decay",
    ),
    Rule(
        name="zero_advantage",
        metric="zero_advantage_share",
        text="{mean:.0%} of the rollouts drawn teach nothing (alarm above {threshold:.0%}): nearly all tasks are "
        "solved or hopeless; add tasks of another difficulty",
    ),
    Rule(
        name="foreign_ratio",
        metric="foreign_ratio",
        below=True,
        text="what is learned from peers is {mean:.2g} times as likely to us as to them, per 4 bytes (alarm below "
        "{threshold:g}): they are very different policies; foreign.type = rec_oneside, or fewer pool.foreign_groups",
    ),
    Rule(
        name="refused_share",
        metric="refused_share",
        text="{mean:.0%} of what peers send is refused (alarm above {threshold:.0%}): status counts the reasons; "
        "stale means slow or wrong clocks, the others mean peers that are broken, hostile or of another version",
    ),
)
