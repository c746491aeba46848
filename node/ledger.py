"""Everything that a node counts, so that whoever asks gets an answer without disturbing a loop.

Plain sums in memory, written by the loops and read by the operator's service, all on the event loop: nothing here
locks, waits or does I/O. Everything that a stranger can make grow is bounded: origins, verdicts, texts.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.alarms import Alarm
from node.rl.average import Average
from swarm.types import GroupId, PeerId, PolicyVersion, Reason, Verdict
from swarm.wire.v1 import node_pb2

if TYPE_CHECKING:  # the engine's floor imports torch, which counting does not need
    from node.engine.base import StepReport

log = logging.getLogger(__name__)

#: Names of `Ledger.counters` and what they count. Sums over the node's life (a checkpoint keeps them); none ever falls.
COUNTERS: Mapping[str, str] = {
    "own_groups": "groups that this node sampled and scored",
    "own_rollouts": "rollouts in them",
    "own_tokens": "tokens sampled for them",
    "failed_rollouts": "own rollouts that the engine or the task's scoring failed on",
    "failed_tasks": "tasks that could not be made",
    "skipped_prompts": "tasks not tried, because their prompt is too long",
    "foreign_groups_trained": "peers' groups that went into a step",
    "foreign_tokens": "tokens in them",
    "stale_groups": "groups dropped at the draw because they were too old",
    "dropped_groups": "peers' groups pushed out of a full pool",
    "overlong_rollouts": "peers' rollouts not learned from, because they were needlessly long",
    "gated_rollouts": "peers' rollouts not learned from, because they were too unlikely to us",
    "replayed_groups": "groups of the journal that a start took up again, because its checkpoint knows nothing of them",
    "checkpoints": "checkpoints written",
    "failed_checkpoints": "checkpoints that could not be written",
    "weight_updates": "policy versions that the engine took over",
    "engine_restarts": "times that the engine was started again",
    "parity_failures": "updates after which engine and learner differed",
    "resampled": "rollouts begun again, because the engine was lost or had wrong weights",
    "refused_prompts": "prompts that the engine had no room for",
    "learner_restarts": "times that the learner was started again after a step that failed",
    "network_restarts": "times that the network stack was started again",
    "alarms": "alarms that began (node/alarms.py)",
    "poisoned_steps": "steps that came to nothing because of some peers' groups",
    "rollbacks": "times that the policy went back to an earlier checkpoint (node/divergence.py)",
}

OTHER = PeerId("other")
"""Stands for the origins beyond the first `Ledger.max_origins`, and for the small ones in a status."""
MAX_TEXT = 200
"""Characters kept of a text that a stranger may have written."""
REWARD_STEPS = 50
"""That the moving average of own rewards goes back."""
SHOWN_ORIGINS = 256
"""Origins named one by one in a status, which must stay small among ten thousand peers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    origin: PeerId
    group: GroupId
    reason: Reason
    detail: str
    at: float
    """Monotonic seconds."""


