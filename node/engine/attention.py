"""Attention of rows that hold several rollouts (node.rl.segments), as an implementation that transformers models call.

Two ways, of one mathematics: on a GPU and in 16 bit all segments in one call of torch's variable-length
FlashAttention; everywhere else scaled_dot_product_attention on buckets of similar segments. Either computes what some
token sees, and next to nothing else. Without segments it is transformers' own scaled_dot_product_attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from node.rl.segments import Bucket, Segments, buckets

#: In transformers' registry.
NAME = "segments"
#: Takes the place of a mask: what a token sees is in the segments. transformers leaves four dimensions alone.
NO_MASK_SHAPE = (1, 1, 1, 1)


@dataclass(slots=True, eq=False)
class DenseBucket:
    """A `Bucket` on a device."""

    bucket: Bucket
    queries: torch.Tensor
    keys: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    """By window: float [B, 1, L, K], added to the scores. One for all layers."""

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """None where causal attention is all that is needed."""
        if window is not None and window >= self.keys.shape[1]:
            window = None
        if self.bucket.causal and window is None:
            return None
        if window not in self.masks:
            sees = torch.from_numpy(self.bucket.sees(window)).to(self.queries.device).unsqueeze(1)
            self.masks[window] = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -math.inf)
        return self.masks[window]


@dataclass(slots=True, eq=False)
class Dense:
    """How scaled_dot_product_attention gets its segments."""

    buckets: list[DenseBucket]
    order: torch.Tensor
    """int64 [T], where in the buckets' queries, flattened and one after the other, each token of the row is."""

    @classmethod
    def of(cls, segments: Segments, device: torch.device) -> Dense:
        made = buckets(segments)
        where = np.zeros(int(segments.lengths.sum()), dtype=np.int64)
        base = 0
        for bucket in made:
            rows, width = bucket.queries.shape
            counts = np.arange(width)[None] < bucket.lengths[:, None]
            where[bucket.queries[counts]] = base + np.arange(rows * width).reshape(rows, width)[counts]
            base += rows * width
        return cls(
            buckets=[
                DenseBucket(
                    bucket=bucket,
                    queries=torch.from_numpy(bucket.queries).to(device),
                    keys=torch.from_numpy(bucket.keys).to(device),
                )
                for bucket in made
            ],
            order=torch.from_numpy(where).to(device),
        )


@dataclass(slots=True, eq=False)
class Ragged:
    """How variable-length FlashAttention gets them."""

    keys: torch.Tensor
    """int64 [all keys], the segments' one after the other, into the row."""
    query_starts: torch.Tensor
    """int32 [n + 1]."""
    key_starts: torch.Tensor
    """int32 [n + 1]."""
    max_queries: int
    max_keys: int

    @classmethod
    def of(cls, segments: Segments, device: torch.device) -> Ragged:
        def ends(lengths: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)

        index = np.concatenate([segments.key_index(i) for i in range(len(segments.lengths))])
        return cls(
            keys=torch.from_numpy(index).to(device),
            query_starts=ends(segments.lengths),
            key_starts=ends(segments.keys),
            max_queries=int(segments.lengths.max()),
            max_keys=int(segments.keys.max()),
        )


def layout(segments: Segments, device: torch.device, computed_in: torch.dtype) -> Dense | Ragged:
    """For the model's keyword argument `segments`."""
    flash = device.type == "cuda" and computed_in in (torch.bfloat16, torch.float16)
    return Ragged.of(segments, device) if flash else Dense.of(segments, device)


def take_over(model: PreTrainedModel) -> None:
    """Makes `model`, which uses scaled_dot_product_attention, accept `segments`."""
    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


@torch.compiler.disable
def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Dense | Ragged | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """[1, T, heads, head_dim] of query [1, heads, T, head_dim], key and value [1, kv_heads, T, head_dim].

    Raises NotImplementedError for a layer that sees less than the segments say, and does not say so.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    _check_window(module, sliding_window)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, head_dim]
    if isinstance(segments, Ragged):
        out = _ragged(q, k, v, segments, scaling, sliding_window)
    else:
        out = _dense(q, k, v, segments, scaling, sliding_window)
    return out.unsqueeze(0), None


def _dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Dense,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    outputs = []
    for part in segments.buckets:
        q = _picked(query, part.queries).transpose(1, 2)
        k, v = (_picked(tensor, part.keys).transpose(1, 2) for tensor in (key, value))
        mask = part.mask(window, q.dtype)
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return _picked(torch.cat(outputs), segments.order)


def _ragged(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Ragged,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """FlashAttention's causal mask is aligned with the last key, which is what segments are."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    return varlen_attn(
        query.to(dtype),
        _picked(key, segments.keys).to(dtype),
        _picked(value, segments.keys).to(dtype),
        segments.query_starts,
        segments.key_starts,
        segments.max_queries,
        segments.max_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )  # pyright: ignore[reportReturnType] - a pair only where more is asked for


def _picked(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[*index, heads, head_dim] of [T, heads, head_dim]. As an embedding: its backward pass is the quick one."""
    return functional.embedding(index, tensor.flatten(1)).unflatten(-1, tensor.shape[1:])


def _check_window(module: torch.nn.Module, window: int | None) -> None:
    config: Any = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[getattr(module, "layer_idx", 0)] if kinds else None
    if kind not in (None, "full_attention", "sliding_attention") or (kind == "sliding_attention" and window is None):
        raise NotImplementedError(f"layers of type {kind!r} do not say what they see")
    if kind is None and window is None and getattr(config, "sliding_window", None):
        raise NotImplementedError("layers with a sliding window do not say so")
