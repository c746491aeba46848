"""Room for the next checkpoint, kept free of everything else.

Of a disk that fills up (by our journal, or by whatever else is there) the last part is the checkpoint's: before it is
touched, journalling is held, own groups and strangers', and with it sampling, whose groups then wait for the journal.
Learning goes on with what it has, checkpoints are written, and everything goes on by itself when there is room again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from node.config import DiskConfig
from node.holds import Holds

log = logging.getLogger(__name__)

MIB = 1 << 20
HOLDER = "disk"


class Usage(Protocol):
    @property
    def free(self) -> int:
        """Bytes that we may still write."""
        ...


class DiskWatch:
    """Holds `room` while there is no more free than the reserve."""

    def __init__(
        self,
        config: DiskConfig,
        directory: Path,
        room: Holds,
        checkpoint_bytes: Callable[[], int],
        warn: Callable[[str], None],
        usage: Callable[[Path], Usage] = shutil.disk_usage,
    ) -> None:
        """`directory`: the node's, which exists. `checkpoint_bytes`: what the next checkpoint will need, about. Both it
        and `usage` are called in a thread."""
        self._config = config
        self._directory = directory
        self._checkpoint_bytes = checkpoint_bytes
        self._warn = warn
        self._usage = usage
        self._free = self._reserve = 0
        self.room = room

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._config.check_s)

    async def look(self) -> None:
        try:
            self._free, self._reserve = await asyncio.to_thread(self._measure)
        except OSError as error:
            self._warn(f"disk: free space of {self._directory} cannot be told: {error.strerror}")
            return
        was_open = self.room.open
        if self._free < self._reserve:
            why = self._why()
            self.room.hold(HOLDER, why)
            if was_open:
                log.warning(why)
                self._warn("disk: nearly full; sampling and journalling were held for the checkpoint's sake")
        elif self._free >= self._reserve * (1.0 + self._config.clearance) and not was_open:
            self.room.release(HOLDER)
            log.info("disk: there is room again (%d MiB free); sampling and journalling go on", self._free // MIB)

    def gauges(self) -> dict[str, float]:
        return {"disk_free_mib": self._free / MIB, "disk_reserve_mib": self._reserve / MIB}

    def _why(self) -> str:
        return (
            f"disk: {self._free // MIB} MiB are free where {self._directory} is, and the last"
            f" {self._reserve // MIB} MiB are kept for checkpoints: no sampling and no journalling until there is room"
            " (make some, or lower journal.max_groups)"
        )

    def _measure(self) -> tuple[int, int]:
        """Free bytes, and how many are to stay free."""
        reserve = self._config.checkpoints * self._checkpoint_bytes() + self._config.margin_mib * MIB
        return self._usage(self._directory).free, int(reserve)


def next_checkpoint(checkpoints: Path, parameters: int) -> int:
    """Bytes that the next one needs: those of the largest there is, or of `parameters` that are trained, each with its
    two moments (AdamW) in float32."""
    return max(largest_checkpoint(checkpoints), 12 * parameters)


def largest_checkpoint(checkpoints: Path) -> int:
    """Bytes of the largest that is in the directory, one that is being written included; 0 if there is none."""
    return max((size_of(place) for place in checkpoints.glob("*") if place.is_dir()), default=0)


def size_of(directory: Path) -> int:
    """Bytes of all files under it; of one that goes meanwhile, 0."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
