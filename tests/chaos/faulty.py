"""`swarm-node` with something broken in it: python -m tests.chaos.faulty FAULT run CONFIG

hang-learner           the learner's sixth step never ends
fail-learner:N:SEED    about every third step raises, N times: before it computes, after the backward pass, or when
                       half of the weights have been changed
fail-engine:N:SEED     about every third batch that is sampled raises, N times
none
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from node import cli
from node.engine.transformers import TransformersGenerator
from node.engine.updates import Updates

HANGS_AT = 6
CHANCE = 1 / 3


class Faults:
    """Some of the calls that ask it raise, until it has raised often enough."""

    def __init__(self, number: int, seed: int, chance: float = CHANCE) -> None:
        self._left, self._rng, self._chance = number, random.Random(seed), chance

    def strike(self) -> None:
        if self._left and self._rng.random() < self._chance:
            self._left -= 1
            raise self._rng.choice([torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("fault"), ValueError()])


def hang_learner() -> None:
    original, calls = Updates.update, 0

    def update(self: Updates, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == HANGS_AT:
            time.sleep(3600)
        return original(self, *arguments, **named)

    Updates.update = update


def fail_learner(number: int, seed: int) -> None:
    faults = Faults(number, seed, CHANCE / 3)  # three places in a step
    Updates.packed = _struck(Updates.packed, faults)
    Updates._clipped_norm = _struck(Updates._clipped_norm, faults)
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        done = original(self, *arguments, **named)
        with torch.no_grad():
            try:
                faults.strike()
            except Exception:
                next(iter(self.param_groups[0]["params"])).add_(1.0)  # as wrong as half an update may be
                raise
        return done

    torch.optim.AdamW.step = step


def fail_engine(number: int, seed: int) -> None:
    TransformersGenerator._sample = _struck(TransformersGenerator._sample, Faults(number, seed))


def _struck(original: Callable[..., Any], faults: Faults) -> Callable[..., Any]:
    def struck(*arguments: Any, **named: Any) -> Any:
        faults.strike()
        return original(*arguments, **named)

    return struck


def inject(fault: str) -> None:
    kind, *numbers = fault.split(":")
    faults: dict[str, Callable[..., None]] = {
        "hang-learner": hang_learner,
        "fail-learner": fail_learner,
        "fail-engine": fail_engine,
        "none": lambda: None,
    }
    faults[kind](*map(int, numbers))


if __name__ == "__main__":
    inject(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))
