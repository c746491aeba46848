"""The directory: who is alive, as far as signed announcements in a DHT say.

Three things go on as long as the stack lives, none of which waits for another: our announcement is renewed, the others'
are read, and known addresses are tried: all of them while we are alone, one now and then when we are not, so that
halves of a swarm that lost each other meet again.

A small swarm is read whole. In a larger one a node announces itself on one or two levels and reads a random shard now
and then (`swarm.net.shards`): it knows a part, which is another one for every node and all the time, and pays the same
in a swarm of any size. A value is believed if `swarm.net.records` says so, wherever it comes from. What peers store
with us is news at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from swarm.errors import NetworkError, SwarmError
from swarm.membership import Membership
from swarm.net.addressbook import AddressBook
from swarm.net.addresses import peer_of
from swarm.net.dht import DHT, open_dht
from swarm.net.peertable import HEARTBEATS, PeerTable
from swarm.net.records import MAX_SKEW_S, RecordRules
from swarm.net.shards import LEVELS, SwarmSize, levels_of, shard_of
from swarm.net.stack import Stack
from swarm.types import Announcement
from swarm.wire.codec import MAX_ADDRESSES, encode_announcement
from swarm.wire.identity import Identity

FAST_READ_S = 1.0
"""How often the directory is read while nobody is known."""
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
DIALS_AT_ONCE = 8
SETTLE_S = 600.0
"""About how often those next to us in the DHT hear of us, who may be others by then."""
MEMORY_HEARTBEATS = 15
"""How long a reading has a say in how large the swarm is."""
DRAW_HEARTBEATS = 30
"""How long we stay on the levels that chance has put us on."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """What a node is in the directory, and what it keeps when a stack breaks and another is opened."""

    membership: Membership
    identity: Identity
    heartbeat_s: float
    seeds: tuple[str, ...]
    """Addresses with peer ids, from the config."""
    table: PeerTable
    book: AddressBook
    announcement: Callable[[], Announcement | None]
    """What to announce now; None is nothing yet. Its address and time are filled in here."""
    renewed: asyncio.Event
    """Set to announce at once."""
    rng: random.Random
    clock: Callable[[], float]
    """Unix seconds."""
    max_skew_s: float = MAX_SKEW_S
    """How far a peer's clock may be from ours."""
    warn: Callable[[str], None] = lambda text: None
    """Told what an operator should know."""
    outdated: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to read at once."""


class Directory:
    """One stack's part in the DHT. Made by `open_directory`; `run` does the work."""

    def __init__(self, stack: Stack, dht: DHT, rules: RecordRules, member: Participant) -> None:
        self._stack, self._dht, self._rules, self._member = stack, dht, rules, member
        self._size = SwarmSize(MEMORY_HEARTBEATS * member.heartbeat_s, asyncio.get_running_loop().time)
        self._doubted_clock = False

    @property
    def swarm_size(self) -> float:
        """About how many announce themselves; 0 while nothing was read."""
        return self._size.estimate

    async def run(self) -> None:
        """Never returns, and raises nothing for the network's sake."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce())
            group.create_task(self._read())
            group.create_task(self._meet())

    async def _announce(self) -> None:
        member = self._member
        draws: list[float] = []
        left = 0
        while True:
            if left == 0:
                draws, left = [member.rng.random() for _ in range(LEVELS)], DRAW_HEARTBEATS
            left -= 1
            member.renewed.clear()
            current = member.announcement()
            if current is not None:
                await self._store(current, levels_of(self._size.estimate, draws))
            await _either(member.renewed, member.heartbeat_s * member.rng.uniform(0.9, 1.0))

    async def _store(self, announcement: Announcement, levels: Sequence[int]) -> None:
        member, peer = self._member, announcement.peer
        addresses = (announcement.addresses or self._stack.addresses)[:MAX_ADDRESSES]
        current = replace(
            announcement, addresses=addresses, issued_at=member.clock(), membership=member.membership.proof(peer)
        )
        try:
            value = encode_announcement(current, member.identity)
        except SwarmError as error:
            logger.warning("our announcement cannot be sent: %s", error)
            return
        expires_at = current.issued_at + HEARTBEATS * member.heartbeat_s
        keys = [self._rules.key(level, shard_of(peer, level)) for level in levels]
        await asyncio.gather(*(self._dht.store(key, peer, value, expires_at) for key in keys))

    async def _read(self) -> None:
        member = self._member
        while True:
            member.outdated.clear()
            if await self._read_shards() and self._size.unseen is not None:
                continue
            pause = member.heartbeat_s / 2
            if not member.table.alive():
                pause = min(pause, FAST_READ_S)
            await _either(member.outdated, pause * member.rng.uniform(0.8, 1.2))

    async def _read_shards(self) -> bool:
        """Whether anybody answered."""
        member = self._member
        shards = self._size.to_read(member.rng)
        found = await asyncio.gather(
            *(self._dht.read(self._rules.key(level, shard), member.table.announced) for level, shard in shards)
        )
        for (level, _), peers in zip(shards, found, strict=True):
            if peers is not None:
                self._size.saw(level, len(peers))
        self._check_clock()
        for announcement in member.table.met():
            for address in announcement.addresses[:1]:
                with suppress(SwarmError):
                    member.book.remember(address, announcement.peer)
        member.book.save()
        return any(peers is not None for peers in found)

    def _check_clock(self) -> None:
        """Says so, once, when most of those that we hear of live in another time."""
        offset = self._rules.clock_offset_s(self._member.identity.peer_id)
        # What was read may be as old as a record gets.
        doubted = abs(offset) > self._member.max_skew_s + HEARTBEATS * self._member.heartbeat_s
        if doubted and not self._doubted_clock:
            direction = "ahead of" if offset > 0 else "behind"
            text = (
                f"the clocks of most peers are {abs(offset):.0f} s {direction} ours: they and we do not believe each"
                " other until this machine's clock, or theirs, is set"
            )
            logger.warning(text)
            self._member.warn(text)
        self._doubted_clock = doubted

    async def _meet(self) -> None:
        """Tries known addresses, again and again, less and less often while that is in vain."""
        member = self._member
        delay = FIRST_RETRY_S
        while True:
            alone = not self._dht.routes
            seeds = member.rng.sample(member.seeds, min(DIALS_AT_ONCE, len(member.seeds)))
            known = list(dict.fromkeys([*seeds, *member.book.peers[:DIALS_AT_ONCE]]))
            met = await self._greet_all(known if alone else member.rng.sample(known, min(1, len(known))))
            if met and (alone or member.rng.random() < delay / SETTLE_S):
                await self._dht.settle()
            if met and alone:
                logger.info("reached %d of %d known addresses", met, len(known))
                member.renewed.set()
                member.outdated.set()
            if self._dht.routes:
                delay = LAST_RETRY_S
            elif alone:
                delay = min(2 * delay, LAST_RETRY_S)
            else:
                delay = FIRST_RETRY_S
            await asyncio.sleep(delay * member.rng.uniform(0.5, 1.0))

    async def _greet_all(self, addresses: list[str]) -> int:
        """How many of them answered."""
        return sum(await asyncio.gather(*map(self._greet, addresses)))

    async def _greet(self, address: str) -> bool:
        peer = peer_of(address)
        if peer == self._stack.peer_id:
            return False
        try:
            await self._dht.greet(peer, address)
        except NetworkError as error:
            logger.debug("%s: %s", address, error)
            return False
        self._member.book.remember(address, peer)
        return True

    @property
    def records(self) -> int:
        """That are held for others."""
        return self._dht.records


@asynccontextmanager
async def open_directory(stack: Stack, member: Participant) -> AsyncIterator[Directory]:
    """A DHT node on `stack`, with our rules. Raises NetworkError."""
    rules = RecordRules(member.membership, member.clock, member.max_skew_s)
    async with open_dht(stack, rules, member.rng, member.table.announced) as dht:
        yield Directory(stack, dht, rules, member)


async def _either(event: asyncio.Event, timeout: float) -> None:
    """Returns when the event is set, or after `timeout` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
