"""What a step learned from each peer, and what our own likelihood refused: all that trust is made of.

In the unit of rewards: (r - b)^2, b the baseline of the peer's rule, is how much a rollout had to say that we did not
know. So a task that we have solved earns nothing, however often it is sent, nor does a group that nobody drew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.experience import Experience
from node.rl.batch import MicroBatch
from swarm.types import PeerId

REFUSED = 2.0
"""What a gated rollout takes back, relative to what it would have earned. A gate that refuses the unlikeliest tenth of
everybody (`relative`) so costs an honest peer a quarter of its trust, and one whose texts are noise all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Sums over one origin's rollouts."""

    learned: float
    """(r - b)^2 of those that were trained on, each at most 1."""
    refused: float
    """The same of those that were gated."""
    gated: int
    """How many those are."""


def lessons(micro_batches: Sequence[MicroBatch], scale: float) -> dict[PeerId, Lesson]:
    """Of the peers' rows in `micro_batches`, as they were trained on: gated rows have an advantage of 0 there, and that
    of their row (`node.rl.gate`). `scale`: what advantages were divided by (`Advantages.scale`)."""
    rows = defaultdict[PeerId, list[tuple[float, bool]]](list)  # (worth, whether it was gated)
    for micro in micro_batches:
        for row, advantage in zip(micro.rows, micro.advantage.tolist(), strict=True):
            if not row.own:
                rows[row.origin].append((min((row.advantage * scale) ** 2, 1.0), advantage == 0))
    return {
        origin: Lesson(
            learned=sum(worth for worth, gated in theirs if not gated),
            refused=sum(worth for worth, gated in theirs if gated),
            gated=sum(gated for _, gated in theirs),
        )
        for origin, theirs in rows.items()
    }


def together(taught: Sequence[Mapping[PeerId, Lesson]]) -> dict[PeerId, Lesson]:
    """What the parts of a batch taught, as one."""
    return {
        origin: Lesson(
            learned=sum(part[origin].learned for part in taught if origin in part),
            refused=sum(part[origin].refused for part in taught if origin in part),
            gated=sum(part[origin].gated for part in taught if origin in part),
        )
        for origin in dict.fromkeys(origin for part in taught for origin in part)
    }


def credits(batch: Sequence[Experience], taught: Mapping[PeerId, Lesson]) -> dict[PeerId, float]:
    """What a step's lessons are worth to each origin: a group at most 1, the mean over its distinct responses. So many
    of them earn no more than few, and those without a lesson count as well."""
    groups, responses = Counter[PeerId](), Counter[PeerId]()
    for experience in batch:
        if not experience.own:
            groups[experience.group.origin] += 1
            responses[experience.group.origin] += len({rollout.response for rollout in experience.group.rollouts})
    return {
        origin: min((lesson.learned - REFUSED * lesson.refused) / responses[origin], 1.0) * groups[origin]
        for origin, lesson in taught.items()
    }
