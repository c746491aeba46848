"""Log-probabilities of the action tokens: the model's layers, then its head where an action is and nowhere else.

S sequences of T positions, N action tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from node.engine.attention import NO_MASK_SHAPE, layout
from node.engine.head import Head, Scores, head_scores
from node.rl.segments import Segments


class TokenScores(torch.nn.Module):
    """`token_scores` as a module around its model: what is sharded or compiled is one forward pass of it."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
        """`dtype`: that its weights are in while it computes, where they are kept in another."""
        super().__init__()
        self.model = model
        self.dtype = dtype or model.dtype

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        action_index: torch.Tensor,
        targets: torch.Tensor,
        head: Head,
        segments: Segments | None = None,
    ) -> Scores:
        return token_scores(self.model, input_ids, attention_mask, position_ids, action_index, targets, head, segments)


def token_scores(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    action_index: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    segments: Segments | None = None,
) -> Scores:
    """Of `targets` [N] after the flat positions `action_index` [N] of `input_ids` [S, T]; the other arguments as in
    `node.rl.batch.MicroBatch`. `segments` need `node.engine.packing.share_rows`."""
    seen: dict[str, object] = {"attention_mask": attention_mask}
    if segments is not None:
        computed_in = _computed_in(model)
        seen = {
            "attention_mask": input_ids.new_zeros(NO_MASK_SHAPE, dtype=torch.float32),
            "segments": layout(segments, input_ids.device, computed_in),
        }
    hidden = model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **seen)
    output = model.get_output_embeddings()
    assert isinstance(output, torch.nn.Linear)  # of any causal language model
    rows = hidden.last_hidden_state.flatten(0, 1)[action_index]
    return head_scores(rows, output.weight, output.bias, targets, _of_model(head, model))


def action_logprobs(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    action_index: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    chunk: int,
) -> torch.Tensor:
    """float32 [N]: the tempered log-probabilities alone."""
    head = Head(temperature=temperature, chunk=chunk)
    return token_scores(model, input_ids, attention_mask, position_ids, action_index, targets, head).logp


def _of_model(head: Head, model: PreTrainedModel) -> Head:
    """With what the model does to its logits (Gemma 2's cap, Cohere's and Granite's scale)."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    return replace(head, softcap=getattr(config, "final_logit_softcapping", None), scale=scale)


def _computed_in(model: PreTrainedModel) -> torch.dtype:
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
