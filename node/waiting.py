"""Strangers' groups that wait, by origin, in the order in which they came; how many they are and how much they take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from node.experience import Experience
from swarm.types import PeerId


class Load(NamedTuple):
    groups: int = 0
    size: int = 0
    """Bytes of memory (`Experience.size`)."""


class Waiting:
    def __init__(self) -> None:
        self._queues: dict[PeerId, deque[Experience]] = {}  # none of them is empty
        self._sizes: dict[PeerId, int] = {}
        self._total = Load()

    def __iter__(self) -> Iterator[Experience]:
        return (experience for queue in self._queues.values() for experience in queue)

    @property
    def origins(self) -> Collection[PeerId]:
        return self._queues.keys()

    @property
    def total(self) -> Load:
        return self._total

    def load(self, origins: Collection[PeerId]) -> Load:
        """Of those of `origins` that have something here."""
        there = [origin for origin in origins if origin in self._queues]
        return Load(sum(len(self._queues[origin]) for origin in there), sum(self._sizes[origin] for origin in there))

    def append(self, experience: Experience) -> None:
        self._queues.setdefault(experience.group.origin, deque()).append(experience)
        self._count(experience, 1)

    def drop_oldest(self, origin: PeerId) -> None:
        """Of one that has something here."""
        self._count(self._queues[origin].popleft(), -1)
        self._forget_empty(origin)

    def drop_while(self, condition: Callable[[Experience], bool]) -> int:
        """Drops each origin's oldest as long as `condition` holds for it. Returns how many."""
        before = self._total.groups
        for origin in list(self._queues):
            while origin in self._queues and condition(self._queues[origin][0]):
                self.drop_oldest(origin)
        return before - self._total.groups

    def remove(self, ids: Collection[str]) -> None:
        for origin, queue in list(self._queues.items()):
            for experience in [e for e in queue if e.id in ids]:
                queue.remove(experience)  # compares by identity
                self._count(experience, -1)
            self._forget_empty(origin)

    def _count(self, experience: Experience, sign: int) -> None:
        origin = experience.group.origin
        self._sizes[origin] = self._sizes.get(origin, 0) + sign * experience.size
        self._total = Load(self._total.groups + sign, self._total.size + sign * experience.size)

    def _forget_empty(self, origin: PeerId) -> None:
        if not self._queues[origin]:
            del self._queues[origin], self._sizes[origin]
