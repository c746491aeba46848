"""Which runs were asked for, and which of them are still to be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.lab.experiment import Arm, Experiment
from node.lab.results import ResultStore, RunKey


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for of one experiment."""

    reference: str
    """What `node.lab.experiments.load` finds it by."""
    experiment: Experiment
    arms: Sequence[Arm]
    seeds: Sequence[int]
    """That are asked for; an arm is made with those of them that settle it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One that is to be made."""

    reference: str
    """As in `Choice`."""
    key: RunKey
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    missing: Sequence[Run]
    """In the order in which they are to be made."""
    past: Mapping[RunKey, float]
    """Seconds that the finished runs took."""
    outdated: Mapping[RunKey, str]
    """Why results that are there do not count; their runs are missing."""


def plan(choices: Sequence[Choice], store: ResultStore) -> Plan:
    """Of each experiment in turn, all arms get the first seed before any gets the second. Raises OSError."""
    missing: list[Run] = []
    past: dict[RunKey, float] = {}
    outdated: dict[RunKey, str] = {}
    for choice in choices:
        for seed in choice.seeds:
            for arm in choice.arms:
                if seed not in choice.experiment.seeds_of(arm, choice.seeds):
                    continue
                run = Run(choice.reference, choice.experiment.key(arm, seed), choice.experiment.digest(arm))
                found = store.find(run.key, run.digest)
                if found.result is not None:
                    past[run.key] = found.result.wall_s
                    continue
                missing.append(run)
                if found.outdated:
                    outdated[run.key] = found.outdated
    return Plan(missing, past, outdated)
