"""Log-probabilities of the action tokens, without ever holding a batch's logits.

S sequences of T positions, H hidden size, N action tokens, V vocabulary. Full logits are S*T*V; here at most `chunk`
rows of V exist at a time, forward and backward (recomputed in the backward pass), and only where an action is.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


class TokenLogprobs(torch.nn.Module):
    """`action_logprobs` as a module around its model: what is sharded or compiled is one forward pass of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        action_index: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
    ) -> torch.Tensor:
        return action_logprobs(
            self.model, input_ids, attention_mask, position_ids, action_index, targets, temperature, chunk
        )


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
    """float32 [N]: tempered log-probability of `targets` [N] after the flat positions `action_index` [N] of
    `input_ids` [S, T]. `attention_mask`: as in `node.rl.batch.MicroBatch`."""
    hidden = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    hidden = hidden.flatten(0, 1)[action_index]
    softcap = getattr(model.config, "final_logit_softcapping", None)
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)  # of any causal language model
    if len(targets) <= chunk:  # the backward pass holds one chunk of logits anyway: nothing to recompute it for
        return _chunk(head, hidden, targets, temperature, softcap)
    parts = [
        checkpoint(_chunk, head, rows, wanted, temperature, softcap, use_reentrant=False)
        for rows, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _chunk(
    head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, softcap: float | None
) -> torch.Tensor:
    logits = head(hidden).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
