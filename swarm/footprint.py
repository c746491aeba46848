"""How much memory a group takes once it is decoded: more than on the wire, by what a stranger chose to put into it."""

from __future__ import annotations

import sys

from swarm.types import Rollout, RolloutGroup

GROUP_BYTES = 2048
"""Of the objects that every group is made of, its names and numbers included."""
ROLLOUT_BYTES = 256
TURN_BYTES = 512
"""... of which three are arrays."""
SPAN_BYTES = 128


def footprint(group: RolloutGroup) -> int:
    """Bytes, about: texts and arrays as they are (a text may take four bytes a character), objects at a flat rate."""
    return GROUP_BYTES + len(group.task.config) + sum(map(_of_rollout, group.rollouts))


def _of_rollout(rollout: Rollout) -> int:
    total = ROLLOUT_BYTES
    for turn in rollout.turns:
        total += TURN_BYTES + sys.getsizeof(turn.text)
        if (sampled := turn.sampled) is not None:
            ids = 0 if sampled.ids is None else sampled.ids.nbytes
            total += sampled.logprobs.nbytes + sampled.byte_lengths.nbytes + ids + SPAN_BYTES * len(sampled.versions)
    return total
