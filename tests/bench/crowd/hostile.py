"""Nodes that are up to no good, a fifth of each kind. All announce themselves, and tell only one another's records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from swarm.net.streams import STREAM_S
from swarm.types import Announcement, GroupId
from swarm.wire.codec import Pull
from swarm.wire.relay import Offer
from tests.bench.crowd.groups import FRAME, Sizes
from tests.bench.crowd.presence import Presence
from tests.bench.crowd.streams import PullStream, RelayStream

if TYPE_CHECKING:
    from tests.bench.crowd.crowd import Crowd

IDLE_S = STREAM_S + 15.0
EVERY_S = 1.0
"""Ten times as often as an honest node has something to say."""


class Hostile(Presence):
    hostile = True

    def begin(self) -> None:
        self.world.at(self.world.rng.uniform(0, 2), self.beat)
        self.world.at(self.world.rng.uniform(0, EVERY_S), self._act)

    @property
    def readers(self) -> int:
        """None, it says: so others read it."""
        return 0

    def tells(self, announcements: list[Announcement]) -> list[Announcement] | None:
        return [it for it in announcements if self.crowd.members[it.peer].hostile]

    def act(self) -> None:
        """Once in EVERY_S."""

    def _act(self) -> None:
        if self.alive:
            self.act()
            self.world.at(EVERY_S, self._act)


class Silent(Hostile):
    """Takes every call and answers none."""

    def tells(self, announcements: list[Announcement]) -> list[Announcement] | None:
        return None

    def serve_pull(self, stream: PullStream, asked: Pull) -> None:
        self.world.at(IDLE_S, stream.end, stream.age, True)

    def serve_relay(self, stream: RelayStream) -> None:
        self.world.at(IDLE_S, stream.end, stream.age, True)


class Garbage(Hostile):
    """Its log holds bytes that are no groups."""

    def act(self) -> None:
        self.publish(replace(self.crowd.make(self, use=0.0), valid=False))


class Replay(Hostile):
    """Its log holds what others made: again and again, or long ago."""

    def act(self) -> None:
        if self.crowd.recent:
            old = self.world.rng.choice(self.crowd.recent)
            if self.world.rng.random() < 0.5:
                content = replace(old.group, created_at=old.group.created_at - 3600.0)
                old = replace(old, group=content, id=GroupId(f"{self.crowd.next_number():064x}"))
            self.publish(old)


class Undelivered(Hostile):
    """Offers what it does not have."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        self._open: dict[RelayStream, int] = {}

    def serve_relay(self, stream: RelayStream) -> None:
        self._open[stream] = stream.age
        self.world.at(STREAM_S, stream.end, stream.age, False)

    def act(self) -> None:
        for stream, age in list(self._open.items()):
            if not stream.is_current(age):
                del self._open[stream]
                continue
            offer = Offer(
                id=GroupId(f"{self.crowd.next_number():064x}"),
                origin=self.peer,
                hops=1,
                size=len(self.crowd.body),
                created_at=self.world.wall,
                source="reasoning_gym/spell_backward",
            )
            stream.answer(FRAME + Sizes.offer, stream.offered, [offer])

    def wanted(self, stream: RelayStream, ids: object) -> None:
        """Not a word."""


class Useless(Hostile):
    """Makes valid groups of which next to nothing is to be learned."""

    def act(self) -> None:
        self.publish(self.crowd.make(self, use=0.001))


KINDS: tuple[Callable[[Crowd, int], Hostile], ...] = (Silent, Garbage, Replay, Undelivered, Useless)
