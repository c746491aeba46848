"""Which texts were sent before, exactly or nearly: by us, by their author under another id, or by somebody else.

A group is what it says and not when it says it was made, so the receiver's own order decides: who comes first is the
author, and nobody is blamed for coming second - a thief with a faster line makes its victim the second.

* The same responses to the same task by the same origin: a digest of them, whatever their order.
* Responses that resemble an earlier group's to the same task, by whomever: the smallest hashes of a group's 16-byte
  shingles (bottom-k sketch, Broder 1997) are a sample that two like groups have in common. Short texts have none,
  because two honest nodes write them alike: "<answer>7</answer>" is nobody's.

A thief who rewrites every sixteenth byte is not found, nor one who adds as much of his own; what he sends then has to
be right and likely to us by itself. Hashes are salted, so that nobody can write for them. Memory is bounded, and what
was not seen for longest is forgotten first.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict

import numpy as np

from swarm.types import RolloutGroup, TaskRef

SHINGLE_BYTES = 16
MIN_BYTES = 64
"""Texts below are compared whole, with those of the same origin, and not with others'."""
MAX_BYTES = 4096
"""Of a text, the beginning that is looked at: a group is at most as much work as it is long, and that is bounded."""
SKETCH = 128
"""Hashes kept of a group."""
MIN_COMPARED = 16
"""Hashes below which there is too little to say."""
COPIED_SHARE = 0.8
"""Of a group's shingles that another one has, too: from here on it is a copy."""
MAX_DIGESTS = 1 << 16
MAX_GROUPS = 1 << 13
"""Sketches: 1 KiB each."""
MAX_GROUPS_PER_TASK = 16

_MIXING = np.uint64(0x9E3779B97F4A7C15)
_ALL = np.iinfo(np.uint64).max


class NearDuplicates:
    def __init__(self, salt: int | None = None, max_groups: int = MAX_GROUPS, max_digests: int = MAX_DIGESTS) -> None:
        """`salt`: 64 bits; random if None."""
        self._salt = secrets.randbits(64) if salt is None else salt
        self._max_groups, self._max_digests = max_groups, max_digests
        self._digests: OrderedDict[int, None] = OrderedDict()
        self._sketches: OrderedDict[int, list[np.ndarray]] = OrderedDict()  # by task
        self._num_sketches = 0

    def complaint(self, group: RolloutGroup) -> str | None:
        """In what the group repeats one that was remembered, or None."""
        if self._digest(group) in self._digests:
            return "the same responses to the same task came from it before"
        known = self._sketches.get(self._task(group.task))
        if known is None:
            return None
        sketch = self._sketch(group)
        share = max(shared(sketch, other) for other in known)
        return f"{share:.0%} of its texts came before, for the same task" if share >= COPIED_SHARE else None

    def remember(self, group: RolloutGroup) -> None:
        digest = self._digest(group)
        self._digests[digest] = None
        self._digests.move_to_end(digest)
        if len(self._digests) > self._max_digests:
            self._digests.popitem(last=False)
        sketch = self._sketch(group)
        if len(sketch) < MIN_COMPARED:
            return
        task = self._task(group.task)
        known = self._sketches.pop(task, [])
        self._num_sketches += 1 if len(known) < MAX_GROUPS_PER_TASK else 0
        self._sketches[task] = [*known, sketch][-MAX_GROUPS_PER_TASK:]
        while self._num_sketches > self._max_groups:
            self._num_sketches -= len(self._sketches.popitem(last=False)[1])

    def _sketch(self, group: RolloutGroup) -> np.ndarray:
        """uint64 [<= SKETCH], ascending: the smallest distinct hashes of the texts that are long enough."""
        texts = [text for text in (rollout.response.encode() for rollout in group.rollouts) if len(text) >= MIN_BYTES]
        joined = b"".join(text[:MAX_BYTES] for text in texts)
        if not joined:
            return np.empty(0, dtype=np.uint64)
        count = len(joined) - SHINGLE_BYTES + 1
        first, second = (np.ndarray((count,), "<u8", joined, offset, (1,)) for offset in (0, SHINGLE_BYTES // 2))
        hashes = first * np.uint64(self._salt | 1)  # wraps around
        hashes ^= second
        hashes ^= hashes >> np.uint64(31)
        hashes *= _MIXING
        hashes ^= hashes >> np.uint64(29)
        # Sorting all of them would take longer than everything else: a multiple of what is needed is enough, unless the
        # texts repeat themselves.
        few = hashes[hashes <= np.uint64(_ALL // max(1, count // (4 * SKETCH)))]
        distinct = np.unique(few)
        smallest = (distinct if len(distinct) >= SKETCH else np.unique(hashes))[:SKETCH]
        return smallest.copy()  # a view would keep all the others

    def _task(self, ref: TaskRef) -> int:
        return self._hash(f"{ref.source}\0{ref.version}\0{ref.config}\0{ref.seed}\0{ref.index}")

    def _digest(self, group: RolloutGroup) -> int:
        # Lengths go in, so that no text can be divided otherwise.
        texts = sorted(rollout.response for rollout in group.rollouts)
        return self._hash(f"{group.origin}\0{self._task(group.task)}\0" + "".join(f"{len(t)}\0{t}" for t in texts))

    def _hash(self, text: str) -> int:
        key = self._salt.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")


def shared(sketch: np.ndarray, other: np.ndarray) -> float:
    """Estimate of the share of a group's shingles that another one has, from their sketches; 0 where too few hashes can
    be compared: those up to where both sketches go."""
    if len(other) == SKETCH:
        sketch = sketch[sketch <= other[-1]]
    if len(sketch) < MIN_COMPARED:
        return 0.0
    places = np.searchsorted(other, sketch).clip(max=len(other) - 1)
    return float((other[places] == sketch).mean())
