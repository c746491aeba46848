"""What is done to a model for its training: layers computed again instead of kept, or compiled; weights in another
precision; the same bits twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from swarm.errors import PolicyError

Module = TypeVar("Module", bound=torch.nn.Module)


def layers_of(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The repeated ones, which are nearly all of the work."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def cast(
    model: Module, dtype: torch.dtype, which: Callable[[torch.nn.Parameter], bool] = lambda parameter: True
) -> Module:
    """`model` itself, with those parameters in `dtype`. Buffers stay as they were made: the frequencies of rotary
    positions, rounded to bfloat16, would be wrong by a radian after a thousand tokens."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and which(parameter):
            parameter.data = parameter.data.to(dtype)
    return model


class Recomputed:
    """Layers of `model` that keep their input only (activation checkpointing, arXiv 1604.06174), inside `forward`.

    transformers does it for modules in training mode. Ours never are, because of dropout; so it is the layers' own flag
    that is set, for the time of a forward pass, and of nothing inside of them. Raises PolicyError for a model that
    cannot.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = layers_of(model)
        if not self._layers or not model.supports_gradient_checkpointing:
            raise PolicyError(
                f"learner.recompute_activations = true: {type(model).__name__} has no layers that can be computed again"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})

    @contextmanager
    def forward(self) -> Iterator[None]:
        try:
            for layer in self._layers:
                layer.training = True
            yield
        finally:
            for layer in self._layers:
                layer.training = False


def compile_layers(model: PreTrainedModel) -> None:
    """Each by itself, for any length, so that a new shape compiles nothing. All of a kind share what was compiled;
    attention is left as it is (`node.engine.attention`). Raises PolicyError for a model without such layers."""
    layers = layers_of(model)
    if not layers:
        raise PolicyError(f"learner.compile = true: {type(model).__name__} has no layers that can be compiled alone")
    for layer in layers:
        layer.compile(dynamic=True)


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Inside, torch computes the same bits from the same input, or raises. For the whole process, while it lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
