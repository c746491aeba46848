"""Following: a few peers' logs are pulled at a time, each by a task of its own, all into one bounded queue."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from swarm.errors import NetworkError, WireError
from swarm.limits import Limits
from swarm.membership import Membership
from swarm.net.base import Received
from swarm.net.peertable import MAX_PEERS, PeerTable
from swarm.net.stack import Stack
from swarm.net.standing import Strikes
from swarm.net.streams import PULL, pull
from swarm.types import PeerId
from swarm.wire.codec import Pull

QUEUE_GROUPS = 32
"""Groups that wait for `receive`. When it is full the streams wait: a peer's own log is its buffer."""
GROUPS_PER_STREAM = 256
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0
MAX_FAILURES = 6
"""In a row, about a minute: then another peer gets the place."""
REST_S = 60.0
SHORT_STREAM_S = 1.0
"""A stream that ends sooner and brought nothing is a failure, or two peers could keep each other busy with nothing."""
RECONCILE_S = 1.0

logger = logging.getLogger(__name__)


class CursorStore(Protocol):
    """How far each peer's log has been read. Kept across restarts by whoever implements it (the journal)."""

    def cursor(self, peer: PeerId) -> tuple[bytes, int]:
        """Epoch of the log and cursor in it; (b"", 0) if it was never read."""
        ...

    def set_cursor(self, peer: PeerId, epoch: bytes, cursor: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pulled:
    """One group, and the position in its sender's log that it was found at."""

    received: Received
    epoch: bytes
    cursor: int


class Following:
    """Who is followed, and how far their logs have been pulled. Outlives stacks; `run` needs one."""

    def __init__(
        self,
        *,
        me: PeerId,
        membership: Membership,
        follow: int,
        limits: Limits,
        table: PeerTable,
        strikes: Strikes,
        cursors: CursorStore,
        rng: random.Random,
    ) -> None:
        self._me, self._membership, self._follow, self._limits = me, membership, follow, limits
        self._table, self._strikes, self._cursors, self._rng = table, strikes, cursors, rng
        self.queue: asyncio.Queue[Pulled | None] = asyncio.Queue(QUEUE_GROUPS)
        """None is nothing but a reason to look up (`wake`)."""
        # Ahead of the stored cursors by what is in the queue.
        self._positions: OrderedDict[PeerId, tuple[bytes, int]] = OrderedDict()

    def wake(self) -> None:
        """Lets whoever waits for a group go on without one."""
        if self.queue.empty():
            self.queue.put_nowait(None)

    async def run(self, stack: Stack) -> None:
        """Never returns. Keeps `follow` random peers that are alive and not excluded under way."""
        followed: dict[PeerId, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._table.changed.clear()
                alive = [announcement.peer for announcement, _ in self._table.alive()]
                worthy = {peer for peer in alive if not self._strikes.excluded(peer)}
                for peer, task in list(followed.items()):
                    if peer not in worthy:
                        task.cancel()
                    if task.done():
                        del followed[peer]
                candidates = sorted(worthy - followed.keys())
                free = max(self._follow - len(followed), 0)
                for peer in self._rng.sample(candidates, min(free, len(candidates))):
                    followed[peer] = group.create_task(self._follow_peer(stack, peer))
                with suppress(TimeoutError):
                    async with asyncio.timeout(RECONCILE_S):
                        await self._table.changed.wait()

    async def _follow_peer(self, stack: Stack, peer: PeerId) -> None:
        """One stream after the other, until the peer has failed too often in a row."""
        loop = asyncio.get_running_loop()
        failures = 0
        while failures < MAX_FAILURES and not self._strikes.excluded(peer):
            started, groups, reason = loop.time(), 0, ""
            try:
                async for _ in self._pull(stack, peer):
                    groups += 1
            except WireError as error:
                reason = str(error)
                self._strikes.add(peer)
            except NetworkError as error:
                reason = str(error)
            # One exchange with one peer: whatever it managed to break, it is its own stream.
            except Exception as error:
                reason = repr(error)
                logger.exception("following %s", peer)
            if groups or not (reason or loop.time() - started < SHORT_STREAM_S):
                failures = 0
            else:
                failures += 1
                logger.debug("%s: failure %d: %s", peer, failures, reason or "it had nothing to say")
            delay = min(FIRST_RETRY_S * 2**failures, LAST_RETRY_S) if failures else FIRST_RETRY_S / 10
            await asyncio.sleep(delay * self._rng.uniform(0.5, 1.5))
        self._strikes.rest(peer, REST_S)

    async def _pull(self, stack: Stack, peer: PeerId) -> AsyncIterator[Pulled]:
        """One stream: yields each group once it is in the queue. Raises NetworkError, WireError."""
        epoch, cursor = self._positions.get(peer) or self._cursors.cursor(peer)
        announcement = self._table.get(peer)
        await stack.connect(peer, announcement.addresses if announcement is not None else ())
        reader, writer = await stack.open_stream(peer, PULL)
        try:
            request = Pull(
                swarm=self._membership.swarm,
                epoch=epoch,
                cursor=cursor,
                max_groups=GROUPS_PER_STREAM,
                membership=self._membership.proof(self._me),
            )
            async with aclosing(pull(reader, writer, request, self._limits)) as responses:
                async for epoch, entry in responses:
                    received = Received(sender=peer, body=entry.body, signature=entry.signature)
                    pulled = Pulled(received=received, epoch=epoch, cursor=entry.cursor)
                    await self.queue.put(pulled)
                    self._advance(peer, epoch, entry.cursor)
                    self._table.heard(peer)
                    yield pulled
        finally:
            writer.close()

    def _advance(self, peer: PeerId, epoch: bytes, cursor: int) -> None:
        self._positions[peer] = (epoch, cursor)
        self._positions.move_to_end(peer)
        if len(self._positions) > MAX_PEERS:
            self._positions.popitem(last=False)
