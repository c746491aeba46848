"""Procedural, self-verifying tasks of reasoning-gym.

reasoning-gym makes an item from `Random(seed + index)`: so `(seed, index)` names it, and neighbouring seeds overlap
(which is why held-out questions are chosen by their text). Its scorers were written for one's own experiments. Here
strangers' texts are scored, and a policy is trained against the score; so a dataset is refused where it cannot be
agreed upon or is won without being solved, and a response reaches a scorer only in a form that can do no harm.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from numbers import Integral, Real
from typing import Any

from swarm.errors import ConfigError, TaskError
from swarm.tasks.base import SourceSpec, canonical_json
from swarm.tasks.scoring import check_place, describe, final_answer
from swarm.types import Task, TaskRef

_HASH_ORDER = "its items depend on the order of a set, which differs between processes"

#: Measured over the datasets of reasoning-gym 0.1.25 with default settings: up to 81 items each (31 of futoshiki, 8 of
#: knight_swap: they take seconds), made in three orders by three processes with different hash seeds; and 31 constant
#: or mutilated answers to each of 20 items (3 of the slow ones) for what is won without being solved. Other settings
#: have not been measured.
REFUSED: Mapping[str, str] = {
    "codeio": "making an item runs arbitrary code, which writes files and is not deterministic",
    "coin_flip": 'its scorer gives full marks to "0" for every probability below one',
    "composite": "it mixes datasets: name them as tasks of their own",
    "intermediate_integration": _HASH_ORDER,
    "isomorphic_strings": _HASH_ORDER,
    "knight_swap": _HASH_ORDER,
    "list_functions": "its items depend on the process's global random state",
    "polynomial_multiplication": _HASH_ORDER,
    "ransom_note": _HASH_ORDER,
    "word_ladder": _HASH_ORDER,
}

_DIGITS = re.compile(r"[\d\s-]*+", re.ASCII)
_ARITHMETIC = re.compile(r"(?!.*\*\s*\*)(?!.*/\s*/)[\d\s.+*/()-]{0,200}+", re.ASCII | re.DOTALL)

#: What a response must look like to reach the scorer; anything else is wrong. All but the last two of these scorers
#: evaluate it as Python: so no attribute, string or bracket gets there, and what is called is at most SymPy's names of
#: one letter. `complex_arithmetic` gives full marks to "nan", and to `game_of_life_halting` every text is True.
FORMS: Mapping[str, re.Pattern[str]] = {
    "binary_matrix": _DIGITS,
    "spiral_matrix": _DIGITS,
    "string_insertion": re.compile(r"[A-Za-z]*+"),
    "n_queens": re.compile(r"[_Q\s]*+"),
    "countdown": _ARITHMETIC,
    "puzzle24": _ARITHMETIC,
    "simple_integration": re.compile(r"(?:[\s+*/()-]|\d++(?:\.\d++)?+|[A-Za-z](?![A-Za-z0-9_.])){0,500}+", re.ASCII),
    "complex_arithmetic": re.compile(r"[\d\s.+ij*()-]*+", re.ASCII),
    "game_of_life_halting": re.compile(r"True|False"),
}

#: Comparisons with NaN are false, so that "further off than the tolerance" is never said of it.
_NOT_A_NUMBER = re.compile(r"(?<![A-Za-z])(?:nan|inf|infinity)(?![A-Za-z])", re.IGNORECASE)

#: Datasets that draw from their seed when they are made, not only when an item is asked for.
_DRAWN_WHEN_MADE = frozenset({"acre", "gsm_symbolic"})
#: Their items per seed: small, because all are drawn at once. Further indices go on with a seed derived from both.
CHUNK = 64

#: Anything else is partial credit. No tolerance: for a right answer with something behind it `spell_backward` adds up n
#: times 1/n, which is often 0.9999999999999999 or 1.0000000000000002.
FULL_MARKS = 1.0

_OWN_SETTINGS = ("seed", "size")


class ReasoningGymSource:
    """One dataset under one config. `spec.name` is the dataset's name, `spec.config` its own settings.

    `task(seed, index)` is item `index` of `reasoning_gym.create_dataset(name, seed=seed, **config)`.
    """

    size: int | None = None

    def __init__(self, spec: SourceSpec) -> None:
        settings = _settings(spec)
        self.name = f"reasoning_gym/{spec.name}"
        self.version = version("reasoning-gym")
        self.config = canonical_json(settings)
        self._dataset_name = spec.name
        self._make_dataset = _dataset_maker(spec.name, settings)
        self._template = self._make_dataset(0)
        self._made = lru_cache(maxsize=16)(self._make_dataset)

    def task(self, seed: int, index: int) -> Task:
        check_place(self.name, seed, index, self.size)
        try:
            entry = self._entry(seed, index)
        except Exception as error:  # generators give up in many ways; the reference is then no task
            raise TaskError(f"{self.name}: no task at seed {seed}, index {index}: {describe(error)}") from error
        ref = TaskRef(source=self.name, version=self.version, config=self.config, seed=seed, index=index)
        answer = "" if entry["answer"] is None else str(entry["answer"])
        difficulty = difficulty_of(entry["metadata"])
        return Task(ref=ref, prompt=entry["question"], answer=answer, difficulty=difficulty, metadata={"entry": entry})

    def score(self, task: Task, response: str) -> float:
        """1 for full marks, else 0. An entry that did not travel with the task is made again."""
        answer = final_answer(response)
        form = FORMS.get(self._dataset_name)
        if form is not None and not form.fullmatch(answer):
            return 0.0
        if _NOT_A_NUMBER.search(answer) and not _NOT_A_NUMBER.search(task.answer):
            return 0.0
        entry = task.metadata.get("entry") or self._entry(task.ref.seed, task.ref.index)
        return 1.0 if self._template.score_answer(answer, entry) == FULL_MARKS else 0.0

    def _entry(self, seed: int, index: int) -> dict[str, Any]:
        if self._dataset_name in _DRAWN_WHEN_MADE:
            chunk, place = divmod(index, CHUNK)
            return self._made(_chunk_seed(seed, chunk))[place]
        # Making a dataset may mean reading a word list; giving a copy another seed costs nothing.
        dataset = copy.copy(self._template)
        dataset.seed = seed
        dataset.config = dataclasses.replace(dataset.config, seed=seed)
        return dataset[index]


def difficulty_of(metadata: Mapping[str, Any]) -> str:
    """Canonical JSON of the item's own value of everything that its dataset calls difficulty.

    A setting that is only a range says nothing of the item and is left out. Floats keep two digits: a level is shared.
    """
    named = metadata.get("difficulty", {})
    if not isinstance(named, Mapping):
        named = {"difficulty": named}
    levels: dict[str, bool | int | float | str] = {}
    for key, setting in named.items():
        level = _scalar(metadata.get(key))
        level = _scalar(setting) if level is None else level
        if level is not None:
            levels[str(key)] = level
    return canonical_json(levels)


def _scalar(value: object) -> bool | int | float | str | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(f"{float(value):.2g}")
    return value if isinstance(value, str) and len(value) <= 32 else None


def _chunk_seed(seed: int, chunk: int) -> int:
    if chunk == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{chunk}".encode()).digest()[:4])


def _settings(spec: SourceSpec) -> dict[str, Any]:
    try:
        settings = json.loads(spec.config)
    except ValueError as error:
        raise ConfigError(f"reasoning_gym/{spec.name}: config {spec.config!r} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"reasoning_gym/{spec.name}: config {spec.config!r} is not an object")
    return settings


def _dataset_maker(name: str, settings: dict[str, Any]) -> Any:
    """seed -> dataset; everything that can be wrong with the name and the settings has been checked."""
    # Takes more than a second, which only who has such tasks should pay.
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4) or sorted(DATASETS)
        raise ConfigError(f"reasoning_gym has no dataset {name!r}; nearest are {', '.join(near)}")
    if name in REFUSED:
        raise ConfigError(f"reasoning_gym/{name} cannot be used in a swarm: {REFUSED[name]}")
    arguments = _arguments(name, settings, DATASETS[name][1])

    def make(seed: int) -> Any:
        return create_dataset(name, **arguments, seed=seed, size=CHUNK)

    try:
        make(0)
    except Exception as error:  # datasets refuse their settings with whatever they like
        named = [key for key in arguments if key in str(error)] or list(arguments)
        what = ", ".join(f"{key} = {settings[key]!r}" for key in named)
        raise ConfigError(f"reasoning_gym/{name}: config {what}: {str(error) or describe(error)}") from error
    return make


def _arguments(name: str, settings: dict[str, Any], config_class: Any) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(config_class) if f.name not in _OWN_SETTINGS}
    arguments: dict[str, Any] = {}
    for key, value in settings.items():
        where = f"reasoning_gym/{name}: config.{key} = {value!r}"
        if key in _OWN_SETTINGS:
            raise ConfigError(f"{where}: seed and size are not settings, the task's reference has them")
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=3, cutoff=0.4) or sorted(fields)
            raise ConfigError(f"{where}: there is no such setting; nearest are {', '.join(near)}")
        arguments[key] = _argument(where, value, fields[key])
    return arguments


def _argument(where: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    """`value` as the field wants it. The dataclasses of reasoning-gym check ranges but not types."""
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    kind = field.type if isinstance(field.type, type) else type(default)
    if default is None or default is dataclasses.MISSING:
        return value
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind not in (bool, int, float, str, list, dict, tuple):
        raise ConfigError(f"{where}: a {kind.__name__} cannot be written in a config")
    if type(value) is not kind:
        raise ConfigError(f"{where} is a {type(value).__name__}; it must be a {kind.__name__} (default {default!r})")
    return value
