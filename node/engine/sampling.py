"""Batched sampling with a KV cache, over any transformers causal language model.

What it guarantees: the recorded log-probability of a token is that of the distribution it was really drawn from
(temperature and top-p applied, normalised in float32), and a row's tokens end with the end-of-sequence token iff the
policy ended it. The n continuations of a prompt share its prefill. Rows that have finished leave the batch.

B = rows, P = prompts, T = longest prompt, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from swarm.types import FinishReason, SamplingParams

#: Rows are taken out of the cache when this share of them is still active: each removal copies what remains.
COMPACT_BELOW = 0.75


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledRow:
    ids: np.ndarray
    """int32 [T]."""
    logprobs: np.ndarray
    """float32 [T]."""
    finish: FinishReason


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    counts: Sequence[int],
    params: SamplingParams,
    eos_id: int,
    rng: torch.Generator,
) -> list[list[SampledRow]]:
    """`counts[i]` continuations of `prompts[i]` (int32 [P_i]), in order. `params.stop` is the caller's business."""
    logits, cache, mask = _prefill(model, prompts, eos_id)
    rows = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(counts)).to(logits.device)
    cache.batch_select_indices(rows)
    logits, mask = logits[rows], mask[rows]
    active = torch.arange(len(rows), device=logits.device)  # which output row each cache row is
    ids = torch.full((len(rows), params.max_new_tokens), -1, dtype=torch.long, device=logits.device)
    logprobs = torch.zeros(ids.shape, dtype=torch.float32, device=logits.device)
    alive = torch.ones(len(rows), dtype=torch.bool, device=logits.device)  # by cache row
    for position in range(params.max_new_tokens):
        token, logprob = draw(logits, params, rng)
        ids[active[alive], position] = token[alive]
        logprobs[active[alive], position] = logprob[alive]
        alive = alive & (token != eos_id)
        remaining = int(alive.sum())
        if remaining == 0 or position + 1 == params.max_new_tokens:
            break
        if remaining < COMPACT_BELOW * len(alive):
            kept = alive.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            active, token, mask, alive = active[kept], token[kept], mask[kept], alive[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = _forward(model, token.unsqueeze(1), mask, mask.sum(1, keepdim=True) - 1, cache)
    return _split(ids.cpu().numpy(), logprobs.cpu().numpy(), counts, eos_id)


def draw(logits: torch.Tensor, params: SamplingParams, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row of `logits` [B, V] and its log-probability under the tempered, top-p-truncated distribution.

    The argmax of p / Exp(1) noise is a sample of p: one pass, no cumulative sum.
    """
    logprobs = torch.log_softmax(logits.float() / params.temperature, dim=-1)
    if params.top_p < 1.0:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass above each token: the first is always kept
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        logprobs = torch.log_softmax(logprobs.masked_fill(outside, -torch.inf), dim=-1)
    noise = torch.empty_like(logprobs).exponential_(generator=rng).clamp_(min=1e-20)
    token = (logprobs - noise.log()).argmax(dim=-1)
    return token, logprobs.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def _prefill(
    model: PreTrainedModel, prompts: Sequence[np.ndarray], pad_id: int
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
    """Left-padded: logits [P, V] of the last position, the cache, and the attention mask [P, T]."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(np.ascontiguousarray(prompt, dtype=np.int64))
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return _forward(model, ids, mask, positions, cache), cache, mask


def _forward(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def _split(ids: np.ndarray, logprobs: np.ndarray, counts: Sequence[int], eos_id: int) -> list[list[SampledRow]]:
    rows = []
    for row_ids, row_logprobs in zip(ids, logprobs, strict=True):
        length = int((row_ids >= 0).sum())
        finish = FinishReason.STOP if row_ids[length - 1] == eos_id else FinishReason.LENGTH
        # rounding can leave a certain token at +1e-8: log-probabilities are never positive
        certain = np.minimum(row_logprobs[:length], 0.0).astype(np.float32)
        rows.append(SampledRow(ids=row_ids[:length].astype(np.int32), logprobs=certain, finish=finish))
    ends = np.cumsum(counts)
    return [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]
