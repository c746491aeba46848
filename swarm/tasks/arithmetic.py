"""Arithmetic expressions of any length: how hard one is, is how many terms it has. Nobody can have seen it before.

After RandomCalculation (Wu et al., arXiv 2507.10532), whose point is that what is made anew cannot have been in
anyone's training data. Here the expressions are flat, of whole numbers, and computed while they are written down:
nothing is ever parsed or evaluated. The answer is taken modulo a number, so that it stays short however long the
question is.
"""

from __future__ import annotations

import difflib
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields

from swarm.errors import ConfigError
from swarm.tasks.base import SourceSpec, canonical_json
from swarm.tasks.scoring import check_place, final_answer
from swarm.types import Task, TaskRef

#: To be raised with every change of what a reference stands for: nodes with another one are in another swarm.
VERSION = "1"
#: In this order, so that the same choice is the same text for everybody.
OPERATIONS = ("+", "-", "*", "+-", "+*", "-*", "+-*")
MAX_TERMS = 10_000
MAX_NUMBER = 10**9
#: Of an answer, where no modulus keeps it short.
MAX_DIGITS = 18

_INTEGER = re.compile(r"[+-]?\d{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What peers agree on; the meaning of each is with `ArithmeticTasks` in node/config.py."""

    min_terms: int
    max_terms: int
    max_value: int
    operations: str
    modulus: int


class ArithmeticSource:
    """`spec.name` is what peers call it, `spec.config` has all of `min_terms`, `max_terms`, `max_value`, `operations`
    and `modulus`.

    Numbers are 1 to `max_value`, and products come before sums. With 4 terms, `max_value` 20 and all three operations,
    seed 0's first task has the difficulty {"terms":4}, the answer "939" (-58 + 997) and the prompt

        Calculate 14 * 8 - 17 * 10, and take the result modulo 997. Give the answer, a number from 0 to 996, inside
        <answer></answer>.

    (on one line).
    """

    version = VERSION
    size: int | None = None

    def __init__(self, spec: SourceSpec) -> None:
        """Raises ConfigError, which names the setting, its value and what is allowed."""
        self.name = f"arithmetic/{spec.name}"
        self._settings = _settings(self.name, spec.config)
        self.config = canonical_json(asdict(self._settings))

    def task(self, seed: int, index: int) -> Task:
        check_place(self.name, seed, index, self.size)
        rng = random.Random(f"{seed}/{index}")  # as text, so that neighbouring seeds have nothing in common

        def below(n: int) -> int:
            """Of random's methods, only `random` gives the same numbers in every version of Python."""
            return int(rng.random() * n)

        modulus = self._settings.modulus
        terms = self._settings.min_terms + below(self._settings.max_terms - self._settings.min_terms + 1)
        expression, value = _expression(self._settings, terms, below)
        then, kind = (
            (f", and take the result modulo {modulus}", f"a number from 0 to {modulus - 1}")
            if modulus
            else ("", "an integer")
        )
        return Task(
            ref=TaskRef(source=self.name, version=self.version, config=self.config, seed=seed, index=index),
            prompt=f"Calculate {expression}{then}. Give the answer, {kind}, inside <answer></answer>.",
            answer=str(value),
            difficulty=canonical_json({"terms": terms}),
        )

    def score(self, task: Task, response: str) -> float:
        """1 for the same integer, else 0: there is no partial credit."""
        given = final_answer(response)
        return float(_INTEGER.fullmatch(given) is not None and int(given) == int(task.answer))


def _expression(settings: _Settings, terms: int, below: Callable[[int], int]) -> tuple[str, int]:
    """A flat expression and its value, modulo the modulus where there is one. `below(n)` draws from 0 to n - 1."""
    modulus, total = settings.modulus, 0
    product = 1 + below(settings.max_value)  # that is being multiplied; `total` is the sum of those before it
    written = [str(product)]
    for _ in range(terms - 1):
        operation = settings.operations[below(len(settings.operations))]
        term = 1 + below(settings.max_value)
        if operation == "*":
            product *= term
        else:
            total, product = total + product, term if operation == "+" else -term
        if modulus:  # at every step: a product of thousands of terms would take as long to compute as to write
            total, product = total % modulus, product % modulus
        written += operation, str(term)
    value = total + product
    return " ".join(written), value % modulus if modulus else value


def _settings(name: str, config: str) -> _Settings:
    try:
        given = json.loads(config)
    except ValueError as error:
        raise ConfigError(f"{name}: config {config!r} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{name}: config {config!r} is not an object")
    names = [field.name for field in fields(_Settings)]
    if unknown := [key for key in given if key not in names]:
        near = difflib.get_close_matches(unknown[0], names, n=1) or names
        raise ConfigError(f"{name}: config.{unknown[0]}: there is no such setting; nearest is {', '.join(near)}")
    if missing := [key for key in names if key not in given]:
        raise ConfigError(f"{name}: config.{missing[0]} is missing; it must have {', '.join(names)}")
    _check(name, given)
    settings = _Settings(**given)
    _check_together(name, settings)
    return settings


def _check(name: str, given: Mapping[str, object]) -> None:
    """Each setting by itself."""
    if given["operations"] not in OPERATIONS:
        allowed = ", ".join(map(repr, OPERATIONS))
        raise ConfigError(f"{name}: config.operations = {given['operations']!r}; it is one of {allowed}")
    bounds = {"min_terms": (2, MAX_TERMS), "max_terms": (2, MAX_TERMS), "max_value": (1, MAX_NUMBER)}
    for key, (least, most) in {**bounds, "modulus": (0, MAX_NUMBER)}.items():
        value = given[key]
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(f"{name}: config.{key} = {value!r}; it must be a whole number from {least} to {most}")
        if key == "modulus" and value == 1:
            raise ConfigError(f"{name}: config.modulus = 1; every answer would be 0: it must be 0 (none) or at least 2")


def _check_together(name: str, settings: _Settings) -> None:
    """What no single setting can tell. Without a modulus, the longest answer has to be a short one."""
    terms, value = settings.max_terms, settings.max_value
    if terms < settings.min_terms:
        raise ConfigError(f"{name}: config.max_terms = {terms}; it must be at least min_terms ({settings.min_terms})")
    largest = math.log10(terms * value)
    if "*" in settings.operations:
        largest = max(largest, terms * math.log10(value))
    if not settings.modulus and largest >= MAX_DIGITS:
        raise ConfigError(
            f"{name}: config.modulus = 0; with max_terms = {terms}, max_value = {value} and operations ="
            f" {settings.operations!r} an answer may have {math.floor(largest) + 1} digits, and at most {MAX_DIGITS}"
            " are allowed: set a modulus, or make the others smaller"
        )
