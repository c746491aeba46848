"""What a node remembers of the network between two lives: its own ports, and where others were last reached."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from pathlib import Path

from swarm.errors import WireError
from swarm.net.addresses import peer_of
from swarm.types import PeerId

MAX_ADDRESSES = 64
MAX_FILE_BYTES = 1 << 20
logger = logging.getLogger(__name__)


class AddressBook:
    """A small JSON file: {"ports": {"/ip4/0.0.0.0/tcp/0": 41234}, "peers": ["/ip4/.../p2p/12D3KooW..."]}.

    Only a convenience: it is bounded, replaced whole, and one that is missing or damaged is an empty one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ports: dict[str, int] = {}
        self._peers: OrderedDict[str, None] = OrderedDict()
        self._saved = True
        self._load()

    def port(self, listen: str) -> int:
        """That was chosen for this address the last time; 0 for none."""
        return self._ports.get(listen, 0)

    def keep_port(self, listen: str, port: int) -> None:
        self._saved = self._saved and self._ports.get(listen) == port
        self._ports[listen] = port

    @property
    def peers(self) -> list[str]:
        """Addresses with peer ids, the latest seen first."""
        return list(reversed(self._peers))

    def remember(self, address: str, peer: PeerId) -> None:
        """`peer` was alive and says that it is here. Raises WireError if the address is none, or another's."""
        if peer_of(address) != peer:
            raise WireError(f"{address!r} is not an address of {peer}")
        self._saved = self._saved and address in self._peers
        self._peers[address] = None
        self._peers.move_to_end(address)
        while len(self._peers) > MAX_ADDRESSES:
            self._peers.popitem(last=False)

    def save(self) -> None:
        """If there is anything new. Never raises: a full disk costs the memory, not the node."""
        if self._saved:
            return
        aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            aside.write_text(json.dumps({"ports": self._ports, "peers": list(self._peers)}, indent=1) + "\n")
            aside.replace(self._path)
            self._saved = True
        except OSError as error:
            logger.warning("%s: addresses were not saved: %s", self._path, error)

    def _load(self) -> None:
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError("too large")
            content = json.loads(self._path.read_text())
            self._ports = {str(key): int(port) for key, port in content["ports"].items() if 0 < int(port) < 65536}
            for address in content["peers"][-MAX_ADDRESSES:]:
                self.remember(address, peer_of(address))
            self._saved = True
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, WireError) as error:
            logger.warning("%s: not read: %s", self._path, error)
