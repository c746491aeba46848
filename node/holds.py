"""What keeps a node from going on, each by name and with a reason that an operator can read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Holds:
    """Open as long as nobody holds it. Every holder has a name of its own and lets go only of what it holds itself."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}  # by holder, the oldest first
        self._open = asyncio.Event()
        self._open.set()

    @property
    def open(self) -> bool:
        return not self._reasons

    @property
    def reasons(self) -> Sequence[str]:
        """The oldest first."""
        return list(self._reasons.values())

    async def wait(self) -> None:
        """Returns once nobody holds it."""
        await self._open.wait()

    def hold(self, holder: str, why: str) -> None:
        """`why` replaces what `holder` said before."""
        self._reasons[holder] = why
        self._open.clear()

    def release(self, holder: str) -> None:
        """Nothing, if `holder` does not hold it."""
        self._reasons.pop(holder, None)
        if not self._reasons:
            self._open.set()
