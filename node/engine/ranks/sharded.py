"""A model whose every parameter is cut into as many parts as there are ranks: FSDP2 (`fully_shard`, arXiv 2304.11277).

It is made without weights and filled from the node's memory, part by part: no rank ever holds all of them. Between
steps, each holds its part of weights, gradients and the optimiser's state; in a step, one layer's weights beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM

from node.config import Lora
from node.engine import lora
from node.engine.layers import cast
from node.engine.logprobs import TokenScores


class Ranks:
    """`Team` over torch.distributed: numbers travel between CPUs (gloo), whatever the tensors do."""

    def all(self, values: np.ndarray) -> list[np.ndarray]:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(values)]))
        most = max(int(size) for size in sizes)
        padded = torch.zeros(most, dtype=torch.float64)
        padded[: len(values)] = torch.from_numpy(values.astype(np.float64))
        gathered = [torch.zeros(most, dtype=torch.float64) for _ in sizes]
        dist.all_gather(gathered, padded)
        return [part[: int(size)].numpy() for part, size in zip(gathered, sizes, strict=True)]


def sharded(
    config: Mapping[str, Any],
    attention: str,
    adapter: Lora | None,
    weights: torch.dtype,
    device: torch.device,
    mesh: DeviceMesh,
) -> TokenScores:
    """The model that `config` (transformers', as JSON) describes, on `device`, this rank's; what is in it is chance.

    `weights`: that it computes in. What is trained is kept in float32 all the same, and so is its gradient; what is put
    together in a step, and what is frozen, is not.
    """
    with torch.device("meta"):
        described = AutoConfig.for_model(**config)
        model = AutoModelForCausalLM.from_config(described, dtype=torch.float32, attn_implementation=attention)
        model.tie_weights()
        if adapter is not None:
            lora.inject(model, adapter, "", "")
    cast(model, weights, lambda parameter: not parameter.requires_grad)
    module = TokenScores(model, weights)
    policy = MixedPrecisionPolicy(param_dtype=weights, reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = [each for each in model.modules() if type(each).__name__ in (model._no_split_modules or ())]
    for each in (*layers, module):
        # The outermost one's weights (embeddings, head) go as well when they have been used: a probe has no backward
        # pass after which they would.
        shard = fully_shard(each, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        shard.set_force_sum_reduction_for_comms(True)
        shard.set_gradient_divide_factor(1.0)  # losses are divided by the whole batch's counts: gradients add up
    module.to_empty(device=device)
    return module


def fill(model: torch.nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Puts whole tensors, by the name of parameter or buffer, in the place of what `model` holds of them."""
    places = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    with torch.no_grad():
        for name, whole in tensors:
            place = places[name]
            part = part_of(whole, place)
            (place.to_local() if isinstance(place, DTensor) else place).copy_(
                part.to_local() if isinstance(part, DTensor) else part
            )


def part_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What this rank has of `whole`, cut as `like` is."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def whole_of(part: torch.Tensor) -> torch.Tensor:
    """All ranks must ask. The one thing of that size that a device holds at a time."""
    return part.full_tensor() if isinstance(part, DTensor) else part
