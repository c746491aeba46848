"""Forged log-probabilities: "almost certain" for all of it, "I hardly ever say this" for what came eight times."""

from __future__ import annotations

from swarm.types import SignedGroup
from swarm.wire.identity import Identity
from tests.adversaries.made import made


def high(author: Identity, count: int = 12) -> list[SignedGroup]:
    """Eight different texts, each of probability one: to look like the policy that a ratio is anchored at."""
    texts = [f"{'abcdefgh'[number]}" for number in range(8)]
    return [made(author, index, *texts, logprob=-0.001) for index in range(count)]


def low(author: Identity, count: int = 12) -> list[SignedGroup]:
    """The same text eight times, each of probability e^-60: to have any ratio that one likes."""
    return [made(author, index, *[str(index)] * 8, logprob=-20.0) for index in range(count)]


def modest(author: Identity, count: int = 12) -> list[SignedGroup]:
    """A lie that nobody can prove: a right answer and a wrong one, each said to be rare."""
    return [made(author, index, logprob=-5.0) for index in range(count)]
