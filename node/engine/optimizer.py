"""The optimiser of a learner: AdamW, with moments of four bytes or of one, on weights of its own where those that
compute are not float32 or have no room for it beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from node.algorithms import LearnerConfig
from node.engine.eight_bit import adamw_8bit
from node.engine.layers import cast


class Masters:
    """Float32 copies of a model's weights, which the optimiser works on: in RAM, or where the model is.

    With bfloat16 weights the copies are where small updates add up: at a learning rate of 1e-6 most of them would round
    to nothing otherwise.
    """

    def __init__(self, trained: Mapping[str, torch.nn.Parameter], device: torch.device | None) -> None:
        """`device`: where they are; None for where the model is."""
        self._trained = dict(trained)
        self.parameters = {
            name: torch.nn.Parameter(p.detach().to(device or p.device, torch.float32, copy=True))
            for name, p in trained.items()
        }
        """By name, as in `trained`."""

    def take_gradients(self) -> None:
        """Moves those of the model here; its own are gone."""
        for name, parameter in self._trained.items():
            gradient, parameter.grad = parameter.grad, None
            master = self.parameters[name]
            master.grad = None if gradient is None else gradient.to(master.device, torch.float32)

    @torch.no_grad()
    def give_weights(self) -> None:
        """To the model, in its own precision."""
        for name, parameter in self._trained.items():
            parameter.copy_(self.parameters[name])


def masters_of(
    model: torch.nn.Module, trained: Mapping[str, torch.nn.Parameter], learner: LearnerConfig
) -> Masters | None:
    """None where the optimiser works on the model's own weights. The model's are afterwards `learner.weights`."""
    if learner.weights == "float32" and not learner.offload_optimizer:
        return None
    masters = Masters(trained, torch.device("cpu") if learner.offload_optimizer else None)
    if learner.weights == "bfloat16":
        cast(model, torch.bfloat16)
    return masters


def make_optimizer(parameters: Iterable[torch.nn.Parameter], learner: LearnerConfig) -> torch.optim.Optimizer:
    """Raises PolicyError when the library that the config asks for is not installed."""
    if learner.optimizer == "adamw":
        return torch.optim.AdamW(
            list(parameters), lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay
        )
    return adamw_8bit(list(parameters), learner)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # compiled updates read it on the device
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
