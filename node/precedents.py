"""What came before: the texts that we had, and how long they needed to be. Written by the pool, through which all
experience passes, and asked at the door. Bounded."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial

import numpy as np

from node.algorithms import PoolConfig
from node.experience import Experience
from swarm.near_duplicates import NearDuplicates
from swarm.types import Rollout, RolloutGroup, Task

RECENT = 64
"""Own successes per source that lengths are compared with."""
ENOUGH = 8
SOLVED = 0.6
"""Value from which on we know how long an answer has to be. Below it, a peer that succeeds may have needed more. Above
that of a task that nothing is known of (0.5)."""
ALLOWANCE_BYTES = 64
"""What every response may have beyond the ratio: of three bytes, twelve are not too many."""


class Precedents:
    def __init__(self, config: PoolConfig, texts: NearDuplicates | None = None) -> None:
        self._texts = NearDuplicates() if texts is None else texts
        self._distinct = config.distinct
        self._max_ratio = config.max_length_ratio
        # Sources are those of the swarm: nobody can add one.
        self._lengths = defaultdict[str, deque[int]](partial(deque[int], maxlen=RECENT))

    def copied(self, group: RolloutGroup) -> str | None:
        """In what it repeats an earlier group, or None."""
        return self._texts.complaint(group) if self._distinct else None

    def overlong(self, task: Task, value: float, rollouts: Sequence[Rollout]) -> np.ndarray:
        """bool [G]: which responses are longer than `max_length_ratio` times the median of our own successes at the
        source, and ALLOWANCE_BYTES. None where we do not mostly succeed, or have too few to compare with.

        A right answer behind needless text costs every step its tokens, and teaches to write so; no verifier sees it,
        and our own likelihood may not ("Hail to the Thief", arXiv 2511.09780, version 2)."""
        lengths = self._lengths.get(task.ref.source, ())
        if value < SOLVED or len(lengths) < ENOUGH:
            return np.zeros(len(rollouts), dtype=bool)
        most = self._max_ratio * statistics.median(lengths) + ALLOWANCE_BYTES
        return np.array([num_bytes(rollout) > most for rollout in rollouts], dtype=bool)

    def add(self, experience: Experience) -> None:
        """Whatever comes into the pool."""
        if self._distinct:
            self._texts.remember(experience.group)
        if experience.own:
            successes = experience.scored & (experience.rewards > 0)
            self._lengths[experience.task.ref.source].extend(
                num_bytes(rollout)
                for rollout, success in zip(experience.group.rollouts, successes.tolist(), strict=False)
                if success
            )


def num_bytes(rollout: Rollout) -> int:
    """Of all that was sampled."""
    return sum(len(turn.text.encode()) for turn in rollout.turns if turn.sampled is not None)
