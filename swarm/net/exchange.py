"""The exchange over libp2p: a directory to find peers, streams to pull their logs, a stack that may break at any time.

    stack (one daemon) -> directory -> table of peers -> following -> queue -> receive()
                       -> publisher <- our log
                       -> relay <- what peers sent and was useful

What must outlive a stack (table, standing, positions, queue, address book) belongs to the exchange. When the stack
breaks - the daemon is killed, its control connection is lost, it stops answering - it is closed as a whole and another
is opened, with growing pauses, while `receive`, `announce` and `peers` go on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from swarm.errors import ConfigError, NetworkError
from swarm.limits import Limits
from swarm.membership import Membership
from swarm.net.addressbook import AddressBook
from swarm.net.base import INNOCENT, GroupLog, PeerInfo, Received
from swarm.net.dialback import REACH, DialBack
from swarm.net.directory import Participant, open_directory
from swarm.net.following import CursorStore, Following
from swarm.net.p2pd import stack_config
from swarm.net.packing import CORE_SHARE, Packing
from swarm.net.peertable import PeerTable
from swarm.net.rates import Meter, Rate, Shares
from swarm.net.relay import Rules, Shelf, Wishes
from swarm.net.relay_reader import RelayReader
from swarm.net.relaying import RELAY, Relay
from swarm.net.reservation import keep_reserved
from swarm.net.selection import Uses
from swarm.net.settings import P2PSettings
from swarm.net.stack import Stack, open_stack
from swarm.net.standing import Standing
from swarm.net.streams import PULL, Publisher
from swarm.net.upkeep import Patience, Watcher, keep_up
from swarm.types import Announcement, CellValue, GroupId, PeerId, Reason, SignedGroup, Verdict
from swarm.wire.identity import Identity

START_PATIENCE_S = 10.0
"""How long entering the exchange waits for its first stack, which then goes on starting by itself."""
RELAYED_AGE = 0.5
"""Of a group's time: older ones are not passed on. Whoever gets one last can still learn from it."""
BYTES_PER_MBIT = 125_000
LINEAGES_S = 30.0

logger = logging.getLogger(__name__)


