"""What systemd, or another that speaks sd_notify(3), is told: that the node is up, what it does, that it still lives.

The watchdog is fed only while the event loop turns (this runs on it) and no part is stuck. Without NOTIFY_SOCKET in the
environment nothing is told, and the parts are watched all the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

from node.stopping import Ending

LOOK_S = 1.0
"""How often the parts are looked at."""

log = logging.getLogger(__name__)


class ServiceManager:
    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = environment.get("NOTIFY_SOCKET", "")
        micros = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(micros) / 1e6 if micros.isdecimal() and ours else 0.0
        """Within which it wants to hear of us; 0 if it does not."""

    def tell(self, **fields: str | int) -> None:
        """READY=1, STATUS=... Never blocks and never fails: a manager that does not listen loses the news."""
        if not self._address:
            return
        message = "\n".join(f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items())
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                notify.connect(address)
                notify.send(message.encode())
        except OSError as error:
            log.debug("NOTIFY_SOCKET: %s", error)

    async def watch(self, stuck: Callable[[], str], status: Callable[[], str], ending: Ending) -> None:
        """Until the node is stopped: looks whether a part is `stuck` (what, in words), and says how it is."""
        pause_s = min(LOOK_S, self.watchdog_s / 3) if self.watchdog_s else LOOK_S
        while not ending.stopping.is_set():
            if what := stuck():
                ending.stuck(what)
                return
            self.tell(WATCHDOG=1, STATUS=status())
            await asyncio.sleep(pause_s)
