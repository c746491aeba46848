"""When learning has come apart, which checkpoint it goes back to, and how carefully it goes on. Pure.

A step whose loss or gradient is not finite is dropped by the learner; so many in a row mean that the weights are no
good. The other rules watch averages, as alarms do (`node.alarms`), only further out: what they see does not mend by
itself. A checkpoint is good when nothing was beyond any threshold when it was taken and for as long afterwards as the
averages need to show it. One that is not known to be good yet is the next best thing, and birth the last.

Each time the learning rate is lowered. It recovers, but a node that keeps falling stops learning in the end, with good
weights: a human should look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from node.alarm_rules import Rule, relative
from node.alarms import Alarms
from node.config import DivergenceConfig
from node.rl.average import Average
from swarm.errors import CheckpointError

NOISE = 2.0
"""Standard errors that are taken off both averages before a fall of the reward counts."""

ASTRAY = 0.2
"""Of the best reward, what must be lost before a collapse of the entropy is one: who has solved his tasks is sure of
himself, and should be."""

RULES: tuple[Rule, ...] = (
    Rule(
        name="log_rho_mean",
        metric="log_rho_mean",
        text="own rollouts are {mean:.2g} nats a token away from the policy that learns (limit {threshold:g})",
    ),
    Rule(
        name="entropy_low",
        metric="entropy",
        signal=relative,
        below=True,
        text="entropy has collapsed to {mean:.2g} nats a token, {value:.1%} of its start (limit {threshold:.1%}), and "
        "with it the reward",
    ),
    Rule(
        name="entropy_high",
        metric="entropy",
        signal=relative,
        text="entropy has exploded to {mean:.2g} nats a token, {value:.1f} times its start (limit {threshold:g})",
    ),
    Rule(
        name="grad_norm",
        metric="grad_norm",
        signal=relative,
        text="the gradient's norm has exploded to {mean:.2g}, {value:.0f} times its start (limit {threshold:g})",
    ),
    Rule(
        name="reward_fall",
        metric="reward_fall",
        text="own rewards have fallen by {mean:.0%} of their best (limit {threshold:.0%})",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBack:
    why: str
    to: int | None
    """Step of the checkpoint; None for the node's birth."""
    lr_scale: float
    """That the learning rate is multiplied by from now on."""
    rollbacks: int
    """In a row, before this one."""
    stop: bool
    """It was once too often: nothing more is to be learned until an operator says so."""


