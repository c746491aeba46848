"""Virtual time, messages that take time or get lost, and what they cost."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WALL = 1_700_000_000.0
"""Unix seconds at the beginning."""
LATENCY_S = (0.02, 0.15)
DEAD_S = 5.0
"""To find out that nobody is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    nodes: int
    seconds: float
    seed: int = 0
    lost: float = 0.05
    """Of all messages."""
    hostile: float = 0.1
    """Of all nodes."""
    replaced_per_h: float = 0.5
    groups_per_s: float = 0.05
    """That an honest node makes."""
    appetite: float = 0.45
    """Groups per second that it wants of others. By default three are taken in for each that a step draws, and it draws
    three for each own one."""
    body_bytes: int = 1200
    """A group of two rollouts of 100 tokens."""
    warm_s: float = 180.0
    """Before anything is measured. All join in its first third."""
    probe_s: float = 30.0
    """From one useful group to the next."""


@dataclass(slots=True)
class Traffic:
    """One node's, since measuring began."""

    messages_out: int = 0
    messages_in: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    def sent(self, size: int, messages: int = 1) -> None:
        self.messages_out += messages
        self.bytes_out += size

    def got(self, size: int, messages: int = 1) -> None:
        self.messages_in += messages
        self.bytes_in += size

    def reset(self) -> None:
        self.messages_out = self.messages_in = self.bytes_out = self.bytes_in = 0


@dataclass(slots=True)
class Counts:
    """Of all honest nodes, since measuring began."""

    reads: int = 0
    """Shards that were looked up."""
    stores: int = 0
    checked: int = 0
    """Records whose signature had to be checked."""
    directory_messages: int = 0
    directory_bytes: int = 0
    delivered: int = 0
    """Bodies that came."""
    new: int = 0
    duplicates: int = 0
    refused: int = 0
    from_hostile: int = 0
    """New and admitted, and made by a hostile node."""
    hostile_bodies: int = 0
    """Handed over by a hostile node, or made by one."""
    node_seconds: float = 0.0
    honest_seconds: float = 0.0


class World:
    """A heap of what happens when."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 0.0
        self.rng = random.Random(plan.seed)
        self.counts = Counts()
        self.measuring = False
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def clock(self) -> float:
        return self.now

    @property
    def wall(self) -> float:
        return WALL + self.now

    def at(self, delay: float, act: Callable[..., None], *args: Any) -> None:
        self._number += 1
        heapq.heappush(self._heap, (self.now + delay, self._number, act, args))

    def run(self, until: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, act, args = heapq.heappop(heap)
            act(*args)
        self.now = until

    def lost(self) -> bool:
        return self.rng.random() < self.plan.lost

    def latency(self) -> float:
        return self.rng.uniform(*LATENCY_S)
