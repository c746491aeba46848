"""Optimiser moments of a byte (arXiv 2110.02861): torchao's AdamW8bit, and its state as a checkpoint has it.

Moments are quantised in blocks of 256, those of small parameters not at all. Its updates are compiled, which takes a
C++ compiler on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from node.algorithms import LearnerConfig
from swarm.errors import PolicyError

#: Moments with a sign.
SIGNED = ("exp_avg",)


def adamw_8bit(parameters: Sequence[torch.nn.Parameter], learner: LearnerConfig) -> torch.optim.Optimizer:
    """Raises PolicyError where torchao is not installed."""
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise PolicyError(
            'learner.optimizer = "adamw_8bit" needs torchao, which is not installed: pip install torchao, or set '
            'learner.optimizer = "adamw"'
        ) from error
    return AdamW8bit(list(parameters), lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay)


def plain_state(value: torch.Tensor) -> torch.Tensor:
    """A moment in float32, where it is quantised."""
    quantised: Any = value
    return quantised.dequantize() if hasattr(value, "codes") else value


def as_state(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, key: str, value: torch.Tensor
) -> torch.Tensor:
    """`value`, from `plain_state`, as `optimizer` keeps it: quantised again, where it quantises."""
    make: Any = getattr(optimizer, "_new_buffer", None)
    if make is None or key == "step":
        return value
    return make(parameter, key in SIGNED).copy_(value)
