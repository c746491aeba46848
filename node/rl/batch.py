"""From rollouts to padded micro-batches. Shapes: R rollouts in S rows of one micro-batch, T tokens in the longest row,
N action tokens in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from node.rl.packing import Packing, PromptSequence, Row, packed, sequences, unpacked
from node.rl.samples import TokenRow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows of one forward pass, padded on the right, and where their action tokens are.

    A prompt [7, 8] with the continuations [5, 6, eos] and [9, eos] in one row of a batch with T = 8:

        input_ids      7 8 5 6 eos 9 eos 0
        position_ids   0 1 2 3 4   2 3   7
        action_index     1 2 3     1 5       the position before each action: its logits predict the action
        targets          5 6 eos   9 eos     (in the order of the rollouts)
    """

    input_ids: Tensor
    """int64 [S, T], 0 where padded."""
    attention_mask: Tensor
    """int64 [S, T], 1 where there is a token; or, where a row has several rollouts, bool [S, 1, T, T]: what it sees."""
    position_ids: Tensor
    """int64 [S, T]."""
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


def pack(rows: Sequence[TokenRow], tokens_per_micro_batch: int, packing: Packing | None = None) -> list[MicroBatch]:
    """Every row once, the longest sequences first (what does not fit into memory fails at once), at most
    `tokens_per_micro_batch` padded tokens each; a rollout longer than that has a micro-batch of its own. Deterministic.

    Without `packing` every rollout has a row of its own. Raises ValueError for a rollout without prompt.
    """
    if any(len(row.prompt_ids) == 0 for row in rows):
        raise ValueError("a row without prompt: nothing predicts its first token")
    if packing is None:
        ordered = sorted((PromptSequence((row,)) for row in rows), key=len, reverse=True)
        return [_micro_batch(part) for part in unpacked(ordered, tokens_per_micro_batch)]
    ordered = sorted(sequences(rows, tokens_per_micro_batch, packing), key=len, reverse=True)
    return [_micro_batch(part) for part in packed(ordered, tokens_per_micro_batch, packing)]


def _micro_batch(parts: Sequence[Row]) -> MicroBatch:
    width = max(sum(map(len, part)) for part in parts)
    layouts = [_Layout.of(part, width) for part in parts]
    rows = tuple(row for part in parts for sequence in part for row in sequence.rows)
    lengths = np.array([len(row.response_ids) for row in rows])
    behaviour = [np.zeros(len(row.response_ids)) if row.behaviour is None else row.behaviour for row in rows]
    guidance = [np.zeros(len(row.response_ids)) if row.guidance is None else row.guidance for row in rows]
    return MicroBatch(
        input_ids=torch.from_numpy(np.stack([layout.ids for layout in layouts])),
        attention_mask=_attention_mask(layouts),
        position_ids=torch.from_numpy(np.stack([layout.positions for layout in layouts])),
        action_index=torch.from_numpy(
            np.concatenate([number * width + layout.before for number, layout in enumerate(layouts)])
        ),
        targets=torch.from_numpy(np.concatenate([row.response_ids for row in rows]).astype(np.int64)),
        sample=torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)),
        behaviour=torch.from_numpy(np.concatenate(behaviour).astype(np.float32)),
        advantage=torch.tensor([row.advantage for row in rows], dtype=torch.float32),
        guidance=torch.from_numpy(np.concatenate(guidance).astype(np.float32)),
        own=torch.tensor([row.own for row in rows]),
        lengths=torch.from_numpy(lengths),
        rows=rows,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """One row of a micro-batch, int64 [T] but for `before`."""

    ids: np.ndarray
    positions: np.ndarray
    """Where each token stands in its rollout."""
    prompt: np.ndarray
    """Number of the sequence that it belongs to, from 0; -1 for padding."""
    part: np.ndarray
    """Number of the continuation that it belongs to, over the whole row, from 1; 0 in prompts and padding."""
    before: np.ndarray
    """int64 [actions]: the position before each."""

    @classmethod
    def of(cls, sequences: Row, width: int) -> _Layout:
        layout = cls(
            ids=np.zeros(width, dtype=np.int64),
            positions=np.arange(width),
            prompt=np.full(width, -1, dtype=np.int64),
            part=np.zeros(width, dtype=np.int64),
            before=np.zeros(sum(len(row.response_ids) for s in sequences for row in s.rows), dtype=np.int64),
        )
        start, number, action = 0, 0, 0
        for index, sequence in enumerate(sequences):
            prompt = sequence.rows[0].prompt_ids
            layout.prompt[start : start + len(sequence)] = index
            layout.ids[start : start + len(prompt)] = prompt
            layout.positions[start : start + len(prompt)] = np.arange(len(prompt))
            end_of_prompt = start + len(prompt) - 1
            start += len(prompt)
            for row in sequence.rows:
                stop, number = start + len(row.response_ids), number + 1
                layout.ids[start:stop], layout.part[start:stop] = row.response_ids, number
                layout.positions[start:stop] = len(prompt) + np.arange(stop - start)
                layout.before[action] = end_of_prompt
                layout.before[action + 1 : action + stop - start] = np.arange(start, stop - 1)
                start, action = stop, action + stop - start
        return layout

    @property
    def plain(self) -> bool:
        """One rollout: causal attention is all that it needs."""
        return int(self.part.max()) == 1 and int(self.prompt.max()) == 0


def _attention_mask(layouts: Sequence[_Layout]) -> Tensor:
    """Padding sees itself: softmax over nothing is not a number."""
    prompt = torch.from_numpy(np.stack([layout.prompt for layout in layouts]))
    if all(layout.plain for layout in layouts):
        return (prompt >= 0).long()
    part = torch.from_numpy(np.stack([layout.part for layout in layouts]))
    same_prompt = prompt[:, :, None] == prompt[:, None, :]
    in_sight = (part[:, None, :] == 0) | (part[:, :, None] == part[:, None, :])
    causal = torch.ones(prompt.shape[1], prompt.shape[1], dtype=torch.bool).tril()
    return (same_prompt & in_sight & causal).unsqueeze(1)
