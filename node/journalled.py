"""Between a judged group and its row in the journal: what only we know of it, and the group made whole again. Pure.

A body is what peers see: its log-probabilities are rounded, and token ids may be missing. What we learn from has both
as they were sampled, so that a group which waits when the node stops is the same, to the last bit, when it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from node.experience import Experience
from node.journal_file import Row
from swarm.errors import JournalError, WireError
from swarm.limits import Limits
from swarm.types import PolicyVersion, RolloutGroup, SampledTokens, Task, Turn
from swarm.wire.codec import decode_group

LOGPROB, ID = np.dtype("<f4"), np.dtype("<i4")
#: A row was admitted, or made, under limits that may have been others.
ANY = Limits(
    max_group_bytes=1 << 31, max_rollouts=1 << 20, max_turns=1 << 20, max_tokens=1 << 31, max_text_bytes=1 << 31
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    value: float
    """What we expected of the task before we saw the rewards."""
    version: PolicyVersion
    """Own: our oldest policy version in it. Foreign: ours when it arrived."""
    sampled: bytes | None
    """Own: log-probability (float32) and id (int32) of every sampled token, all of the one before all of the other."""


def private_of(experience: Experience) -> Private:
    sampled = _sampled(experience.group) if experience.own else None
    return Private(value=experience.value, version=experience.version, sampled=sampled)


def group_of(row: Row) -> RolloutGroup:
    """As it was when it was judged. Raises JournalError for a row that is not what we write."""
    try:
        group = decode_group(row.body, row.signature, ANY).group
    except WireError as error:
        raise JournalError(f"group {row.id} in the journal: {error}") from error
    return group if row.sampled is None else _with_sampled(group, row)


def experience_of(row: Row, group: RolloutGroup, task: Task, arrived_at: float) -> Experience:
    """What it was when it was kept; `arrived_at` by the event loop's clock. Raises JournalError for a row without its
    private part."""
    rewards = json.loads(row.rewards)
    if row.value is None or row.version is None or len(rewards) != len(group.rollouts):
        raise JournalError(f"group {row.id} in the journal: what we expected of it is missing")
    return Experience(
        id=row.id,
        group=group,
        task=task,
        rewards=np.array([reward or 0.0 for reward in rewards], dtype=np.float32),
        scored=np.array([reward is not None for reward in rewards], dtype=bool),
        own=bool(row.own),
        value=row.value,
        version=PolicyVersion(row.version),
        arrived_at=arrived_at,
    )


def _sampled(group: RolloutGroup) -> bytes | None:
    """None for a group of which we do not have every id: it is none of ours."""
    turns = _sampled_turns(group)
    if any(turn.ids is None for turn in turns):
        return None
    logprobs = [turn.logprobs.astype(LOGPROB).tobytes() for turn in turns]
    return b"".join(logprobs + [turn.ids.astype(ID).tobytes() for turn in turns if turn.ids is not None])


def _sampled_turns(group: RolloutGroup) -> Sequence[SampledTokens]:
    return [turn.sampled for rollout in group.rollouts for turn in rollout.turns if turn.sampled is not None]


def _with_sampled(group: RolloutGroup, row: Row) -> RolloutGroup:
    assert row.sampled is not None
    tokens = sum(map(len, _sampled_turns(group)))
    if len(row.sampled) != tokens * (LOGPROB.itemsize + ID.itemsize):
        raise JournalError(f"group {row.id} in the journal: {len(row.sampled)} bytes are not of its {tokens} tokens")
    logprobs = np.frombuffer(row.sampled, LOGPROB, tokens)
    ids = np.frombuffer(row.sampled, ID, tokens, offset=tokens * LOGPROB.itemsize)
    taken = 0

    def whole(turn: Turn) -> Turn:
        nonlocal taken
        if turn.sampled is None:
            return turn
        here = slice(taken, taken := taken + len(turn.sampled))
        return replace(turn, sampled=replace(turn.sampled, logprobs=logprobs[here], ids=ids[here]))

    return replace(group, rollouts=tuple(replace(r, turns=tuple(map(whole, r.turns))) for r in group.rollouts))
