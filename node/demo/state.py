"""What is known of the fleet at a moment: written by `fleet.py`, read by screen, report and plot. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from swarm.wire.v1 import node_pb2

Phase = Literal["waiting", "starting", "learning", "paused", "done", "stopping", "stopped", "died"]
"""done: it has made its steps, and goes on sharing."""

GONE: frozenset[Phase] = frozenset({"stopped", "died"})
RATE_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One evaluation on held-out questions."""

    at_s: float
    """Since the fleet was started."""
    step: int
    pass_at_1: Mapping[str, float]
    """Family -> [0, 1]."""

    @property
    def mean(self) -> float:
        return mean(self.pass_at_1.values())


@dataclass(slots=True, kw_only=True)
class NodeView:
    name: str
    strong: str = ""
    """The family that it was good at from the start."""
    target_steps: int = 0
    """After which it is done."""
    phase: Phase = "waiting"
    status: node_pb2.NodeStatus = field(default_factory=node_pb2.NodeStatus)
    """The newest; empty before the first."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Family -> pass@1 of its seed model, by the long evaluation."""
    after: Mapping[str, float] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    """Of its own short evaluations while it learns, oldest first; one per `held_out_step`."""
    last_words: str = ""
    """The last line of its log, if it died."""
    exit_code: int | None = None
    _tokens: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=256))

    def observe(self, status: node_pb2.NodeStatus, at_s: float) -> None:
        """Takes a status that arrived `at_s` seconds after the fleet's start."""
        self.status = status
        if self.phase != "stopping":
            self.phase = _phase(status, self.target_steps)
        held_out = {short(family): value for family, value in status.held_out.items()}
        if held_out and (not self.readings or self.readings[-1].step != status.held_out_step):
            self.readings.append(Reading(at_s=at_s, step=status.held_out_step, pass_at_1=held_out))
        self._tokens.append((at_s, status.counters.get("own_tokens", 0)))
        while len(self._tokens) > 2 and self._tokens[0][0] < at_s - RATE_WINDOW_S:
            self._tokens.popleft()

    @property
    def tokens_per_s(self) -> float:
        """Sampled, over the last ten seconds."""
        if len(self._tokens) < 2:
            return 0.0
        (since, first), (until, last) = self._tokens[0], self._tokens[-1]
        return max(0.0, (last - first) / (until - since)) if until > since else 0.0

    def curve(self, family: str | None = None) -> list[tuple[float, float]]:
        """(seconds, pass@1) of a family, or of the mean over families; from the seed model's evaluation on."""
        points = [(0.0, self.before)] if self.before else []
        points += [(reading.at_s, reading.pass_at_1) for reading in self.readings]
        if family is None:
            return [(at, mean(values.values())) for at, values in points]
        return [(at, values[family]) for at, values in points if family in values]

    def start(self, family: str) -> float | None:
        return next((value for _, value in self.curve(family)), None)

    def now(self, family: str) -> float | None:
        """The newest value known, the final evaluation included."""
        return self.after.get(family, next((value for _, value in reversed(self.curve(family))), None))


@dataclass(slots=True, kw_only=True)
class FleetView:
    title: str
    families: Sequence[str]
    nodes: Sequence[NodeView]
    budget_s: float
    activity: str = ""
    """What is going on, when it is not the fleet itself: making models, evaluating."""
    activity_done: float | None = None
    """Share of that activity in [0, 1]."""
    detail: str = ""
    """The activity's newest line."""
    started_at: float | None = None
    """Monotonic seconds; None before the fleet runs."""
    stopped_at: float | None = None

    def elapsed_s(self, now: float) -> float:
        """Of the fleet's run."""
        if self.started_at is None:
            return 0.0
        return (self.stopped_at if self.stopped_at is not None else now) - self.started_at

    def progress(self, now: float) -> float:
        """Share of the activity, or of the run: steps or time, whichever is closer to its end."""
        if self.activity_done is not None:
            return self.activity_done
        steps = (n.status.steps / n.target_steps for n in self.nodes if n.phase not in GONE and n.target_steps)
        return min(1.0, max(min(steps, default=1.0), self.elapsed_s(now) / self.budget_s))

    @property
    def names(self) -> dict[str, str]:
        """Peer id -> name of the node here."""
        return {node.status.peer: node.name for node in self.nodes if node.status.peer}

    def admitted(self, node: NodeView) -> dict[str, int]:
        """Origin (a name where it is one of ours) -> groups."""
        names = self.names
        return {names.get(origin, origin): count for origin, count in node.status.admitted.items()}

    def mean_now(self) -> float | None:
        values = [v for node in self.nodes for family in self.families if (v := node.now(family)) is not None]
        return mean(values) if values else None

    def mean_start(self) -> float | None:
        values = [v for node in self.nodes for family in self.families if (v := node.start(family)) is not None]
        return mean(values) if values else None


def mean(values: Iterable[float]) -> float:
    """0 of no values."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def short(family: str) -> str:
    """ "reasoning_gym/spell_backward" -> "spell_backward"."""
    return family.rsplit("/", 1)[-1]


def _phase(status: node_pb2.NodeStatus, target_steps: int) -> Phase:
    match status.state:
        case node_pb2.NODE_STATE_PAUSED:
            return "paused"
        case node_pb2.NODE_STATE_STOPPING:
            return "stopping"
        case node_pb2.NODE_STATE_RUNNING:
            return "done" if status.steps >= target_steps else "learning"
        case _:
            return "starting"
