"""An honest node: reads the directory, follows, judges, passes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarm.limits import Limits
from swarm.net.base import INNOCENT
from swarm.net.directory import FAST_READ_S, MEMORY_HEARTBEATS
from swarm.net.exchange import BYTES_PER_MBIT, RELAYED_AGE
from swarm.net.following import REST_S
from swarm.net.rates import Rate, Shares
from swarm.net.relay import Rules, Shelf, Wishes
from swarm.net.selection import Seats, Uses
from swarm.net.settings import P2PSettings
from swarm.net.shards import SwarmSize
from swarm.net.standing import Standing
from swarm.types import Announcement, GroupId, PeerId, Reason
from swarm.verify import UNSIGNED, Context
from tests.bench.crowd.groups import Carried, Made, Sizes
from tests.bench.crowd.keys import key_of
from tests.bench.crowd.presence import HEARTBEAT_S, Presence
from tests.bench.crowd.streams import PullStream, RelayStream
from tests.bench.crowd.turns import Turns
from tests.builders import MANIFEST, MEMBERSHIP

if TYPE_CHECKING:
    from tests.bench.crowd.crowd import Crowd

SETTINGS = P2PSettings()
LIMITS = Limits()
REVIEW_S = 5.0
"""The exchange looks every second."""
JUDGE_S = 0.05


class Node(Presence):
    def __init__(self, crowd: Crowd, number: int) -> None:
        super().__init__(crowd, number)
        world, plan, rng = self.world, self.world.plan, self.world.rng
        self.standing, self.uses = Standing(world.clock), Uses(world.clock)
        self.seats = Seats(SETTINGS.follow, self.table, self.standing, self.uses, tuple, rng)
        rate = Rate(groups=plan.appetite, bytes=SETTINGS.download_mbit * BYTES_PER_MBIT)
        self.turns = Turns(world, Shares(rate, SETTINGS.peer_share, world.now))
        rules = Rules(
            me=self.peer,
            max_hops=SETTINGS.relay_max_hops,
            outstanding=1 / (2 * SETTINGS.follow),
            max_age_s=LIMITS.max_age_s * RELAYED_AGE,
            max_clock_skew_s=LIMITS.max_clock_skew_s,
        )
        self.shelf = self._shelf = Shelf(rules, SETTINGS.relay_groups_per_s, world.now)
        self.wishes = Wishes(rules, self.standing.banned)
        self.cursors: dict[PeerId, tuple[bytes, int]] = {}
        self.known: set[GroupId] = set()
        self.streams: dict[PeerId, tuple[PullStream, RelayStream]] = {}
        self._size = SwarmSize(MEMORY_HEARTBEATS * HEARTBEAT_S, world.clock)
        self._checked: dict[PeerId, float] = {}
        """When what we last read of a peer was issued."""

    def begin(self) -> None:
        rng = self.world.rng
        self.world.at(rng.uniform(0, 1), self.read)
        self.world.at(rng.uniform(0, 2), self.beat)
        self.world.at(rng.uniform(0, REVIEW_S), self.review)
        self.world.at(rng.expovariate(self.world.plan.groups_per_s), self.produce)

    # The directory ----------------------------------------------------------------------------------------------------

    @property
    def swarm_size(self) -> float:
        return self._size.estimate

    def read(self) -> None:
        """As `swarm.net.directory.Directory` does."""
        if not self.alive:
            return
        answered = False
        for level, shard in self._size.to_read(self.world.rng):
            found = self._read_shard(level, shard)
            if found is not None:
                answered = True
                self._size.saw(level, len(found))
        if answered and self._size.unseen is not None:
            self.world.at(self.world.latency() * 6, self.read)
            return
        pause = HEARTBEAT_S / 2
        if not self.table.alive():
            pause = min(pause, FAST_READ_S)
        self.world.at(pause * self.world.rng.uniform(0.8, 1.2), self.read)

    def _read_shard(self, level: int, shard: int) -> set[PeerId] | None:
        """Whose records there are; None if nobody answered."""
        crowd, key = self.crowd, key_of(level, shard)
        crowd.count_read()
        crowd.look_up(self, key)
        found: set[PeerId] | None = None
        for holder in crowd.holders(key):
            told = holder.tells(holder.storage.announcements(key))
            if told is None or self.world.lost() or self.world.lost():
                continue
            crowd.answer(holder, self, len(told) * Sizes.record)
            found = set() if found is None else found
            for announcement in told:
                found.add(announcement.peer)
                self._checks(announcement)
                self.table.announced(announcement, holder.peer)
        return found

    def _checks(self, announcement: Announcement) -> None:
        """A record that was read before costs nothing."""
        if self._checked.get(announcement.peer, 0.0) < announcement.issued_at:
            self._checked[announcement.peer] = announcement.issued_at
            self.crowd.count_checked()

    # Following --------------------------------------------------------------------------------------------------------

    def review(self) -> None:
        if self.alive:
            self.choose()
            self.world.at(REVIEW_S, self.review)

    def choose(self) -> None:
        chosen = self.seats.review()
        for peer in [peer for peer in self.streams if peer not in chosen]:
            self._leave(peer)
        for peer in chosen:
            if peer not in self.streams:
                publisher = self.crowd.members[peer]
                both = PullStream(self, publisher), RelayStream(self, publisher)
                self.streams[peer] = both
                for stream in both:
                    stream.open()

    def _leave(self, peer: PeerId) -> None:
        for stream in self.streams.pop(peer, ()):
            stream.close()

    def given_up(self, peer: PeerId) -> None:
        """Its log has failed too often in a row."""
        self.standing.rest(peer, REST_S)
        self.choose()

    def strike(self, peer: PeerId) -> None:
        self.standing.strike(peer)
        if self.standing.excluded(peer):
            self.world.at(0.0, self._drop, peer)

    def _drop(self, peer: PeerId) -> None:
        if self.alive and peer in self.streams:
            self.choose()

    def look_again(self) -> None:
        """What somebody was asked for in vain may be free now."""
        for _, relay in list(self.streams.values()):
            relay.look()

    # Groups -----------------------------------------------------------------------------------------------------------

    def produce(self) -> None:
        if self.alive:
            plan, crowd = self.world.plan, self.crowd
            self.offer_own(crowd.make(self, use=crowd.typical_use()))
            self.world.at(self.world.rng.expovariate(plan.groups_per_s), self.produce)

    def offer_own(self, group: Made) -> None:
        """As the loop `produce` does: in the log, and on the shelf if it is outstanding."""
        self.publish(group)
        own = Carried(sender=self.peer, body=group.body, signature=group.signature, group=group)
        self._shelf.made(own, group, self._use_of(group), self.world.now, self.world.wall)
        self.offer()

    def _use_of(self, group: Made) -> float:
        return group.use if group.rare else group.use * self.world.rng.random()

    def received(self, group: Made, sender: PeerId, hops: int) -> None:
        self.table.heard(sender)
        self.crowd.count_delivered(group, sender)
        self.world.at(JUDGE_S, self._judge, group, sender, hops)

    def repeated(self) -> None:
        """A relay sent what came from somebody else meanwhile."""
        self.crowd.count_repeated()

    def _judge(self, group: Made, sender: PeerId, hops: int) -> None:
        if not self.alive:
            return
        context = Context(
            me=self.peer,
            manifest=MANIFEST,
            membership=MEMBERSHIP,
            limits=LIMITS,
            now=self.world.wall,
            banned=self.standing.banned,
        )
        reason = self.crowd.verdicts.of(group, context)
        if reason is Reason.ADMITTED and group.id in self.known:
            reason = Reason.DUPLICATE
        self.crowd.count_verdict(group, reason)
        if reason is not Reason.ADMITTED:
            if reason not in INNOCENT:
                self.strike(sender if reason in UNSIGNED or not group.valid else group.group.origin)
            return
        self.known.add(group.id)
        use = self._use_of(group)
        if group.rare:
            self.crowd.reached(group, self, hops)
        received = Carried(sender=sender, body=group.body, signature=group.signature, hops=hops, group=group)
        self.uses.thanked(sender, use)
        self._shelf.add(received, group, use, self.world.now, self.world.wall, self.turns.short)
        self.offer()

    def leave(self) -> None:
        super().leave()
        for peer in list(self.streams):
            self._leave(peer)
