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
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

from node.algorithms import TrackerConfig
from swarm.errors import CheckpointError
from swarm.types import PolicyVersion, Task

K = TypeVar("K", bound=Hashable)

ROOT_MEAN = 0.5
ROOT_MASS = 1.0


State = dict[str, list[list[object]]]


class Evidence(NamedTuple):
    """Discounted sums of the outcomes of one key, as they stand at `version`, the newest of theirs."""

    successes: float = 0.0
    mass: float = 0.0
    version: int = 0

    def observe(self, reward: float, version: int, decay: float) -> Evidence:
        """With one outcome more; a late one (an older version than ours) is discounted on arrival. Only ages >= 0 are
        ever raised to, so nothing overflows."""
        newest = max(version, self.version)
        old, new = decay ** (newest - self.version), decay ** (newest - version)
        return Evidence(old * self.successes + new * reward, old * self.mass + new, newest)

    def mean(self, prior: float, prior_mass: float, now: int, decay: float) -> float:
        """Posterior mean at `now`; a `now` before the newest outcome counts as the time of that outcome."""
        weight = decay ** max(0, now - self.version)
        return (prior_mass * prior + weight * self.successes) / (prior_mass + weight * self.mass)


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
        source = task.ref.source
        self._sources[source] = self._sources.get(source, Evidence()).observe(reward, version, config.cell_decay)
        self._observe(self._cells, _cell_key(task), reward, version, config.cell_decay)
        self._observe(self._prompts, _prompt_key(task), reward, version, config.prompt_decay)

    def source_value(self, source: str, now: PolicyVersion) -> float:
        """Of one source; 0.5 where nothing has been observed."""
        return self._sources.get(source, Evidence()).mean(ROOT_MEAN, ROOT_MASS, now, self._config.cell_decay)

    def source_values(self, now: PolicyVersion) -> dict[str, float]:
        """Of every source that has been observed."""
        return {source: self.source_value(source, now) for source in self._sources}

    def state(self) -> State:
        """Plain JSON data, in the order in which keys would be forgotten."""
        return self.freeze()()

    def freeze(self) -> Callable[[], State]:
        """Makes the `state` of now whenever it is called, in any thread. Freezing is cheap; the state of 100,000
        prompts takes far longer than an event loop may be held up."""
        sources, cells, prompts = (
            (list(known), list(known.values())) for known in (self._sources, self._cells, self._prompts)
        )
        return lambda: {
            "sources": [[source, *evidence] for source, evidence in zip(*sources, strict=True)],
            "cells": [[*key, *evidence] for key, evidence in zip(*cells, strict=True)],
            "prompts": [[key, *evidence] for key, evidence in zip(*prompts, strict=True)],
        }

    @classmethod
    def restore(cls, config: TrackerConfig, state: State) -> ValueTracker:
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

    def _observe(self, known: OrderedDict[K, Evidence], key: K, reward: float, version: int, decay: float) -> None:
        """`key` is now the most recently seen; the least recently seen are forgotten to make room."""
        known[key] = known.get(key, Evidence()).observe(reward, version, decay)
        known.move_to_end(key)
        while len(known) > self._config.max_prompts:
            known.popitem(last=False)


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
