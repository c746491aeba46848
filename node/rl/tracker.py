"""What we expect to score: a persistent value per prompt, the baseline of every advantage.

SPO (arXiv 2509.13232) keeps a discounted Beta posterior per prompt; SPO++ (arXiv 2608.24870) lets it run on event time:
the clock is our own policy version, and an outcome that k updates passed since is worth decay^k. Outcomes may therefore
arrive in any order and as late as they like; the value is the same.

Most prompts of a procedural source are seen once, so a prompt's prior is its cell (source, difficulty), and a cell's is
its source:

    value(child) = (prior_mass * value(parent) + successes) / (prior_mass + mass)

A source starts from Jeffreys' prior (0.5 of 1). Priors do not decay: where evidence fades, the value goes back to the
parent's.

What the rewards of peers' rollouts say of our own values is a matter of configuration (`tracker.peers`). As a prior,
they stand beside our own evidence, each outcome with a mass of `peer_weight`, and only move what that starts from:

    prior(source) = (0.5 + peers' successes) / (1 + peers' mass)
    prior(cell)   = (value(source) + (prior_mass * value(source) + peers' successes) / (prior_mass + peers' mass)) / 2
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

from node.algorithms import TrackerConfig
from node.experience import Experience
from swarm.errors import CheckpointError
from swarm.types import CellValue, PolicyVersion, Task

K = TypeVar("K", bound=Hashable)

ROOT_MEAN = 0.5
ROOT_MASS = 1.0


State = dict[str, list[list[object]]]


class Evidence(NamedTuple):
    """Discounted sums of the outcomes of one key, as they stand at `version`, the newest of theirs."""

    successes: float = 0.0
    mass: float = 0.0
    version: int = 0

    def observe(self, reward: float, version: int, decay: float, weight: float = 1.0) -> Evidence:
        """With one outcome more, of mass `weight`; a late one (an older version than ours) is discounted on arrival.
        Only ages >= 0 are ever raised to, so nothing overflows."""
        newest = max(version, self.version)
        old, new = decay ** (newest - self.version), weight * decay ** (newest - version)
        return Evidence(old * self.successes + new * reward, old * self.mass + new, newest)

    def mean(self, prior: float, prior_mass: float, now: int, decay: float) -> float:
        """Posterior mean at `now`; a `now` before the newest outcome counts as the time of that outcome."""
        weight = decay ** max(0, now - self.version)
        return (prior_mass * prior + weight * self.successes) / (prior_mass + weight * self.mass)

    def mass_at(self, now: int, decay: float) -> float:
        """What the outcomes are worth at `now`, in outcomes."""
        return decay ** max(0, now - self.version) * self.mass


class ValueTracker:
    """Values in (0, 1) of tasks and sources. A read and an observation cost O(1); reads change nothing.

    Prompts and cells are bounded by `max_prompts` each, least recently observed first out. Not thread-safe.
    """

    def __init__(self, config: TrackerConfig) -> None:
        self._config = config
        self._sources: dict[str, Evidence] = {}
        self._cells: OrderedDict[tuple[str, str], Evidence] = OrderedDict()
        self._prompts: OrderedDict[str, Evidence] = OrderedDict()
        self._peer_sources: OrderedDict[str, Evidence] = OrderedDict()
        self._peer_cells: OrderedDict[tuple[str, str], Evidence] = OrderedDict()
        self._began = PolicyVersion(0)  # of the line of versions that the present one goes back to

    def value(self, task: Task, now: PolicyVersion) -> float:
        """Expected reward of `task`, as far as it has been observed."""
        config = self._config
        cell = self.cell_value(*cell_key(task), now)
        prompt = self._prompts.get(prompt_key(task), Evidence())
        return prompt.mean(cell, config.prior_mass, now, config.prompt_decay)

    def cell_value(self, source: str, difficulty: str, now: PolicyVersion) -> float:
        """Of a source's tasks of one difficulty; what it starts from where none has been observed."""
        config, key = self._config, (source, difficulty)
        prior = self._cell_prior(key, now)
        return self._cells.get(key, Evidence()).mean(prior, config.prior_mass, now, config.cell_decay)

    def cell_values(self, now: PolicyVersion, most: int) -> list[CellValue]:
        """Of the `most` cells that have most evidence left at `now`, in that order."""
        decay = self._config.cell_decay
        masses = {key: evidence.mass_at(now, decay) for key, evidence in self._cells.items()}
        return [
            CellValue(source=key[0], difficulty=key[1], value=self.cell_value(*key, now), mass=masses[key])
            for key in heapq.nlargest(most, masses, key=masses.__getitem__)
        ]

    def observe(self, task: Task, reward: float, version: PolicyVersion) -> None:
        """One own rollout of `task`, begun under `version`, scored `reward` in [0, 1] (partial rewards are fractional
        counts). Raises ValueError for any other reward. A version that was given up (`go_back`) says nothing."""
        _check(task, reward)
        if version >= self._began:
            self._observe_all(task, reward, version, 1.0)

    def observe_peer(self, task: Task, reward: float, version: PolicyVersion) -> None:
        """One rollout of a peer's, scored `reward` by us; `version` is ours when it arrived. Raises as `observe`."""
        if self._config.peers == "ignore":
            return
        _check(task, reward)
        weight, decay = self._config.peer_weight, self._config.cell_decay
        if self._config.peers == "weigh":
            self._observe_all(task, reward, version, weight)
        else:
            self._observe(self._peer_sources, task.ref.source, reward, version, decay, weight)
            self._observe(self._peer_cells, cell_key(task), reward, version, decay, weight)

    def hear(self, experience: Experience, now: PolicyVersion) -> None:
        """All scored rollouts of a group, ours or a peer's. Versions beyond `now` are of a policy that a crash took."""
        observe = self.observe if experience.own else self.observe_peer
        for reward in experience.rewards[experience.scored].tolist():
            observe(experience.task, reward, min(experience.version, now))

    def source_value(self, source: str, now: PolicyVersion) -> float:
        """Of one source; 0.5 where nothing has been observed."""
        decay, prior = self._config.cell_decay, ROOT_MEAN
        if self._config.peers == "prior":
            prior = self._peer_sources.get(source, Evidence()).mean(ROOT_MEAN, ROOT_MASS, now, decay)
        return self._sources.get(source, Evidence()).mean(prior, ROOT_MASS, now, decay)

    def source_values(self, now: PolicyVersion) -> dict[str, float]:
        """Of every source that has been observed."""
        return {source: self.source_value(source, now) for source in self._sources}

    def state(self) -> State:
        """Plain JSON data, in the order in which keys would be forgotten."""
        return self.freeze()()

    def freeze(self) -> Callable[[], State]:
        """Makes the `state` of now whenever it is called, in any thread. Freezing is cheap; the state of 100,000
        prompts takes far longer than an event loop may be held up."""
        sources, cells, prompts, peer_sources, peer_cells = (
            (list(known), list(known.values()))
            for known in (self._sources, self._cells, self._prompts, self._peer_sources, self._peer_cells)
        )
        return lambda: {
            "sources": [[source, *evidence] for source, evidence in zip(*sources, strict=True)],
            "cells": [[*key, *evidence] for key, evidence in zip(*cells, strict=True)],
            "prompts": [[key, *evidence] for key, evidence in zip(*prompts, strict=True)],
            "peer_sources": [[source, *evidence] for source, evidence in zip(*peer_sources, strict=True)],
            "peer_cells": [[*key, *evidence] for key, evidence in zip(*peer_cells, strict=True)],
        }

    @classmethod
    def restore(cls, config: TrackerConfig, state: State) -> ValueTracker:
        """The tracker that `state` was taken from; one from before there was anything of peers' in it has none. Raises
        CheckpointError for anything else than a state."""
        tracker = cls(config)
        try:
            for source, *evidence in state["sources"]:
                tracker._sources[str(source)] = _evidence(*evidence)
            for source, difficulty, *evidence in state["cells"]:
                tracker._cells[str(source), str(difficulty)] = _evidence(*evidence)
            for prompt, *evidence in state["prompts"]:
                tracker._prompts[str(prompt)] = _evidence(*evidence)
            for source, *evidence in state.get("peer_sources", []):
                tracker._peer_sources[str(source)] = _evidence(*evidence)
            for source, difficulty, *evidence in state.get("peer_cells", []):
                tracker._peer_cells[str(source), str(difficulty)] = _evidence(*evidence)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"tracker state: {error!r}") from error
        return tracker

    def go_back(self, state: State, then: PolicyVersion, now: PolicyVersion) -> None:
        """To a `state` that was taken at version `then`, because its policy is now version `now` (> then): what has
        happened in between has not. Outcomes are as old as they were. Raises CheckpointError, and nothing changes."""
        earlier = ValueTracker.restore(self._config, state)
        for name in ("_sources", "_cells", "_prompts", "_peer_sources", "_peer_cells"):
            mine, known = getattr(self, name), getattr(earlier, name)
            mine.clear()
            mine.update({key: seen._replace(version=seen.version + now - then) for key, seen in known.items()})
        self._began = now

    def _cell_prior(self, key: tuple[str, str], now: PolicyVersion) -> float:
        """What a cell's value starts from."""
        config, source = self._config, self.source_value(key[0], now)
        if config.peers != "prior":
            return source
        peers = self._peer_cells.get(key, Evidence())
        return (source + peers.mean(source, config.prior_mass, now, config.cell_decay)) / 2

    def _observe_all(self, task: Task, reward: float, version: int, weight: float) -> None:
        config, source = self._config, task.ref.source
        known = self._sources.get(source, Evidence())
        self._sources[source] = known.observe(reward, version, config.cell_decay, weight)
        self._observe(self._cells, cell_key(task), reward, version, config.cell_decay, weight)
        self._observe(self._prompts, prompt_key(task), reward, version, config.prompt_decay, weight)

    def _observe(
        self, known: OrderedDict[K, Evidence], key: K, reward: float, version: int, decay: float, weight: float
    ) -> None:
        """`key` is now the most recently seen; the least recently seen are forgotten to make room."""
        known[key] = known.get(key, Evidence()).observe(reward, version, decay, weight)
        known.move_to_end(key)
        while len(known) > self._config.max_prompts:
            known.popitem(last=False)


def _check(task: Task, reward: float) -> None:
    if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
        raise ValueError(f"reward of {task.ref} is {reward}: it must be in [0, 1]")


def cell_key(task: Task) -> tuple[str, str]:
    """Source and difficulty."""
    return task.ref.source, task.difficulty


def prompt_key(task: Task) -> str:
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
