"""The output head: log-probabilities and entropies of hidden states, a chunk of logits at a time.

N action tokens of H hidden units, V vocabulary. At most `chunk` rows of V exist at once, in one buffer, forward and
backward: the backward pass computes them again, but for the last chunk's, which it begins with.

    z = scale * (h W^T + b), soft-capped;  log p = log_softmax(z / temperature)[target]
    d log p / dz = (onehot(target) - p) / temperature
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

#: Numbers that are worked on at the same time where a chunk is not done in place.
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How logits are made of a head's product, and how many at a time."""

    temperature: float
    chunk: int
    """Rows of logits that exist at the same time."""
    fp32: bool = False
    """Multiply in float32 also under autocast (ScaleRL, arXiv 2510.13786): 16-bit logits are the largest difference
    between what samples and what learns."""
    softcap: float | None = None
    scale: float = 1.0


class Scores(NamedTuple):
    """Of N action tokens, float32 [N] each."""

    logp: torch.Tensor
    """Tempered log-probability of the token that was sampled; has a gradient."""
    entropy: torch.Tensor
    """Of the tempered distribution that it was sampled from, in nats; has none."""


def head_scores(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, head: Head
) -> Scores:
    """`hidden` [N, H], `weight` [V, H], `bias` [V] or None, `targets` int64 [N]."""
    logp, entropy = _HeadScores.apply(hidden, weight, bias, targets, head)  # pyright: ignore[reportGeneralTypeIssues]
    return Scores(logp, entropy)


class _HeadScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kind = hidden.device.type
        ctx.dtype = torch.float32 if head.fp32 else _computed_in(kind, hidden.dtype)
        count = len(targets)
        logp = torch.empty(count, dtype=torch.float32, device=hidden.device)
        entropy, lse = torch.empty_like(logp), torch.empty_like(logp)
        probabilities = None
        with torch.autocast(kind, enabled=False):
            cast = weight.to(ctx.dtype)
            for start in range(0, count, head.chunk):
                part = slice(start, min(start + head.chunk, count))
                probabilities = None  # before the next chunk is made
                logits = _logits(hidden[part].to(ctx.dtype), cast, bias, head)
                lse[part] = torch.logsumexp(logits, -1)
                logp[part] = logits.gather(-1, targets[part, None]).squeeze(-1) - lse[part]
                entropy[part] = _to_probabilities(logits, lse[part])
                probabilities = logits
        ctx.head, ctx.last = head, probabilities
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - these are the two outputs
        ctx: Any, grad: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        head: Head = ctx.head
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        cast = weight.to(ctx.dtype)
        probabilities, ctx.last = ctx.last, None
        for start in reversed(range(0, len(targets), head.chunk)):
            part = slice(start, start + head.chunk)
            rows = hidden[part].to(ctx.dtype)
            slope = _logits_gradient(probabilities, rows, cast, bias, lse[part], targets[part], grad[part], head)
            probabilities = None
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ cast
            if grad_weight is not None:
                grad_weight += slope.T @ rows
        return grad_hidden, _like(grad_weight, weight), _like(grad_bias, bias), None, None


def _logits(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head: Head) -> torch.Tensor:
    """float32 [chunk, V], tempered."""
    logits = (rows @ weight.T).float()
    if bias is not None:
        logits += bias
    if head.softcap is not None:
        logits = logits.mul_(head.scale / head.softcap).tanh_().mul_(head.softcap / head.temperature)
    elif head.scale != head.temperature:
        logits *= head.scale / head.temperature
    return logits


def _to_probabilities(logits: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """Their entropies [chunk]; `logits` become p. A few rows at a time, so that there is no second buffer of them."""
    rows = max(1, BLOCK // logits.shape[1])
    entropies = []
    for block, total in zip(logits.split(rows), lse.split(rows), strict=True):
        logp = block - total[:, None]
        torch.exp(logp, out=block)
        entropies.append(-torch.bmm(block[:, None], logp[:, :, None]).flatten())
    return torch.cat(entropies)


def _logits_gradient(
    probabilities: torch.Tensor | None,
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lse: torch.Tensor,
    targets: torch.Tensor,
    grad: torch.Tensor,
    head: Head,
) -> torch.Tensor:
    """float32 [chunk, V]: of the head's product, before scale, cap and temperature. `probabilities` is overwritten."""
    capped = None
    if probabilities is None or head.softcap is not None:
        logits = _logits(rows, weight, bias, head)
        if head.softcap is not None:
            capped = logits * (head.temperature / head.softcap)
        probabilities = logits.sub_(lse[:, None]).exp_()
    slope = probabilities.mul_(-grad[:, None])
    slope.scatter_add_(-1, targets[:, None], grad[:, None])
    if capped is not None:
        slope *= 1 - capped.square_()
    if head.scale != head.temperature:
        slope *= head.scale / head.temperature
    return slope


def _computed_in(kind: str, dtype: torch.dtype) -> torch.dtype:
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype


def _like(gradient: torch.Tensor | None, tensor: torch.Tensor | None) -> torch.Tensor | None:
    return gradient if gradient is None or tensor is None else gradient.to(tensor.dtype)