class P2PExchange:
    """An `Exchange` (see `swarm.net.base`) as long as its context is open. Starts without a peer and without a network.

    A failure of the network is never raised; a bug in here is, by `receive`, `announce` and the end of the context.
    """

    def __init__(
        self,
        settings: P2PSettings,
        *,
        identity: Identity,
        identity_path: Path,
        membership: Membership,
        log: GroupLog,
        cursors: CursorStore,
        limits: Limits,
        peers_file: Path,
        known: Callable[[GroupId], Awaitable[bool]] | None = None,
        appetite: Callable[[], float] | None = None,
        worth: Callable[[], Sequence[CellValue]] = tuple,
        standing: Standing | None = None,
        rng: random.Random | None = None,
        wall_clock: Callable[[], float] = time.time,
        watcher: Watcher | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`known`: whether we have a group already, so that no relay needs to send it; None if nothing is kept.
        `appetite`: groups per second that the node has a use for, asked again and again; None for as many as the
        settings allow. `worth`: our own values, which peers' announcements are compared with. `standing`: what peers
        have earned; a new one if None. `wall_clock`: unix seconds. `watcher`: says after which failures another stack
        is opened, and when; None for those of the network, for ever. `warn`: what an operator should know."""
        settings.check_addresses()
        self._settings, self._identity, self._identity_path = settings, identity, identity_path
        self._log, self._cursors = log, cursors
        self._rng = random.Random() if rng is None else rng
        self._wall_clock = wall_clock
        self._watcher = Patience(self._rng) if watcher is None else watcher
        self._book = AddressBook(peers_file)
        self._table = PeerTable(identity.peer_id, settings.heartbeat_s, time.monotonic, self._rng)
        self._uses = Uses(time.monotonic)
        self._standing = Standing(time.monotonic) if standing is None else standing
        self._appetite = appetite
        upload = _meter(settings.upload_groups_per_s, settings.upload_mbit, settings)
        self._download = _meter(settings.download_groups_per_s, settings.download_mbit, settings, self._wanted)
        packing = Packing(CORE_SHARE if settings.compression else 0.0)
        self._publisher = Publisher(membership, log, limits, upload, packing=packing)
        rules = Rules(
            me=identity.peer_id,
            max_hops=settings.relay_max_hops,
            outstanding=1 / (2 * settings.follow),
            max_age_s=limits.max_age_s * RELAYED_AGE,
            max_clock_skew_s=limits.max_clock_skew_s,
        )
        shelf = Shelf(rules, settings.relay_groups_per_s, time.monotonic())
        self._relay = Relay(membership, shelf, upload, time.monotonic, wall_clock, packing=packing)
        self._relay_reader = RelayReader(
            me=identity.peer_id,
            membership=membership,
            limits=limits,
            wishes=Wishes(rules, self._standing.banned),
            meter=self._download,
            known=known or _nothing_known,
            clock=time.monotonic,
            wall=wall_clock,
            deflate=settings.compression,
        )
        self._following = Following(
            me=identity.peer_id,
            membership=membership,
            follow=settings.follow,
            limits=limits,
            table=self._table,
            standing=self._standing,
            cursors=cursors,
            meter=self._download,
            appetite=self._wanted,
            relays=self._relay_reader if settings.relay_groups else None,
            uses=self._uses,
            worth=worth,
            rng=self._rng,
            deflate=settings.compression,
        )
        self._announcement: Announcement | None = None
        self._participant = Participant(
            membership=membership,
            identity=identity,
            heartbeat_s=settings.heartbeat_s,
            seeds=settings.initial_peers,
            table=self._table,
            book=self._book,
            announcement=self._current,
            renewed=asyncio.Event(),
            warn=warn,
            rng=self._rng,
            clock=wall_clock,
            max_skew_s=limits.max_clock_skew_s,
        )
        self._stack: Stack | None = None
        self._why = "starting"
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_up())
        self._task.add_done_callback(lambda _: self._following.wake())
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait({self._task, up}, timeout=START_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            self._check()
        except BaseException:
            await self._close()
            raise
        finally:
            up.cancel()
        if not self._up.is_set():
            logger.warning("the network is not up yet (%s); going on without", self._why)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()
        if error is None:
            self._check()

    async def _close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._book.save()

    def _check(self) -> None:
        """Raises what ended the background task, which only a bug does."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def state(self) -> str:
        return "up" if self._stack is not None else f"restarting: {self._why}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs where we can be dialled, with our peer id; empty if nowhere at the moment."""
        if self._stack is None:
            return ()
        announced = tuple(f"{address}/p2p/{self.peer_id}" for address in self._settings.announce)
        return announced or tuple(dict.fromkeys([*self._stack.addresses, *self._settings.circuits(self.peer_id)]))

    def peers(self) -> Sequence[PeerInfo]:
        return [
            PeerInfo(
                peer=announcement.peer,
                name=announcement.name,
                addresses=announcement.addresses,
                last_seen=last_seen,
                head=announcement.head,
                cursor=self._cursor(announcement),
                values=announcement.values,
            )
            for announcement, last_seen in self._table.alive()
        ]

    async def announce(self, announcement: Announcement) -> None:
        """Takes effect at once, and is renewed with every heartbeat, with the log's head, our addresses and the time of
        the moment. Does not wait for the network."""
        self._check()
        self._announcement = announcement
        self._participant.renewed.set()

    async def receive(self) -> AsyncIterator[Received]:
        """Groups in the order in which they came; a cursor moves when the next one is asked for."""
        while True:
            self._check()
            pulled = await self._following.queue.get()
            if pulled is None:
                continue
            yield pulled.received
            if pulled.position is not None:
                self._cursors.set_cursor(pulled.received.sender, *pulled.position)

    def refresh(self) -> None:
        self._participant.renewed.set()
        self._participant.outdated.set()

    def blame(self, peer: PeerId, verdict: Verdict) -> None:
        if verdict.reason is Reason.BAD_SIGNATURE:
            self._relay_reader.refused(peer)
        if verdict.reason not in INNOCENT:
            self._standing.strike(peer)

    def made(self, signed: SignedGroup, use: float) -> None:
        if self._settings.relay_groups:
            own = Received(sender=self.peer_id, body=signed.body, signature=signed.signature)
            self._relay.made(own, signed, use)

    def thank(self, received: Received, signed: SignedGroup, use: float) -> None:
        if self._settings.relay_groups:
            self._relay.add(received, signed, use, short=self._download.short)
        self._uses.thanked(received.sender, use)

    def _wanted(self) -> float:
        """Groups per second."""
        most = self._settings.download_groups_per_s
        return most if self._appetite is None else min(max(self._appetite(), 0.0), most)

    def _current(self) -> Announcement | None:
        if self._announcement is None:
            return None
        return replace(
            self._announcement,
            addresses=self.addresses,
            epoch=self._log.epoch,
            head=self._log.head,
            readers=self._publisher.readers,
        )

    def _cursor(self, announcement: Announcement) -> int:
        epoch, cursor = self._cursors.cursor(announcement.peer)
        return cursor if epoch == announcement.epoch else 0

    async def _keep_up(self) -> None:
        """Opens one stack after the other, for ever."""

        def broke(why: str) -> None:
            self._why = why

        await keep_up(self._live, broke, self._watcher)

    async def _live(self) -> None:
        """One stack's life. Ends with NetworkError (in a group)."""
        try:
            config = stack_config(self._settings, self._identity_path, self._book)
            async with open_stack(config) as stack, open_directory(stack, self._participant) as directory:
                if stack.peer_id != self.peer_id:
                    raise ConfigError(f"identity {self._identity_path}: key of {stack.peer_id}, not {self.peer_id}")
                await stack.serve(PULL, self._publisher.serve)
                if self._settings.relay_groups:
                    await stack.serve(RELAY, self._relay.serve)
                await stack.serve(REACH, DialBack(stack, self._wall_clock, time.monotonic).serve)
                self._stack = stack
                self._up.set()
                self._watcher.up()
                async with asyncio.TaskGroup() as group:
                    group.create_task(stack.watch())
                    group.create_task(directory.run())
                    for relay in self._settings.needed_relays:
                        group.create_task(keep_reserved(stack, relay))
                    group.create_task(self._following.run(stack))
                    group.create_task(self._note_lineages(stack))
        finally:
            self._stack = None

    async def _note_lineages(self, stack: Stack) -> None:
        """Never returns. In which networks our connections really end."""
        while True:
            with suppress(NetworkError):
                for peer, addresses in (await stack.connections()).items():
                    for address in addresses:
                        self._standing.reached(peer, address)
            await asyncio.sleep(LINEAGES_S)


def _meter(groups: float, mbit: float, settings: P2PSettings, appetite: Callable[[], float] | None = None) -> Meter:
    rate = Rate(groups=groups, bytes=mbit * BYTES_PER_MBIT)
    return Meter(Shares(rate, settings.peer_share, time.monotonic()), time.monotonic, appetite)


async def _nothing_known(id: GroupId) -> bool:
    return False
