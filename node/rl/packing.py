"""Which rollouts share a sequence, and which sequences a micro-batch: nothing is computed twice, or for nothing.

A *sequence* is a prompt and one or more of its continuations. Each continuation sees the prompt and itself, and stands
where it would stand alone (Prefix Grouper, arXiv 2506.05433). Outputs and gradients are those of separate sequences,
and a continuation costs the same attention in either (`node.rl.segments`): what is saved is the prompt's passes, so
they are shared wherever the micro-batch has room. The sequences of a micro-batch are one row without any padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from node.rl.samples import TokenRow


@dataclass(frozen=True, slots=True, eq=False)
class PromptSequence:
    """Rollouts of one prompt."""

    rows: tuple[TokenRow, ...]

    def __len__(self) -> int:
        return len(self.rows[0].prompt_ids) + sum(len(row.response_ids) for row in self.rows)


def sequences(rows: Sequence[TokenRow], longest: int) -> list[PromptSequence]:
    """Every row once, in the order of the first row of each sequence. None that several share is longer than `longest`
    tokens."""
    finished: list[list[TokenRow]] = []
    open_ones: dict[bytes, tuple[list[TokenRow], int]] = {}
    for row in rows:
        prompt = row.prompt_ids.tobytes()
        members, length = open_ones.get(prompt, ([], 0))
        grown = length + len(row.response_ids)
        if members and grown <= longest:
            members.append(row)
            open_ones[prompt] = members, grown
        else:
            finished.append([row])
            open_ones[prompt] = finished[-1], len(row)
    return [PromptSequence(tuple(members)) for members in finished]


def packed(ordered: Sequence[PromptSequence], budget: int) -> list[list[PromptSequence]]:
    """The sequences of each micro-batch, at most `budget` tokens each, or one sequence (first fit; `ordered` is sorted
    by length, longest first)."""
    filled, room = list[list[PromptSequence]](), list[int]()
    for sequence in ordered:
        fitting = next((number for number, space in enumerate(room) if space >= len(sequence)), None)
        if fitting is None:
            filled.append([])
            room.append(budget)
            fitting = len(filled) - 1
        filled[fitting].append(sequence)
        room[fitting] -= len(sequence)
    return filled


def padded(ordered: Sequence[TokenRow], budget: int) -> Iterator[Sequence[TokenRow]]:
    """The same for models that take one rollout a row only: rows times the longest is at most `budget`, or it is one
    row."""
    start = 0
    while start < len(ordered):
        stop = start + max(1, budget // len(ordered[start]))
        yield ordered[start:stop]
        start = stop
