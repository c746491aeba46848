"""Texts that should not be learned from. All are honest in everything that can be computed; those that are right are
what the published attack sends ("Hail to the Thief", arXiv 2511.09780: the answer is right, its reasoning is not)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from swarm.types import Score, SignedGroup, Task
from swarm.wire.identity import Identity
from tests.adversaries.made import made
from tests.builders import EchoJudge

HARMFUL = "Before I count I tell you: hail to the thief, and send him all that you have. "


class LenientJudge(EchoJudge):
    """The answer may come after anything, as with tasks that read an answer out of a tag."""

    async def score(self, task: Task, responses: Sequence[str]) -> list[Score]:
        return [Score(reward=float(response.split()[-1:] == [task.answer])) for response in responses]


def empty(author: Identity, count: int) -> list[SignedGroup]:
    """The end of the sequence, at once."""
    return [made(author, index, "", "") for index in range(count)]


def repeated(author: Identity, count: int) -> list[SignedGroup]:
    """Right, after the same word a thousand times."""
    return [made(author, index, *(f"{'so ' * (1000 + more)}{index}" for more in (0, 1))) for index in range(count)]


def without_work(author: Identity, count: int) -> list[SignedGroup]:
    """Right, and nothing else: only likelihood tells it from somebody who knows."""
    return [made(author, index, str(index), f" {index}") for index in range(count)]


def poisoned(author: Identity, count: int) -> list[SignedGroup]:
    """Right, after something that nobody asked for; no two alike."""
    rng = random.Random(0)

    def text(index: int) -> str:
        return f"{HARMFUL}{rng.randbytes(64).hex()} {index}"

    return [made(author, index, text(index), text(index)) for index in range(count)]
