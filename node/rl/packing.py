"""Which rollouts share a sequence, and which sequences a row: nothing is computed twice, and little for nothing.

A *sequence* is a prompt and one or more of its continuations. Each continuation sees the prompt and itself, and stands
where it would stand alone (Prefix Grouper, arXiv 2506.05433, as one attention mask instead of two attentions). Outputs
and gradients are those of separate sequences. What it saves is the prompt's passes; what it costs is attention to the
other continuations, which the mask throws away:

    cost(T) = T + quadratic * T^2        of T tokens, in passes of one token without attention

A continuation of L tokens joins a sequence of T where that costs less than one of its own, prompt P included:

    cost(T + L) - cost(T) < cost(P + L)

A *row* of a micro-batch is as wide as the micro-batch's longest sequence, and paid for whatever is in it: shorter
sequences fill it up, the longest first (first fit decreasing).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from node.rl.samples import TokenRow

#: Of attention, beside everything else that is computed for a token: up to here the width of a row does not matter.
CHEAP_ATTENTION = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What a model makes of sequences that see parts of a row only."""

    quadratic: float
    """Attention to one position, relative to everything else that is computed for a token; >= 0."""
    window: int | None = None
    """Where the model's attention has a sliding window, its width: longer rollouts stay alone."""

    def cost(self, length: int) -> float:
        return length + self.quadratic * length * length

    def pays(self, length: int, row: TokenRow) -> bool:
        """Whether `row` is cheaper in a sequence that has `length` tokens already than alone."""
        joined = self.cost(length + len(row.response_ids)) - self.cost(length)
        return self.admits(row) and joined < self.cost(len(row))

    def admits(self, row: TokenRow) -> bool:
        """Whether the mask alone says what `row` sees."""
        return self.window is None or len(row) <= self.window

    def opens(self, length: int, width: int) -> bool:
        """Whether a sequence of `length` may begin a row of `width`, or had better wait for a narrower micro-batch."""
        return 2 * length >= width or self.quadratic * width <= CHEAP_ATTENTION


@dataclass(frozen=True, slots=True, eq=False)
class PromptSequence:
    """Rollouts of one prompt."""

    rows: tuple[TokenRow, ...]

    def __len__(self) -> int:
        return len(self.rows[0].prompt_ids) + sum(len(row.response_ids) for row in self.rows)


def sequences(rows: Sequence[TokenRow], longest: int, packing: Packing) -> list[PromptSequence]:
    """Every row once, in the order of the first row of each sequence. None that several share is longer than `longest`
    tokens."""
    finished: list[list[TokenRow]] = []
    open_ones: dict[bytes, tuple[list[TokenRow], int]] = {}
    for row in rows:
        prompt = row.prompt_ids.tobytes()
        members, length = open_ones.get(prompt, ([], 0))
        grown = length + len(row.response_ids)
        if members and grown <= longest and packing.pays(length, row):
            members.append(row)
            open_ones[prompt] = members, grown
        else:
            finished.append([row])
            if packing.admits(row):
                open_ones[prompt] = finished[-1], len(row)
    return [PromptSequence(tuple(members)) for members in finished]


Row = list[PromptSequence]


def packed(ordered: Sequence[PromptSequence], budget: int, packing: Packing) -> Iterator[list[Row]]:
    """Rows of one micro-batch after the other, from sequences sorted by length, longest first: rows times the longest
    is at most `budget` tokens, or it is one row. A sequence that the mask does not suffice for has a row to itself, in
    a micro-batch of such rows."""
    alone = [sequence for sequence in ordered if not packing.admits(sequence.rows[0])]
    yield from unpacked(alone, budget)
    waiting = [sequence for sequence in ordered if packing.admits(sequence.rows[0])]
    while waiting:
        width = len(waiting[0])
        rows, room, left = list[Row](), list[int](), list[PromptSequence]()
        for sequence in waiting:
            length = len(sequence)
            fitting = next((number for number, space in enumerate(room) if space >= length), None)
            if fitting is not None:
                rows[fitting].append(sequence)
                room[fitting] -= length
            elif not rows or ((len(rows) + 1) * width <= budget and packing.opens(length, width)):
                rows.append([sequence])
                room.append(width - length)
            else:
                left.append(sequence)
        yield rows
        waiting = left


def unpacked(ordered: Sequence[PromptSequence], budget: int) -> Iterator[list[Row]]:
    """The same with one sequence a row."""
    start = 0
    while start < len(ordered):
        stop = start + max(1, budget // len(ordered[start]))
        yield [[sequence] for sequence in ordered[start:stop]]
        start = stop
