"""A frozen base in four bits: its linear layers in NF4 (QLoRA, arXiv 2305.14314), which an adapter is trained beside.

64 weights share a scale, and 256 scales, of a byte each, another one: 0.516 bytes a weight. A layer's weights are put
together for the time of one product, forward and again backward, in the same way for who samples and who learns.

Codes and scales are bitsandbytes'. Of 1024 x 4096 weights, on one core, it makes them in 0.14 s and puts the weights
together in 5 to 8 ms with nothing beside them, where torchao 0.18 (`to_nf4`) takes 2.4 s, and 57 ms with another 16
bytes a weight. Its `Linear4bit` is not used: where no gradient is asked for it multiplies by other means (on a CPU with
AVX512-BF16 in bfloat16), and what samples would differ from what learns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from swarm.errors import PolicyError

#: Weights that share a scale (QLoRA, section 3).
BLOCK = 64


class Nf4Linear(torch.nn.Module):
    """What `linear` computed, but for the rounding of its weights; these get no gradient. No cast of the module changes
    what they are rounded to."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.shape = linear.weight.shape
        # In one row: bitsandbytes 0.50 takes wrong scales on a CPU where a row is no multiple of a block.
        row = linear.weight.detach().float().reshape(1, -1)
        codes, scales = _library().quantize_4bit(row, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        self.codes: torch.Tensor
        """uint8: two weights each."""
        self.scales: Any = scales
        """bitsandbytes' QuantState."""
        self.register_buffer("codes", codes)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], in the dtype of `x` or that of autocast."""
        return _Product.apply(x, self.codes, self.bias, self.scales, self.shape)  # pyright: ignore[reportReturnType]

    def weight(self) -> torch.Tensor:
        """float32 [out, in]: a copy, put together."""
        return _put_together(self.codes, self.scales, self.shape)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Nf4Linear:
        super()._apply(fn, recurse)
        self.scales.to(self.codes.device)
        return self


def require() -> None:
    """Raises PolicyError where bitsandbytes is not installed."""
    try:
        _library()
    except ImportError as error:
        raise PolicyError(
            'policy.adapter.base = "nf4" needs bitsandbytes, which is not installed: pip install '
            "'swarm-node[bitsandbytes]', or set policy.adapter.base = \"full\""
        ) from error


def quantise(model: PreTrainedModel) -> None:
    """Puts every frozen linear layer of `model` but the output head into NF4, one after the other."""
    for name, linear in _frozen(model):
        model.set_submodule(name, Nf4Linear(linear))


def layers(model: torch.nn.Module) -> Iterator[tuple[str, Nf4Linear]]:
    """Those in NF4, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Nf4Linear))


def weights_for(model: PreTrainedModel) -> int:
    """How many `quantise` would put there."""
    return sum(linear.weight.numel() for _, linear in _frozen(model))


def weights_in(model: torch.nn.Module) -> int:
    """How many weights of `model` are in NF4; they are no parameters of it."""
    return sum(layer.shape.numel() for _, layer in layers(model))


def _frozen(model: PreTrainedModel) -> list[tuple[str, torch.nn.Linear]]:
    head = model.get_output_embeddings()
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not module.weight.requires_grad
    ]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        codes: torch.Tensor,
        bias: torch.Tensor | None,
        scales: Any,
        shape: torch.Size,
    ) -> torch.Tensor:
        ctx.save_for_backward(codes)
        ctx.scales, ctx.shape = scales, shape
        return torch.nn.functional.linear(x, _put_together(codes, scales, shape).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - this is the one output
        (codes,) = ctx.saved_tensors
        return grad @ _put_together(codes, ctx.scales, ctx.shape).to(grad.dtype), None, None, None, None


def _put_together(codes: torch.Tensor, scales: Any, shape: torch.Size) -> torch.Tensor:
    return _library().dequantize_4bit(codes, scales).reshape(shape)


@lru_cache(maxsize=1)
def _library() -> Any:
    """bitsandbytes' functions. Raises ImportError where it is not installed."""
    if sys.modules.get("bitsandbytes", ...) is None:  # kept from peft (node/engine/__init__.py)
        del sys.modules["bitsandbytes"]
    from bitsandbytes import functional  # pyright: ignore[reportMissingImports] - an extra

    return functional