class Ledger:
    def __init__(
        self,
        *,
        max_origins: int = 10_000,
        max_verdicts: int = 1000,
        max_warnings: int = 50,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_origins = max_origins
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self.admitted: Counter[PeerId] = Counter()
        self.refused: Counter[tuple[PeerId, Reason]] = Counter()
        self.judgements: deque[Judgement] = deque(maxlen=max_verdicts)
        """The newest verdicts, oldest first."""
        self.steps = 0
        """Made in the node's life, earlier runs included."""
        self.policy_version = PolicyVersion(0)
        self.metrics: dict[str, float] = {}
        """Of the newest step."""
        self.own_reward = Average()
        """Over this process's steps. Checkpoints are compared by it before anything is evaluated."""
        self.held_out: dict[str, float] = {}
        """Task family -> pass@1 of the newest evaluation."""
        self.held_out_step = 0
        self.alarms: Sequence[Alarm] = ()
        """Of learning, as they stand after the newest step."""
        self.growing: Sequence[Alarm] = ()
        """Of what the process uses (node/resources.py)."""
        self._unreported: Counter[bool] = Counter()  # verdicts since the newest step, by whether they admitted
        self._origins: set[PeerId] = set()
        self._warnings: dict[str, int] = {}  # text -> how often; the most recent last
        self._max_warnings = max_warnings
        self._reasons: Counter[str] = Counter()  # refusals over all origins
        self._clock = clock

    def restore(self, counters: Mapping[str, int]) -> None:
        """Goes on from a checkpoint's sums; names that this version no longer counts are left out."""
        self.counters.update({name: amount for name, amount in counters.items() if name in COUNTERS})

    def verdict(self, origin: PeerId, group: GroupId | None, verdict: Verdict) -> None:
        """A group was judged (None: too broken to have an id). Origins beyond the first `max_origins` are counted
        together, under OTHER: a new identity costs a stranger nothing, and must cost us nothing."""
        origin = self._counted_as(PeerId(printable(origin)))
        self._unreported[verdict.admitted] += 1
        if verdict.admitted:
            self.admitted[origin] += 1
        else:
            self.refused[origin, verdict.reason] += 1
            self._reasons[verdict.reason] += 1
        self.judgements.append(
            Judgement(
                origin=origin,
                group=GroupId(printable(group or "")),
                reason=verdict.reason,
                detail=printable(verdict.detail),
                at=self._clock(),
            )
        )

    def take_refused_share(self) -> dict[str, float]:
        """refused_share, of the verdicts since this was last asked; empty where there were none."""
        counts, self._unreported = self._unreported, Counter()
        return {"refused_share": counts[False] / counts.total()} if counts else {}

    def step(self, steps: int, report: StepReport) -> None:
        """The node's step number `steps` was made; its metrics replace those of the one before."""
        self.steps = steps
        self.policy_version = report.version
        self.metrics = dict(report.metrics)
        if "own_reward" in self.metrics:
            self.own_reward = self.own_reward.observe(self.metrics["own_reward"], 1.0 - 1.0 / REWARD_STEPS)

    def evaluated(self, step: int, results: Mapping[str, float]) -> None:
        """Held-out tasks were tried by the policy of `step`: task family -> pass@1."""
        self.held_out_step = step
        self.held_out = dict(results)

    def grows(self, alarms: Sequence[Alarm], new: Sequence[Alarm]) -> None:
        """What the process uses and does not give back: all such alarms, and those of them that have just begun."""
        self.growing = alarms
        self.counters["alarms"] += len(new)
        for alarm in new:
            log.warning("alarm %s: %s", alarm.name, alarm.text)

    def warn(self, text: str) -> None:
        """Something that an operator should know and that stops nothing. Said again, it moves to the end and is
        counted; the oldest goes when there are too many."""
        text = printable(text)
        self._warnings[text] = self._warnings.pop(text, 0) + 1
        if len(self._warnings) > self._max_warnings:
            del self._warnings[next(iter(self._warnings))]

    @property
    def warnings(self) -> list[str]:
        """The oldest first; "text (3 times)" for one that was given three times."""
        return [text if times == 1 else f"{text} ({times} times)" for text, times in self._warnings.items()]

    def refusals_of(self, origin: PeerId) -> dict[str, int]:
        """Reason -> groups."""
        return {reason.value: count for reason in Reason if (count := self.refused[origin, reason])}

    def fill(self, status: node_pb2.NodeStatus, gauges: Mapping[str, float] | None = None) -> None:
        """Writes the ledger's part of a status; `gauges` (pool level, loop delay) join the newest step's metrics."""
        shown: dict[str, int] = dict(heapq.nlargest(SHOWN_ORIGINS, self.admitted.items(), key=lambda item: item[1]))
        if rest := self.admitted.total() - sum(shown.values()):
            shown[OTHER] = shown.get(OTHER, 0) + rest
        status.policy_version = self.policy_version
        status.steps = self.steps
        status.admitted.update(shown)
        status.refused.update(self._reasons)
        status.counters.update(self.counters)
        status.metrics.update(self.metrics | dict(gauges or {}))
        status.held_out.update(self.held_out)
        status.held_out_step = self.held_out_step
        status.warnings.extend(self.warnings)
        status.alarms.extend(
            node_pb2.Alarm(
                name=alarm.name,
                text=alarm.text,
                value=alarm.value,
                threshold=alarm.threshold,
                since_step=alarm.since_step,
            )
            for alarm in (*self.alarms, *self.growing)
        )

    def verdict_records(self, limit: int) -> Sequence[node_pb2.VerdictRecord]:
        """Up to `limit` verdicts, the newest first."""
        now = self._clock()
        return [
            node_pb2.VerdictRecord(
                origin=judged.origin,
                group=judged.group,
                reason=judged.reason,
                detail=judged.detail,
                age_s=now - judged.at,
            )
            for _, judged in zip(range(limit), reversed(self.judgements), strict=False)
        ]

    def _counted_as(self, origin: PeerId) -> PeerId:
        if origin not in self._origins and len(self._origins) >= self.max_origins:
            return OTHER
        self._origins.add(origin)
        return origin


def printable(text: str, most: int | None = MAX_TEXT) -> str:
    """At most so many characters, and without what a terminal would obey or protobuf would refuse (control characters,
    directions, surrogates)."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:most])
