"""Where prompts and rewards come from. One file a source, one registry."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from swarm.errors import ConfigError
from swarm.tasks.arithmetic import ArithmeticSource
from swarm.tasks.base import SourceSpec, TaskSource
from swarm.tasks.gym import ReasoningGymSource
from swarm.tasks.jsonl import JsonlSource

SOURCES: dict[str, Callable[[SourceSpec], TaskSource]] = {
    "reasoning_gym": ReasoningGymSource,
    "arithmetic": ArithmeticSource,
    "jsonl": JsonlSource,
}


def make_source(spec: SourceSpec) -> TaskSource:
    """The source that a spec describes; its type is a key of `SOURCES` or "module:factory".

    Raises ConfigError when there is no such type, or when the source refuses its settings.
    """
    if ":" in spec.type:
        return _imported(spec.type)(spec)
    if spec.type not in SOURCES:
        allowed = ", ".join(map(repr, SOURCES))
        raise ConfigError(f'task type {spec.type!r} is unknown; it is one of {allowed} or "module:factory"')
    return SOURCES[spec.type](spec)


def _imported(path: str) -> Callable[[SourceSpec], TaskSource]:
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"task type {path!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise ConfigError(f"task type {path!r} is a {type(factory).__name__}, not something that makes a source")
    return cast(Callable[[SourceSpec], TaskSource], factory)
