"""A journal that ends with the process, for simulated nodes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from node.experience import Judged
from swarm.net.base import LogEntry
from swarm.net.memory import MemoryLog
from swarm.types import GroupId, SignedGroup


class MemoryJournal:
    """Own groups for peers to read, and the ids of the newest `capacity` groups, own and foreign."""

    def __init__(self, capacity: int, epoch: bytes) -> None:
        self._log = MemoryLog(capacity, epoch)
        self._ids: OrderedDict[GroupId, None] = OrderedDict()
        self._capacity = capacity

    @property
    def epoch(self) -> bytes:
        return self._log.epoch

    @property
    def head(self) -> int:
        return self._log.head

    async def read(self, cursor: int, limit: int) -> Sequence[LogEntry]:
        return await self._log.read(cursor, limit)

    async def wait(self, cursor: int) -> int:
        return await self._log.wait(cursor)

    async def keep(self, judged: Judged) -> bool:
        return await self.append(judged.signed, judged.experience.scores, judged.experience.own)

    async def append(self, signed: SignedGroup, rewards: Sequence[float | None], own: bool) -> bool:
        if signed.id in self._ids:
            return False
        self._ids[signed.id] = None
        if len(self._ids) > self._capacity:
            self._ids.popitem(last=False)
        if own:
            self._log.append(signed)
        return True

    async def known(self, id: GroupId) -> bool:
        return id in self._ids