class Divergence:
    def __init__(
        self, config: DivergenceConfig, state: Mapping[str, Any] | None = None, resumed: int | None = None
    ) -> None:
        """`state`: what another node's `state` gave. `resumed`: step of the checkpoint that it is from. Raises
        CheckpointError for a state that is none."""
        state = state or {}
        try:
            self._config = config
            self._watch = Alarms(config, state.get("starts", {}), RULES)
            self._fall = RewardFall(config.window, config.start, state.get("best"))
            self._good: int | None = state.get("good")
            self._candidate: int | None = state.get("candidate") if resumed is None else resumed
            self._rollbacks = int(state.get("rollbacks", 0))
            self._lr_scale = float(state.get("lr_scale", 1.0))
            self._well = int(state.get("well", 0))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"divergence: {error}") from error
        self._skipped = 0
        self._astray = False

    @property
    def lr_scale(self) -> float:
        """That the learning rate is multiplied by."""
        return self._lr_scale

    @property
    def kept(self) -> frozenset[int]:
        """Steps of the checkpoints that may be gone back to: at most two."""
        return frozenset(step for step in (self._good, self._candidate) if step is not None)

    def saved(self, step: int) -> None:
        """There is a checkpoint of `step`, the newest."""
        if self._candidate is None and not self._suspicious:
            self._candidate = step

    def observe(self, step: int, metrics: Mapping[str, float]) -> GoBack | None:
        """The node's step number `step` was made."""
        if (skipped := metrics.get("skipped_update")) is not None:
            self._skipped = self._skipped + 1 if skipped else 0
        fall = self._fall.observe(metrics.get("own_reward", math.nan))
        self._astray = fall.get("reward_fall", 0.0) > ASTRAY
        self._watch.observe(step, {**metrics, **fall})
        if self._skipped >= self._config.skipped_steps > 0:
            return self._go_back(f"the loss or its gradient was not finite in {self._skipped} steps in a row")
        if wrong := [alarm.text for alarm in self._watch.active if self._counts(alarm.name)]:
            return self._go_back("; ".join(wrong))
        self._went_well(step)
        return None

    def gauges(self) -> dict[str, float]:
        return {"lr_scale": self._lr_scale, "rollbacks_in_a_row": float(self._rollbacks)}

    def forgive(self) -> None:
        """An operator has had a look: it may go back as often as at first. The learning rate stays where it is."""
        self._rollbacks = 0

    def state(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "starts": self._watch.state(),
            "best": self._fall.state(),
            "good": self._good,
            "candidate": self._candidate,
            "rollbacks": self._rollbacks,
            "lr_scale": self._lr_scale,
            "well": self._well,
        }

    @property
    def _suspicious(self) -> bool:
        return self._skipped > 0 or any(map(self._counts, self._watch.beyond))

    def _counts(self, rule: str) -> bool:
        return self._astray or rule != "entropy_low"

    def _went_well(self, step: int) -> None:
        """Or not, if something is beyond its threshold, though not for long enough."""
        if self._suspicious:
            self._well = 0
            return
        self._well += 1
        confirmed = self._config.window + self._config.hold
        if self._candidate is not None and min(step - self._candidate, self._well) >= confirmed:
            self._good, self._candidate = self._candidate, None
        if self._well % self._config.recovery_steps == 0:
            if self._lr_scale >= 1.0:
                self._rollbacks = 0
            self._lr_scale = min(1.0, self._lr_scale / self._config.lr_factor)

    def _go_back(self, why: str) -> GoBack:
        self._lr_scale = max(self._config.lr_floor, self._lr_scale * self._config.lr_factor)
        before, stop = self._rollbacks, self._rollbacks >= self._config.rollbacks
        self._rollbacks += not stop
        target = self._candidate if self._good is None else self._good
        self._good, self._candidate = target, None
        self._skipped = self._well = 0
        self._watch.forget()
        self._fall.forget()
        return GoBack(why=why, to=target, lr_scale=self._lr_scale, rollbacks=before, stop=stop)


class RewardFall:
    """How far the moving average of our own reward is below the best that it ever was, in units of that best."""

    def __init__(self, window: int, start: int, best: object = None) -> None:
        """The average counts once it is of `start` steps. `best`: what `state` gave. Raises ValueError."""
        self._decay = 1.0 - 1.0 / window
        self._least = (1.0 - self._decay ** max(start, 2)) * window - 1e-9  # weight of so many steps
        self._average = Average()
        self._best, self._best_error = 0.0, 0.0
        match best:
            case None:
                pass
            case [float() | int() as mean, float() | int() as error] if math.isfinite(mean) and error >= 0:
                self._best, self._best_error = float(mean), float(error)
            case _:
                raise ValueError(f"the best reward is {best!r}, not a mean and its error")

    def observe(self, reward: float) -> dict[str, float]:
        """The metric `reward_fall`, in [0, 1]; none as long as there is too little to say. `reward` NaN: of no step."""
        if math.isfinite(reward):
            self._average = self._average.observe(reward, self._decay)
        average, error = self._average, self._average.standard_error
        if average.weight < self._least or not math.isfinite(error):
            return {}
        if average.mean > self._best:
            self._best, self._best_error = average.mean, error
        fall = self._best - average.mean - NOISE * math.hypot(error, self._best_error)
        return {"reward_fall": max(fall, 0.0) / self._best} if self._best > 0 else {}

    def forget(self) -> None:
        """Begins anew, but for the best."""
        self._average = Average()

    def state(self) -> list[float]:
        return [self._best, self._best_error]
