"""What we expect to score: a persistent value per prompt, the baseline of every advantage.

SPO (arXiv 2509.13232) keeps a discounted Beta posterior per prompt; SPO++ (arXiv 2608.24870) lets it run on event time:
the clock is our own policy version, and an outcome that k updates passed since is worth decay^k. Outcomes may therefore
arrive in any order and as late as they like; the value is the same.

Most prompts of a procedural source are seen once, so a prompt's prior is its cell (source, difficulty), and a cell's is
its source:

    value(child) = (prior_mass * value(parent) + successes) / (prior_mass + mass)

A source starts from Jeffreys' prior (0.5 of 1). Priors do not decay: where evidence fades, the value goes back to the
parent's.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

from node.config import TrackerConfig
from swarm.errors import CheckpointError
from swarm.types import PolicyVersion, Task

K = TypeVar("K", bound=Hashable)

ROOT_MEAN = 0.5
ROOT_MASS = 1.0


@dataclass(slots=True)
class Evidence:
    """Discounted sums of the outcomes of one key, as they stand at `version`, the newest of theirs."""

    successes: float = 0.0
    mass: float = 0.0
    version: int = 0

    def observe(self, reward: float, version: int, decay: float) -> None:
        """Adds one outcome; a late one (an older version than ours) is discounted on arrival. Only ages >= 0 are ever
        raised to, so nothing overflows."""
        if version >= self.version:
            self._discount(decay ** (version - self.version))
            self.version = version
            weight = 1.0
        else:
            weight = decay ** (self.version - version)
        self.successes += weight * reward
        self.mass += weight

    def mean(self, prior: float, prior_mass: float, now: int, decay: float) -> float:
        """Posterior mean at `now`; a `now` before the newest outcome counts as the time of that outcome."""
        weight = decay ** max(0, now - self.version)
        return (prior_mass * prior + weight * self.successes) / (prior_mass + weight * self.mass)

    def _discount(self, weight: float) -> None:
        self.successes *= weight
        self.mass *= weight


class ValueTracker:
    """Values in (0, 1) of tasks and sources. A read and an observation cost O(1); reads change nothing.

    Prompts and cells are bounded by `max_prompts` each, least recently observed first out. Not thread-safe.
    """

    def __init__(self, config: TrackerConfig) -> None:
        self._config = config
        self._sources: dict[str, Evidence] = {}
        self._cells: OrderedDict[tuple[str, str], Evidence] = OrderedDict()
        self._prompts: OrderedDict[str, Evidence] = OrderedDict()

    def value(self, task: Task, now: PolicyVersion) -> float:
        """Expected reward of `task`, as far as it has been observed."""
        config, none = self._config, Evidence()
        cell = self._cells.get(_cell_key(task), none).mean(
            self.source_value(task.ref.source, now), config.prior_mass, now, config.cell_decay
        )
        return self._prompts.get(_prompt_key(task), none).mean(cell, config.prior_mass, now, config.prompt_decay)

    def observe(self, task: Task, reward: float, version: PolicyVersion) -> None:
        """One own rollout of `task`, begun under `version`, scored `reward` in [0, 1] (partial rewards are fractional
        counts). Raises ValueError for any other reward."""
        if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
            raise ValueError(f"reward of {task.ref} is {reward}: it must be in [0, 1]")
        config = self._config
        self._sources.setdefault(task.ref.source, Evidence()).observe(reward, version, config.cell_decay)
        self._recent(self._cells, _cell_key(task)).observe(reward, version, config.cell_decay)
        self._recent(self._prompts, _prompt_key(task)).observe(reward, version, config.prompt_decay)

    def source_value(self, source: str, now: PolicyVersion) -> float:
        """Of one source; 0.5 where nothing has been observed."""
        return self._sources.get(source, Evidence()).mean(ROOT_MEAN, ROOT_MASS, now, self._config.cell_decay)

    def source_values(self, now: PolicyVersion) -> dict[str, float]:
        """Of every source that has been observed."""
        return {source: self.source_value(source, now) for source in self._sources}

    def state(self) -> dict[str, list[list[object]]]:
        """Plain JSON data, in the order in which keys would be forgotten."""
        return {
            "sources": [[source, e.successes, e.mass, e.version] for source, e in self._sources.items()],
            "cells": [[*key, e.successes, e.mass, e.version] for key, e in self._cells.items()],
            "prompts": [[key, e.successes, e.mass, e.version] for key, e in self._prompts.items()],
        }

    @classmethod
    def restore(cls, config: TrackerConfig, state: dict[str, list[list[object]]]) -> ValueTracker:
        """The tracker that `state` was taken from. Raises CheckpointError for anything else than a state."""
        tracker = cls(config)
        try:
            for source, *evidence in state["sources"]:
                tracker._sources[str(source)] = _evidence(*evidence)
            for source, difficulty, *evidence in state["cells"]:
                tracker._cells[str(source), str(difficulty)] = _evidence(*evidence)
            for prompt, *evidence in state["prompts"]:
                tracker._prompts[str(prompt)] = _evidence(*evidence)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"tracker state: {error!r}") from error
        return tracker

    def _recent(self, known: OrderedDict[K, Evidence], key: K) -> Evidence:
        """The evidence of `key`, now the most recently seen; makes room by forgetting the least recently seen."""
        evidence = known.setdefault(key, Evidence())
        known.move_to_end(key)
        while len(known) > self._config.max_prompts:
            known.popitem(last=False)
        return evidence


def _cell_key(task: Task) -> tuple[str, str]:
    return task.ref.source, task.difficulty


def _prompt_key(task: Task) -> str:
    """By text, not by reference: the same question at another seed or index is the same prompt."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(task.ref.source.encode())
    digest.update(b"\0")
    digest.update(task.prompt.encode())
    return digest.hexdigest()


def _evidence(successes: object, mass: object, version: object) -> Evidence:
    if not isinstance(successes, float | int) or not isinstance(mass, float | int) or not isinstance(version, int):
        raise TypeError(f"[{successes!r}, {mass!r}, {version!r}] is no evidence")
    return Evidence(float(successes), float(mass), version)
