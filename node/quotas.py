"""How many of a step's foreign groups everybody may have: each origin, each lineage, and all newcomers together.

An identity costs nothing and a thousand cost nothing, so shares are not counted by heads: whoever has not taught us
anything yet is one of the newcomers, and those have one share among them. What they leave is free for the others; what
the others leave is not theirs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol

from node.algorithms import PoolConfig
from swarm.types import PeerId


class Standing(Protocol):
    """`swarm.net.standing.Standing`, as the pool asks it."""

    def trusted(self, peer: PeerId) -> bool: ...

    def lineage(self, peer: PeerId) -> str | None: ...


def newcomers(config: PoolConfig, standing: Standing, origins: Collection[PeerId]) -> set[PeerId]:
    """Those of `origins` that have not earned a share of their own; none where newcomers may have everything."""
    if config.newcomer_share >= 1:
        return set()
    return {origin for origin in origins if not standing.trusted(origin)}


def at_least_one(share: float, groups: int) -> int:
    """`share` of `groups`, rounded down: but nobody could ever earn anything with nothing."""
    return max(1, math.floor(share * groups + 1e-9))


class Quotas:
    """Of one step: `groups` foreign ones at most, for the `origins` that have groups waiting."""

    def __init__(self, config: PoolConfig, standing: Standing, groups: int, origins: Collection[PeerId]) -> None:
        self._newcomers = newcomers(config, standing, origins)
        self._known = _Kind(config, standing, groups, [origin for origin in origins if origin not in self._newcomers])
        self._new = _Kind(config, standing, at_least_one(config.newcomer_share, groups), list(self._newcomers))
        self._share = config.newcomer_share
        self._groups = groups

    def take(self, origin: PeerId) -> bool:
        """Whether `origin` may have one more; then it has it."""
        if self._known.taken + self._new.taken == self._groups:
            return False
        return (self._new if origin in self._newcomers else self._known).take(origin)

    def surplus(self, own: int) -> int:
        """How many of the newcomers' groups are too many after all, for a step with `own` own groups and all that was
        taken: their share is one of what is trained on, and not of what there might have been."""
        if not self._newcomers:
            return 0
        others = own + self._known.taken
        return max(0, self._new.taken - at_least_one(self._share / (1.0 - self._share), others))

    def is_newcomer(self, origin: PeerId) -> bool:
        return origin in self._newcomers


class _Kind:
    """Newcomers, or all others: `groups` among them, shared fairly where there are few of them."""

    def __init__(self, config: PoolConfig, standing: Standing, groups: int, origins: Sequence[PeerId]) -> None:
        self._lineages = {origin: standing.lineage(origin) for origin in origins}
        # Whoever's network we do not know is one for himself.
        places = len({lineage or origin for origin, lineage in self._lineages.items()})
        self._groups = groups
        self._per_origin = _share(groups, config.peer_share, len(origins))
        self._per_lineage = _share(groups, config.lineage_share, places)
        self._of_origin = Counter[PeerId]()
        self._of_lineage = Counter[str]()
        self.taken = 0

    def take(self, origin: PeerId) -> bool:
        lineage = self._lineages[origin]
        if self.taken == self._groups or self._of_origin[origin] == self._per_origin:
            return False
        if lineage is not None and self._of_lineage[lineage] == self._per_lineage:
            return False
        self.taken += 1
        self._of_origin[origin] += 1
        if lineage is not None:
            self._of_lineage[lineage] += 1
        return True


def _share(groups: int, share: float, candidates: int) -> int:
    """Of so many groups, for each: `share`, or a fair part where there are fewer candidates than that needs."""
    return max(1, math.ceil(groups * max(share, 1 / max(1, candidates))))
