"""Who sees whom in a row that holds several rollouts, without a mask over all pairs of its tokens.

A *segment* is a prompt or one of its continuations. It sees the prompt and itself, both as consecutive tokens: its keys
are a sequence of their own, of which its queries are the end. Two continuations [5, 6, eos] and [9, eos] of the prompt
[7, 8], and a prompt [3] with [4]:

    row        7 8 | 5 6 eos | 9 eos | 3 | 4
    lengths    2     3         2       1   1
    before     0     2         2       0   1      keys before a segment's own
    prompt     0     0         0       7   7      where those begin in the row

So attention to what a token does not see is never computed, and a sliding window is what it always is. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

#: Pairs of query and key that another attention call is worth: what a call costs by itself (a CPU's; ours).
CALL = 16_384


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """The n segments of one row of T tokens, int64 [n] each, in the order of the row, which they fill."""

    lengths: np.ndarray
    before: np.ndarray
    prompt: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """int64 [n], where each begins in the row."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def keys(self) -> np.ndarray:
        """int64 [n], keys of each."""
        return self.before + self.lengths

    def key_index(self, segment: int) -> np.ndarray:
        """int64 [keys], where a segment's keys are in the row."""
        prompt, start = int(self.prompt[segment]), int(self.starts[segment])
        seen = np.arange(prompt, prompt + int(self.before[segment]))
        return np.concatenate([seen, np.arange(start, start + int(self.lengths[segment]))])

    def pairs(self) -> int:
        """Queries times the keys that they see: what attention costs."""
        return int((self.lengths * self.before + self.lengths * (self.lengths + 1) // 2).sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bucket:
    """B segments that are attended to in one call, padded to L queries and K keys with tokens of the row."""

    queries: np.ndarray
    """int64 [B, L], into the row."""
    keys: np.ndarray
    """int64 [B, K], into the row."""
    before: np.ndarray
    """int64 [B]."""
    lengths: np.ndarray
    """int64 [B], queries that count."""

    @property
    def causal(self) -> bool:
        """Whether query i sees the first i + 1 keys, in all of it."""
        return not self.before.any()

    def sees(self, window: int | None) -> np.ndarray:
        """bool [B, L, K]: which keys each query sees; of `window` keys the last ones. A padding query sees what the
        segment's last one does: softmax over nothing is not a number."""
        query, key = np.arange(self.queries.shape[1]), np.arange(self.keys.shape[1])
        last = (self.before[:, None] + np.minimum(query[None], self.lengths[:, None] - 1))[:, :, None]
        seen = key[None, None] <= last
        return seen if window is None else seen & (key[None, None] > last - window)


def buckets(segments: Segments, call: int = CALL) -> list[Bucket]:
    """Every segment once. Those of similar size share a call, as long as the padding costs less than a call does."""
    sizes = list(zip(segments.keys.tolist(), segments.lengths.tolist(), strict=True))
    order = sorted(range(len(sizes)), key=lambda i: (bool(segments.before[i]), *sizes[i]), reverse=True)
    return [_bucket(segments, members) for members in _alike(order, sizes, segments.before, call)]


def _alike(
    order: Sequence[int], sizes: Sequence[tuple[int, int]], before: np.ndarray, call: int
) -> Iterator[list[int]]:
    members, keys, queries = list[int](), 0, 0
    for segment in order:
        own_keys, own_queries = sizes[segment]
        widest, longest = max(keys, own_keys), max(queries, own_queries)
        grown = (len(members) + 1) * widest * longest - len(members) * keys * queries
        same_kind = bool(members) and bool(before[members[0]]) == bool(before[segment])
        if same_kind and grown - own_keys * own_queries <= call:
            members.append(segment)
            keys, queries = widest, longest
            continue
        if members:
            yield members
        members, keys, queries = [segment], own_keys, own_queries
    if members:
        yield members


def _bucket(segments: Segments, members: Sequence[int]) -> Bucket:
    lengths, before = segments.lengths[members], segments.before[members]
    queries = np.zeros((len(members), int(lengths.max())), dtype=np.int64)
    keys = np.zeros((len(members), int((before + lengths).max())), dtype=np.int64)
    for row, segment in enumerate(members):
        index = segments.key_index(segment)
        keys[row, : len(index)] = index
        queries[row, : lengths[row]] = index[before[row] :]
    return Bucket(queries=queries, keys=keys, before=before, lengths=lengths)
