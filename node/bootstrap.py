"""A seed peer: whom newcomers ask first. It keeps the swarm's directory, tells peers whether they can be dialled, and
relays for those that cannot; it learns nothing, announces nothing of its own and follows nobody.

Not announcing itself is what makes it no member: a seed peer whose record said "I have no log" would take a place in
its shard and a try of everybody's. It is found by its address, which is in the swarm file or in `initial_peers`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Never

import uvloop

from node.datadir import DataDirectory
from swarm.membership import Membership
from swarm.net.addressbook import AddressBook
from swarm.net.dialback import REACH, DialBack
from swarm.net.directory import Directory, Participant, open_directory
from swarm.net.p2pd import stack_config
from swarm.net.peertable import PeerTable
from swarm.net.settings import P2PSettings
from swarm.net.stack import Stack, open_stack
from swarm.net.upkeep import Patience, keep_up
from swarm.types import PeerId
from swarm.wire.identity import Identity

REPORT_EVERY_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSettings:
    membership: Membership
    """Whose announcements are kept."""
    data_dir: Path
    """Identity, ports and known addresses; locked while it runs."""
    exchange: P2PSettings


def run(settings: SeedSettings, say: Callable[[str], None]) -> int:
    """Until SIGTERM or SIGINT; returns 0. `say` gets an address to be reached at, each one once."""
    uvloop.run(_serve(settings, say))
    return 0


async def _serve(settings: SeedSettings, say: Callable[[str], None]) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    data = DataDirectory(settings.data_dir)
    with data.lock():
        life = asyncio.create_task(_Seed(settings, Identity.load_or_create(data.identity), data, say).live_on())
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({life, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in (life, stop):
            task.cancel()
        await asyncio.wait({life, stop})
        if not life.cancelled():
            life.result()  # which only a bug ends
    log.info("has stopped")


class _Seed:
    """What outlives a stack that breaks."""

    def __init__(
        self, settings: SeedSettings, identity: Identity, data: DataDirectory, say: Callable[[str], None]
    ) -> None:
        exchange = settings.exchange
        exchange.check_addresses()
        self._settings, self._identity, self._data, self._say = exchange, identity, data, say
        self._rng = random.Random()
        self._book = AddressBook(data.peers)
        self._table = PeerTable(identity.peer_id, exchange.heartbeat_s, time.monotonic)
        self._participant = Participant(
            membership=settings.membership,
            identity=identity,
            heartbeat_s=exchange.heartbeat_s,
            seeds=exchange.initial_peers,
            table=self._table,
            book=self._book,
            announcement=lambda: None,
            renewed=asyncio.Event(),
            rng=self._rng,
            clock=time.time,
        )
        self._said: set[str] = set()

    async def live_on(self) -> Never:
        try:
            await keep_up(self._live, lambda _: None, Patience(self._rng))
        finally:
            self._book.save()

    async def _live(self) -> None:
        """One stack's life. Ends with NetworkError (in a group)."""
        config = stack_config(self._settings, self._data.identity, self._book)
        async with open_stack(config) as stack, open_directory(stack, self._participant) as directory:
            await stack.serve(REACH, DialBack(stack, time.time, time.monotonic).serve)
            async with asyncio.TaskGroup() as group:
                group.create_task(stack.watch())
                group.create_task(directory.run())
                group.create_task(self._report(stack, directory))

    async def _report(self, stack: Stack, directory: Directory) -> Never:
        while True:
            for address in addresses(self._settings, stack.addresses, self._identity.peer_id):
                if address not in self._said:
                    self._said.add(address)
                    self._say(address)
            log.info("%d peers known, %d records held", len(self._table.alive()), directory.records)
            await asyncio.sleep(REPORT_EVERY_S)


def addresses(settings: P2PSettings, own: tuple[str, ...], peer: PeerId) -> tuple[str, ...]:
    """Where a seed peer is to be dialled: as it was told to say, else where it is."""
    return tuple(f"{address}/p2p/{peer}" for address in settings.announce) or own
