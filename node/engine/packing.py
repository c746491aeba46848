"""Whether several rollouts can share a row with a given model, and what attention costs there."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

from node.engine.logprobs import action_logprobs
from node.rl.packing import Packing

#: Largest difference that counts as none, in nats; in the precision that the model computes in.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}

log = logging.getLogger(__name__)


def packing_for(model: PreTrainedModel) -> Packing | None:
    """None where the model's layers or its attention cannot do it: recurrent ones have a state that has read the other
    continuations, and some kernels take no mask. Not guessed from names, but tried: two continuations of two tokens,
    together and apart.

    `quadratic` is a count of multiplications: attention needs 4 per position, layer and unit of the queries' width (q k
    and a v), everything else 2 per parameter beside the embeddings.
    """
    try:
        together, apart = _tried(model)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
        log.info("every rollout has a row of its own: %s", str(error).partition("\n")[0])
        return None
    if not bool((together - apart).abs().max() <= TOLERANCE.get(model.dtype, 0.25)):
        log.info("every rollout has a row of its own: this model's layers see more than their attention mask")
        return None
    config = model.config
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    embeddings = sum(p.numel() for p in model.get_input_embeddings().parameters())
    others = max(sum(p.numel() for p in model.base_model.parameters()) - embeddings, 1)
    quadratic = 4 * width * config.num_hidden_layers / (2 * others)
    return Packing(quadratic=quadratic, window=getattr(config, "sliding_window", None))


@torch.no_grad()
def _tried(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [4]: log-probabilities of [1, 2] and [3, 1] after [2, 3], in one sequence and in two."""
    device = model.device
    targets = torch.tensor([1, 2, 3, 1], device=device)
    part = torch.tensor([0, 0, 1, 1, 2, 2], device=device)
    sees = ((part[None, :] == 0) | (part[None, :] == part[:, None])) & torch.ones(6, 6, device=device).tril().bool()
    together = action_logprobs(
        model,
        torch.tensor([[2, 3, 1, 2, 3, 1]], device=device),
        sees[None, None],
        torch.tensor([[0, 1, 2, 3, 2, 3]], device=device),
        torch.tensor([1, 2, 1, 4], device=device),
        targets,
        temperature=1.0,
        chunk=4,
    )
    apart = action_logprobs(
        model,
        torch.tensor([[2, 3, 1, 2], [2, 3, 3, 1]], device=device),
        torch.ones(2, 4, dtype=torch.long, device=device),
        torch.arange(4, device=device).expand(2, 4),
        torch.tensor([1, 2, 5, 6], device=device),
        targets,
        temperature=1.0,
        chunk=4,
    )
    return together, apart
