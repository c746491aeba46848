"""From rollouts to micro-batches. Shapes: R rollouts in S rows of one micro-batch, T tokens in a row, N action tokens
in all. Packed, it is one row of everything (S = 1), without padding; else a row for each rollout, padded on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from node.rl.packing import PromptSequence, packed, padded, sequences
from node.rl.samples import TokenRow
from node.rl.segments import Segments


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Tokens of one forward pass, and where the actions are.

    A prompt [7, 8] with the continuations [5, 6, eos] and [9, eos], packed:

        input_ids      7 8 5 6 eos 9 eos
        position_ids   0 1 2 3 4   2 3
        segments       7 8 | 5 6 eos | 9 eos     (node.rl.segments)
        action_index     1 2 3     1 5           the position before each action: its logits predict the action
        targets          5 6 eos   9 eos         (in the order of the rollouts)
    """

    input_ids: Tensor
    """int64 [S, T], 0 where padded."""
    attention_mask: Tensor
    """int64 [S, T], 1 where there is a token."""
    position_ids: Tensor
    """int64 [S, T]."""
    segments: Segments | None
    """What the tokens of the only row see; None where every rollout has a row of its own."""
    action_index: Tensor
    """int64 [N], into the flattened [S * T]: the positions whose next token is an action."""
    targets: Tensor
    """int64 [N], those actions."""
    sample: Tensor
    """int64 [N], the rollout of each; ascending."""
    behaviour: Tensor
    """float32 [N], log mu; 0 in rows without it."""
    advantage: Tensor
    """float32 [R]."""
    guidance: Tensor
    """float32 [N], what each action's advantage differs from its row's by; 0 in rows without guidance."""
    own: Tensor
    """bool [R]."""
    lengths: Tensor
    """int64 [R], actions per rollout."""
    rows: tuple[TokenRow, ...]
    """What the tensors were made from, in their order."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)})


def pack(rows: Sequence[TokenRow], tokens_per_micro_batch: int, *, share: bool = False) -> list[MicroBatch]:
    """Every row once, the longest sequences first (what does not fit into memory fails at once), at most
    `tokens_per_micro_batch` tokens each, with padding; a rollout longer than that has a micro-batch of its own.
    Deterministic.

    With `share` rollouts share rows, and those of a prompt share it (`node.rl.packing`). Raises ValueError for a
    rollout without prompt.
    """
    if any(len(row.prompt_ids) == 0 for row in rows):
        raise ValueError("a row without prompt: nothing predicts its first token")
    if not share:
        ordered = sorted(rows, key=len, reverse=True)
        return [_padded(part) for part in padded(ordered, tokens_per_micro_batch)]
    by_length = sorted(sequences(rows, tokens_per_micro_batch), key=len, reverse=True)
    return [_packed(part) for part in packed(by_length, tokens_per_micro_batch)]


def _padded(rows: Sequence[TokenRow]) -> MicroBatch:
    shape = len(rows), max(map(len, rows))
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    before = list[np.ndarray]()
    for number, row in enumerate(rows):
        ids[number, : len(row)] = np.concatenate([row.prompt_ids, row.response_ids])
        mask[number, : len(row)] = 1
        before.append(number * shape[1] + np.arange(len(row.prompt_ids) - 1, len(row) - 1))
    return _micro_batch(rows, ids, mask, np.broadcast_to(np.arange(shape[1]), shape).copy(), before, None)


def _packed(parts: Sequence[PromptSequence]) -> MicroBatch:
    """Every prompt, followed by its continuations."""
    ids, positions, before = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    segments = list[tuple[int, int, int]]()  # (length, keys before, where those begin)
    start = 0
    for part in parts:
        prompt, prompt_start = part.rows[0].prompt_ids, start
        segments.append((len(prompt), 0, start))
        ids.append(prompt)
        positions.append(np.arange(len(prompt)))
        start += len(prompt)
        for row in part.rows:
            length = len(row.response_ids)
            segments.append((length, len(prompt), prompt_start))
            ids.append(row.response_ids)
            positions.append(len(prompt) + np.arange(length))
            before.append(np.concatenate([[prompt_start + len(prompt) - 1], np.arange(start, start + length - 1)]))
            start += length
    lengths, keys_before, prompts = np.array(segments, dtype=np.int64).T
    row_ids = np.concatenate(ids)[None].astype(np.int64)
    return _micro_batch(
        [row for part in parts for row in part.rows],
        row_ids,
        np.ones_like(row_ids),
        np.concatenate(positions)[None],
        before,
        Segments(lengths=lengths, before=keys_before, prompt=prompts),
    )


def _micro_batch(
    rows: Sequence[TokenRow],
    ids: np.ndarray,
    mask: np.ndarray,
    positions: np.ndarray,
    before: Sequence[np.ndarray],
    segments: Segments | None,
) -> MicroBatch:
    """`before`: of each rollout, where in the flattened rows the position before each of its actions is."""
    lengths = np.array([len(row.response_ids) for row in rows])
    behaviour = [np.zeros(len(row.response_ids)) if row.behaviour is None else row.behaviour for row in rows]
    guidance = [np.zeros(len(row.response_ids)) if row.guidance is None else row.guidance for row in rows]
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy(positions),
        segments=segments,
        action_index=torch.from_numpy(np.concatenate(before)),
        targets=torch.from_numpy(np.concatenate([row.response_ids for row in rows]).astype(np.int64)),
        sample=torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)),
        behaviour=torch.from_numpy(np.concatenate(behaviour).astype(np.float32)),
        advantage=torch.tensor([row.advantage for row in rows], dtype=torch.float32),
        guidance=torch.from_numpy(np.concatenate(guidance).astype(np.float32)),
        own=torch.tensor([row.own for row in rows]),
        lengths=torch.from_numpy(lengths),
        rows=tuple(rows),
    )
