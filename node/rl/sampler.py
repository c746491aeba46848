"""Which task to sample next: where there is something to learn.

A task of value v is drawn with weight sqrt(v(1-v)) + exploration (SPO, arXiv 2509.13232): most where half of the
rollouts succeed, and never nothing. Sources are picked by their own values first, because a procedural source's
tasks cannot be listed; of the picked one a few candidates are proposed and the most promising is likely chosen.

A share `for_swarm` of the picks is made on the swarm's behalf: where we are strong and it is weak (node/rl/demand.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from node.config import SamplerConfig
from node.rl.demand import Demand
from node.rl.tracker import ValueTracker
from swarm.errors import CheckpointError, ConfigError
from swarm.net.base import PeerInfo
from swarm.types import PolicyVersion, Task, TaskRef

#: Procedural sources are sampled over seeds of 32 bits and indices of 20: practically, no reference comes twice.
MAX_SEED = 2**32
MAX_INDEX = 2**20
#: Peers whose values make the demand of one pick; of more, as many at random.
MAX_MEMBERS = 64


class Referable(Protocol):
    """The part of a `TaskSource` that references are made from."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def config(self) -> str: ...

    @property
    def size(self) -> int | None: ...


class TaskSampler:
    """`propose` references, make their tasks, drop those that are held out, `choose` one. Deterministic in its seed."""

    def __init__(
        self,
        sources: Sequence[Referable],
        weights: Sequence[float],
        tracker: ValueTracker,
        config: SamplerConfig,
        seed: int,
    ) -> None:
        """`weights` are positive, one per source. Raises ConfigError for a source without tasks."""
        if not sources or len(sources) != len(weights):
            raise ValueError(f"{len(sources)} sources and {len(weights)} weights: give one weight to each")
        for source, weight in zip(sources, weights, strict=True):
            if source.size is not None and source.size < 1:
                raise ConfigError(f"tasks: {source.name} is empty")
            if not weight > 0:
                raise ConfigError(f"tasks: weight of {source.name} is {weight}: it must be greater than 0")
        self._sources = tuple(sources)
        self._weights = tuple(weights)
        self._tracker = tracker
        self._config = config
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def demand(self, peers: Callable[[], Sequence[PeerInfo]]) -> Demand | None:
        """For the next pick: the swarm's, if it is to be on its behalf; None for one of our own, which it also is where
        no peer says what it is worth. `peers` is not asked where there is nothing to ask."""
        share = self._config.for_swarm
        if share == 0.0 or self._rng.random() >= share:
            return None
        members = [peer.values for peer in peers() if peer.values]
        if len(members) > MAX_MEMBERS:
            members = [members[i] for i in self._rng.choice(len(members), size=MAX_MEMBERS, replace=False)]
        return Demand(members) if members else None

    def propose(self, now: PolicyVersion, demand: Demand | None = None) -> list[TaskRef]:
        """Up to `candidates` different references of one source (fewer only where it has fewer)."""
        weights = []
        for source, weight in zip(self._sources, self._weights, strict=True):
            value = self._tracker.source_value(source.name, now)
            wanted = self._promise(value) if demand is None else demand.for_source(source.name, value)
            weights.append(weight * wanted)
        source = self._sources[self._pick(weights)]
        return [
            TaskRef(source=source.name, version=source.version, config=source.config, seed=seed, index=index)
            for seed, index in self._places(source.size)
        ]

    def choose(self, tasks: Sequence[Task], now: PolicyVersion, demand: Demand | None = None) -> Task:
        """One of `tasks`, by their values. Raises ValueError if there is none."""
        if not tasks:
            raise ValueError("no task to choose from")
        if demand is None:
            return tasks[self._pick([self._promise(self._tracker.value(task, now)) for task in tasks])]
        cells = [(task.ref.source, task.difficulty) for task in tasks]
        return tasks[self._pick([demand.for_cell(*cell, self._tracker.cell_value(*cell, now)) for cell in cells])]

    def state(self) -> dict[str, object]:
        """Where the random stream is, as plain JSON data (integers of up to 128 bits)."""
        return dict(self._rng.bit_generator.state)

    def restore(self, state: Mapping[str, object]) -> None:
        """Goes on where `state` was taken. Raises CheckpointError for anything else than a state."""
        try:
            self._rng.bit_generator.state = dict(state)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"sampler state: {error!r}") from error

    def _promise(self, value: float) -> float:
        return math.sqrt(value * (1.0 - value)) + self._config.exploration

    def _pick(self, weights: Sequence[float]) -> int:
        probabilities = np.asarray(weights, dtype=np.float64)
        return int(self._rng.choice(len(weights), p=probabilities / probabilities.sum()))

    def _places(self, size: int | None) -> list[tuple[int, int]]:
        """(seed, index) of each candidate; a finite source has one seed, 0."""
        if size is None:
            seeds = self._rng.integers(MAX_SEED, size=self._config.candidates)
            indices = self._rng.integers(MAX_INDEX, size=self._config.candidates)
            return [(int(seed), int(index)) for seed, index in zip(seeds, indices, strict=True)]
        chosen = self._rng.choice(size, size=min(self._config.candidates, size), replace=False)
        return [(0, int(index)) for index in chosen]
