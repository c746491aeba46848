"""Whether several rollouts can share a row with a given model: tried, not guessed from its name."""

from __future__ import annotations

import logging

import numpy as np
import torch

from node.engine.attention import take_over
from node.engine.head import Head
from node.engine.logprobs import TokenScores
from node.rl.segments import Segments

#: Largest difference that counts as none, in nats; in the precision that the model computes in.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}

log = logging.getLogger(__name__)


def share_rows(scores: TokenScores) -> bool:
    """Whether rollouts may share a row of the model in `scores`, whose attention is then replaced by one that knows how
    (node.engine.attention).

    Not with recurrent layers, which have a state that has read the other continuations, nor where attention is of a
    kind of its own. Tried with two continuations of one prompt, and another prompt, together and apart.
    """
    model = scores.model
    before = model.config._attn_implementation
    if before != "sdpa":
        log.info("every rollout has a row of its own: this model's attention is %s", before)
        return False
    try:
        take_over(model)
        together, apart = _tried(scores)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
        log.info("every rollout has a row of its own: %s", str(error).partition("\n")[0])
    else:
        if bool((together - apart).abs().max() <= TOLERANCE.get(scores.dtype, 0.25)):
            return True
        log.info("every rollout has a row of its own: this model's layers see more than their attention")
    model.set_attn_implementation(before)
    return False


@torch.no_grad()
def _tried(scores: TokenScores) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [6]: log-probabilities of [1, 2] and [3, 1] after [2, 3], and [2, 1] after [4]; in one row, in three."""
    device, head = scores.model.device, Head(temperature=1.0, chunk=8)
    targets = torch.tensor([1, 2, 3, 1, 2, 1], device=device)
    segments = Segments(
        lengths=np.array([2, 2, 2, 1, 2]), before=np.array([0, 2, 2, 0, 1]), prompt=np.array([0, 0, 0, 6, 6])
    )
    row = torch.tensor([[2, 3, 1, 2, 3, 1, 4, 2, 1]], device=device)
    together = scores(
        row,
        torch.ones_like(row),
        torch.tensor([[0, 1, 2, 3, 2, 3, 0, 1, 2]], device=device),
        torch.tensor([1, 2, 1, 4, 6, 7], device=device),
        targets,
        head,
        segments,
    )
    rows = torch.tensor([[2, 3, 1, 2], [2, 3, 3, 1], [4, 2, 1, 0]], device=device)
    apart = scores(
        rows,
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]], device=device),
        torch.arange(4, device=device).expand(3, 4),
        torch.tensor([1, 2, 5, 6, 8, 9], device=device),
        targets,
        head,
    )
    return together.logp, apart.logp
