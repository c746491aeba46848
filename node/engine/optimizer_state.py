"""An optimiser's state by the names of its parameters: what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from node.engine.eight_bit import as_state, plain_state
from swarm.errors import CheckpointError


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The optimiser's state as {"<parameter>/<key>": tensor}, e.g. "lm_head.weight/exp_avg".

    `names`: the optimiser's parameters, in the order of its groups. The tensors are the optimiser's own, not copies:
    save or clone them before the next step. Hyperparameters are not in it: those are the config's. A parameter that
    never had a gradient has no state. Moments of a byte are float32 here. For AdamW and its like: state is "step", and
    tensors of the parameter's shape.
    """
    return {
        f"{name}/{key}": plain_state(value.detach())
        for name, parameter, _ in _named_parameters(optimizer, names)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts state from `optimizer_tensors` back, bit for bit, in its own precision, on the parameters' devices (moments
    of a byte only to their precision: they are quantised anew).

    Raises CheckpointError when it belongs to other parameters; the optimiser is then unchanged.
    """
    parameters = _named_parameters(optimizer, names)
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in states:
            raise CheckpointError(f"optimizer state {full_name!r} belongs to no parameter of this policy")
        states[name][key] = tensor
    for name, parameter, _ in parameters:
        for key, tensor in states[name].items():
            if key != "step" and tensor.shape != parameter.shape:
                have, want = list(tensor.shape), list(parameter.shape)
                raise CheckpointError(f"optimizer state {name}/{key} has shape {have}, its parameter has {want}")
    optimizer.state.clear()
    for name, parameter, group in parameters:
        # Only fused and capturable kernels read the step count on the device; everything else wants it on the CPU.
        on_device = group.get("fused") or group.get("capturable")
        for key, tensor in states[name].items():
            device = parameter.device if on_device or key != "step" else torch.device("cpu")
            optimizer.state[parameter][key] = as_state(optimizer, parameter, key, tensor.to(device, copy=True))


def _named_parameters(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> list[tuple[str, torch.nn.Parameter, dict[str, Any]]]:
    """Of each parameter: its name, itself and its group."""
    parameters = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    if len(parameters) != len(names) or len(set(names)) != len(names):
        raise CheckpointError(f"{len(set(names))} names for the {len(parameters)} parameters of the optimizer")
    return [(name, parameter, group) for name, (parameter, group) in zip(names, parameters, strict=True)]
