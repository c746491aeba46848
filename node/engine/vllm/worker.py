"""What our node asks of vLLM's workers beyond their own methods: `worker_extension_cls`, a base of their class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import LinearBase

from node.engine.parity import probe_vector

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

HEAD = "lm_head"


class WorkerExtension:
    model_runner: GPUModelRunner

    def swarm_processes(self) -> list[int]:
        """Ids of this process and of the one that started it."""
        return [os.getpid(), os.getppid()]

    @torch.inference_mode()
    def swarm_layers(self) -> dict[str, list[float]]:
        """Parameter -> what it makes of `probe_vector`, computed the way that sampling does: weights themselves are
        packed into layouts that cannot be read."""
        return {name: values.float().tolist() for name, values in _outputs(self.model_runner.get_model())}

    def swarm_fused(self) -> dict[str, list[str]]:
        """Last part of a fused layer's name -> those of the layers in it ("qkv_proj" -> "q_proj", ...)."""
        return dict(getattr(self.model_runner.get_model(), "packed_modules_mapping", {}))


def _outputs(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, layer in model.named_modules():
        parameters = layer._parameters
        if (bias := parameters.get("bias")) is not None:
            yield f"{name}.bias", bias.flatten()
        if isinstance(layer, LinearBase):
            yield f"{name}.weight", _applied(layer, layer.input_size)
        elif name != HEAD and (weight := parameters.get("weight")) is not None:
            flat = weight.ndim < 2
            product = weight if flat else weight.float() @ probe_vector(weight.shape[-1]).to(weight.device)
            yield f"{name}.weight", product.flatten()
    # Where it is the embedding, it may still have a packed copy of its own to multiply with.
    if (head := getattr(model, HEAD, None)) is not None:
        yield f"{HEAD}.weight", _applied(head, head.embedding_dim)


def _applied(layer: Any, size: int) -> torch.Tensor:
    """One of vLLM's linear layers to the probe's vector, without its bias."""
    x = probe_vector(size).to(layer.weight.device, layer.weight.dtype)  # the dtype stays when the weight was packed
    return layer.quant_method.apply(layer, x.unsqueeze(0), None)[0]
