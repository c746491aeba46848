"""What tells an operator that learning goes wrong before the reward does: named rules over a step's metrics. Pure.

No rule looks at a single step. A metric's moving average has to stay beyond a threshold for `hold` steps before an
alarm begins, and has to come back to a milder value (`clearance`) before it ends; in between it is one alarm, however
the metric trembles. A step that lacks a metric, or has no number for it, says nothing about it.

A checkpoint keeps what metrics were at the start of the node's life, and nothing else: the averages begin anew, and an
alarm that was up has to hold once more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from node.alarm_rules import RULES, Rule, relative
from node.config import WatchConfig
from node.rl.average import Average
from swarm.errors import CheckpointError

#: A gradient's norm has no bound: a step counts as at most so many times what is usual, or one alone would be an alarm.
SPIKE = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A rule that is beyond its threshold, as of the newest step."""

    name: str
    text: str
    value: float
    """What is compared with the threshold."""
    threshold: float
    since_step: int


class Changes(NamedTuple):
    began: Sequence[Alarm]
    ended: Sequence[Alarm]


class Alarms:
    """Watches one node's metrics. A threshold of 0 switches its rule off."""

    def __init__(
        self,
        config: WatchConfig,
        state: Mapping[str, Sequence[float]] | None = None,
        rules: Sequence[Rule] = RULES,
    ) -> None:
        """`config` has a threshold for each of `rules`. `state`: what another node's `state` gave. Raises
        CheckpointError for a start that is none."""
        self._config = config
        thresholds = config.model_dump()
        self._rules = [(rule, float(thresholds[rule.name])) for rule in rules if thresholds[rule.name]]
        self._relative = frozenset(rule.metric for rule in rules if rule.signal is relative)
        self._averages: dict[str, Average] = {}
        self._starts = {name: _start(name, start) for name, start in (state or {}).items() if name in self._relative}
        self._held: Counter[str] = Counter()
        self._active: dict[str, Alarm] = {}

    @property
    def active(self) -> list[Alarm]:
        """The oldest first."""
        return list(self._active.values())

    @property
    def beyond(self) -> set[str]:
        """Rules that are beyond their threshold, be it for a step."""
        return {name for name, steps in self._held.items() if steps}

    def forget(self) -> None:
        """Begins anew, but for what metrics were at the start: what they were lately is of a policy that is no more."""
        self._averages.clear()
        self._held.clear()
        self._active.clear()

    def observe(self, step: int, metrics: Mapping[str, float]) -> Changes:
        """The node's step number `step` was made: which alarms it lets begin and end."""
        seen = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name in {rule.metric for rule, _ in self._rules} & seen.keys():
            self._take(name, seen[name])
        before = dict(self._active)
        for rule, threshold in self._rules:
            if rule.metric in seen:
                self._judge(rule, threshold, step)
        began = [alarm for name, alarm in self._active.items() if name not in before]
        return Changes(began, [alarm for name, alarm in before.items() if name not in self._active])

    def gauges(self) -> dict[str, float]:
        """For the step's metrics: how many alarms are up, and the averages that have no other home."""
        gauges = {"alarms_active": float(len(self._active))}
        for name in sorted(self._relative & self._averages.keys()):
            if math.isfinite(value := relative(self._averages[name], self._start_of(name))):
                gauges[f"{name}_relative"] = value
        if average := self._averages.get("calibration"):
            gauges["calibration_mean"] = average.mean
            if math.isfinite(average.standard_error):
                gauges["calibration_error"] = average.standard_error
        return gauges

    def state(self) -> dict[str, list[float]]:
        """Plain JSON data: metric -> mean at the start, and of how many steps."""
        return {name: [start.mean, start.weight] for name, start in self._starts.items()}

    def _take(self, name: str, value: float) -> None:
        average = self._averages.get(name, Average())
        if name in self._relative:
            start = self._starts.get(name, Average())
            if start.weight < self._config.start:
                self._starts[name] = start.observe(value, 1.0)
            else:
                value = min(value, SPIKE * max(start.mean, average.mean))
        self._averages[name] = average.observe(value, 1.0 - 1.0 / self._config.window)

    def _start_of(self, name: str) -> float:
        start = self._starts.get(name, Average())
        return start.mean if start.weight >= self._config.start else math.nan

    def _judge(self, rule: Rule, threshold: float, step: int) -> None:
        average = self._averages[rule.metric]
        value = rule.signal(average, self._start_of(rule.metric))
        active = self._active.get(rule.name)
        limit = rule.milder(threshold, self._config.clearance) if active else threshold
        self._held[rule.name] = self._held[rule.name] + 1 if rule.beyond(value, limit) else 0
        if self._held[rule.name] >= self._config.hold:
            self._active[rule.name] = Alarm(
                name=rule.name,
                text=rule.text.format(mean=average.mean, value=value, threshold=threshold),
                value=value,
                threshold=threshold,
                since_step=active.since_step if active else step,
            )
        else:
            self._active.pop(rule.name, None)


def _start(name: str, start: object) -> Average:
    match start:
        case [float() | int() as mean, float() | int() as steps] if math.isfinite(mean) and steps >= 0:
            return Average(weight=float(steps), mean=float(mean))
        case _:
            raise CheckpointError(f"alarms: the start of {name} is {start!r}, not a mean and a number of steps")
