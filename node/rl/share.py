"""How many of peers' groups a step takes, of the J that it could. One rule per configuration, one registry.

None of them reads a clock or draws a number. What they remember of earlier steps is not part of a checkpoint: a node
that was started again has its full share until it has seen enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from node.algorithms import FixedShare, GuardedShare, PoolConfig, ScheduledShare, UsefulShare
from node.experience import Experience
from node.rl.average import Average
from node.table import Table
from swarm.types import PolicyVersion


class Share(Protocol):
    def groups(self, version: PolicyVersion, own: Sequence[Experience], candidates: Sequence[Experience]) -> int:
        """0..J. `own` are the step's own groups; `candidates` are the at most J groups of peers that would be drawn,
        with our present values. Called once per step."""
        ...


def share_of(config: PoolConfig) -> Share:
    return SHARES[type(config.share)](config.share, config.foreign_groups)


class Fixed:
    def __init__(self, config: FixedShare, most: int) -> None:
        self._most = most

    def groups(self, version: PolicyVersion, own: Sequence[Experience], candidates: Sequence[Experience]) -> int:
        return self._most


class Scheduled:
    def __init__(self, config: ScheduledShare, most: int) -> None:
        self._config = config
        self._most = most

    def groups(self, version: PolicyVersion, own: Sequence[Experience], candidates: Sequence[Experience]) -> int:
        return scheduled_groups(self._config, self._most, version)


class Useful:
    """J * min(1, u / u_own): u is what peers' groups would teach, u_own what our own groups did, on average."""

    def __init__(self, config: UsefulShare, most: int) -> None:
        self._most = most
        self._decay = 1.0 - 1.0 / config.window
        self._own_use = Average()

    def groups(self, version: PolicyVersion, own: Sequence[Experience], candidates: Sequence[Experience]) -> int:
        for experience in own:
            self._own_use = self._own_use.observe(own_use(experience), self._decay)
        return useful_groups(self._most, [foreign_use(e) for e in candidates], self._own_use.mean)


class Guarded:
    """J / 2^k, k the times that the mean reward of our own groups was `drop` below its best for `steps` steps in a row.

    Each halving starts over: the next best is one that was reached with the smaller share.
    """

    def __init__(self, config: GuardedShare, most: int) -> None:
        self._config = config
        self._most = most
        self._start_over()

    def groups(self, version: PolicyVersion, own: Sequence[Experience], candidates: Sequence[Experience]) -> int:
        reward, steps = float(np.mean([experience.mean for experience in own])), self._config.steps
        self._reward = self._reward.observe(reward, 1.0 - 1.0 / steps)
        self._seen += 1
        if self._seen >= steps:  # the best of a few steps is luck
            self._best = max(self._best, self._reward.mean)
        fallen = self._reward.mean < (1.0 - self._config.drop) * self._best
        self._below = self._below + 1 if fallen else 0
        if self._below == steps:
            self._most //= 2
            self._start_over()
        return self._most

    def _start_over(self) -> None:
        self._reward = Average()
        self._best = 0.0
        self._seen = self._below = 0


def scheduled_groups(config: ScheduledShare, most: int, step: int) -> int:
    """`most` until start_step, final_groups (never more than `most`) from end_step, on a line between, rounded."""
    progress = (step - config.start_step) / (config.end_step - config.start_step)
    final = min(config.final_groups, most)
    return round(most + (final - most) * min(max(progress, 0.0), 1.0))


def useful_groups(most: int, foreign_uses: Sequence[float], own_use: float) -> int:
    """round(most * min(1, mean of foreign_uses / own_use)); 0 of none, `most` where our own groups have no use."""
    if not foreign_uses:
        return 0
    use = float(np.mean(foreign_uses))
    return most if use >= own_use else round(most * use / own_use)


def foreign_use(experience: Experience) -> float:
    """best - min(v, mean): the largest advantage that receiver_baseline would give."""
    return experience.best - min(experience.value, experience.mean)


def own_use(experience: Experience) -> float:
    """Mean |r - v| of the scored rollouts; at least one."""
    return float(np.abs(experience.rewards[experience.scored].astype(np.float64) - experience.value).mean())


#: By the configuration that selects it.
SHARES: Mapping[type[Table], Callable[[Any, int], Share]] = {
    FixedShare: Fixed,
    ScheduledShare: Scheduled,
    UsefulShare: Useful,
    GuardedShare: Guarded,
}
