"""From rows to padded micro-batches. Shapes: S rows of one micro-batch, T of its longest, N action tokens in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from node.rl.samples import TokenRow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows of one forward pass, padded on the right, and where their action tokens are.

    A prompt [7, 8] continued by [5, 6, eos], in a batch with T = 6:

        input_ids      7 8 5 6 eos 0
        action_index     1 2 3            the position before each action: its logits predict the action
        targets          5 6 eos
    """

    input_ids: Tensor
    """int64 [S, T], 0 where padded."""
    attention_mask: Tensor
    """int64 [S, T], 1 where there is a token."""
    position_ids: Tensor
    """int64 [S, T]."""
    action_index: Tensor
    """int64 [N], into the flattened [S * T]: the positions whose next token is an action."""
    targets: Tensor
    """int64 [N], those actions."""
    sample: Tensor
    """int64 [N], the row of each; ascending."""
    behaviour: Tensor
    """float32 [N], log mu; 0 in rows without it."""
    advantage: Tensor
    """float32 [S]."""
    guidance: Tensor
    """float32 [N], what each action's advantage differs from its row's by; 0 in rows without guidance."""
    own: Tensor
    """bool [S]."""
    lengths: Tensor
    """int64 [S], actions per row."""
    rows: tuple[TokenRow, ...]
    """What the tensors were made from, in their order."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)})


def pack(rows: Sequence[TokenRow], tokens_per_micro_batch: int) -> list[MicroBatch]:
    """Every row once, the longest first (what does not fit into memory fails at once), at most
    `tokens_per_micro_batch` padded tokens each; a row longer than that has a micro-batch of its own. Deterministic."""
    ordered = sorted(rows, key=len, reverse=True)
    return [_micro_batch(part) for part in _split(ordered, tokens_per_micro_batch)]


def _split(ordered: Sequence[TokenRow], budget: int) -> Iterator[tuple[TokenRow, ...]]:
    """Cuts rows that are sorted by length, longest first, so that each part's first row sets its width."""
    start = 0
    while start < len(ordered):
        stop = start + max(1, budget // len(ordered[start]))
        yield tuple(ordered[start:stop])
        start = stop


def _micro_batch(rows: tuple[TokenRow, ...]) -> MicroBatch:
    width = max(map(len, rows))
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    action_index = []
    for number, row in enumerate(rows):
        if len(row.prompt_ids) == 0:
            raise ValueError("a row without prompt: nothing predicts its first token")
        input_ids[number, : len(row)] = np.concatenate([row.prompt_ids, row.response_ids])
        attention_mask[number, : len(row)] = 1
        first = number * width + len(row.prompt_ids) - 1
        action_index.append(np.arange(first, first + len(row.response_ids)))
    lengths = np.array([len(row.response_ids) for row in rows])
    behaviour = [np.zeros(len(row.response_ids)) if row.behaviour is None else row.behaviour for row in rows]
    guidance = [np.zeros(len(row.response_ids)) if row.guidance is None else row.guidance for row in rows]
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        position_ids=torch.arange(width).expand(len(rows), width),
        action_index=torch.from_numpy(np.concatenate(action_index)),
        targets=torch.from_numpy(np.concatenate([row.response_ids for row in rows]).astype(np.int64)),
        sample=torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)),
        behaviour=torch.from_numpy(np.concatenate(behaviour).astype(np.float32)),
        advantage=torch.tensor([row.advantage for row in rows], dtype=torch.float32),
        guidance=torch.from_numpy(np.concatenate(guidance).astype(np.float32)),
        own=torch.tensor([row.own for row in rows]),
        lengths=torch.from_numpy(lengths),
        rows=rows,
    )
