"""The exchange over libp2p: a directory to find peers, streams to pull their logs, a stack that may break at any time.

    stack (one daemon) -> directory -> table of peers -> following -> queue -> receive()
                       -> publisher <- our log

What must outlive a stack (table, strikes, positions, queue, address book) belongs to the exchange. When the stack
breaks - the daemon is killed, its control connection is lost, it stops answering - it is closed as a whole and another
is opened, with growing pauses, while `receive`, `announce` and `peers` go on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from swarm.errors import ConfigError
from swarm.limits import Limits
from swarm.membership import Membership
from swarm.net.addressbook import AddressBook
from swarm.net.addresses import port_of, wildcard, with_port
from swarm.net.base import INNOCENT, GroupLog, PeerInfo, Received
from swarm.net.directory import Participant, open_directory
from swarm.net.following import CursorStore, Following
from swarm.net.p2pd import StackConfig
from swarm.net.peertable import PeerTable
from swarm.net.settings import P2PSettings
from swarm.net.stack import Stack, open_stack
from swarm.net.standing import Strikes
from swarm.net.streams import PULL, Publisher
from swarm.types import Announcement, PeerId, SignedGroup, Verdict
from swarm.wire.identity import Identity

START_PATIENCE_S = 10.0
"""How long entering the exchange waits for its first stack, which then goes on starting by itself."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 60.0
STABLE_S = 60.0
"""A stack that lived so long was a good one: the next pause is the shortest again."""

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
        rng: random.Random | None = None,
    ) -> None:
        settings.check_addresses()
        self._settings, self._identity, self._identity_path = settings, identity, identity_path
        self._log, self._cursors = log, cursors
        self._rng = random.Random() if rng is None else rng
        self._book = AddressBook(peers_file)
        self._table = PeerTable(identity.peer_id, settings.heartbeat_s, time.monotonic)
        self._strikes = Strikes(time.monotonic)
        self._publisher = Publisher(membership, log, limits)
        self._following = Following(
            me=identity.peer_id,
            membership=membership,
            follow=settings.follow,
            limits=limits,
            table=self._table,
            strikes=self._strikes,
            cursors=cursors,
            rng=self._rng,
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
            rng=self._rng,
            clock=time.time,
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
        return announced or self._stack.addresses

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
            self._cursors.set_cursor(pulled.received.sender, pulled.epoch, pulled.cursor)

    def blame(self, peer: PeerId, verdict: Verdict) -> None:
        if verdict.reason not in INNOCENT:
            self._strikes.add(peer)

    def thank(self, received: Received, signed: SignedGroup, use: float) -> None:
        """Nothing follows yet."""

    def _current(self) -> Announcement | None:
        if self._announcement is None:
            return None
        return replace(self._announcement, addresses=self.addresses, epoch=self._log.epoch, head=self._log.head)

    def _cursor(self, announcement: Announcement) -> int:
        epoch, cursor = self._cursors.cursor(announcement.peer)
        return cursor if epoch == announcement.epoch else 0

    async def _keep_up(self) -> None:
        """Opens one stack after the other, for ever."""
        loop = asyncio.get_running_loop()
        pause = FIRST_RETRY_S
        while True:
            started = loop.time()
            try:
                await self._live()
            except* OSError as failures:  # NetworkError is one; so is a disk that has no room for a socket.
                self._why = str(_first(failures))
            if loop.time() - started > STABLE_S:
                pause = FIRST_RETRY_S
            logger.warning("the network is down (%s); starting it again", self._why)
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
            pause = min(2 * pause, LAST_RETRY_S)

    async def _live(self) -> None:
        """One stack's life. Ends with NetworkError (in a group)."""
        try:
            async with open_stack(self._stack_config()) as stack, open_directory(stack, self._participant) as directory:
                if stack.peer_id != self.peer_id:
                    raise ConfigError(f"identity {self._identity_path}: key of {stack.peer_id}, not {self.peer_id}")
                await stack.serve(PULL, self._publisher.serve)
                self._stack = stack
                self._up.set()
                async with asyncio.TaskGroup() as group:
                    group.create_task(stack.watch())
                    group.create_task(directory.run())
                    group.create_task(self._following.run(stack))
        finally:
            self._stack = None

    def _stack_config(self) -> StackConfig:
        settings = self._settings
        listen = []
        for address in settings.listen:
            chosen = with_port(address, self._book.port(address))
            if wildcard(address) is not None:
                self._book.keep_port(address, port_of(chosen))
            listen.append(chosen)
        self._book.save()
        return StackConfig(
            identity_path=self._identity_path,
            listen=tuple(listen),
            announce=settings.announce,
            relays=settings.initial_peers,
            relay=settings.relay and not settings.local,
        )


def _first(group: BaseExceptionGroup[OSError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
