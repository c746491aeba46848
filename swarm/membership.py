"""Who is in a swarm. An open one admits everybody; a closed one those on its list, and those who hold its key.

The key itself is never sent. A member shows HMAC-SHA256(key, domain + swarm id + peer id): whoever sees that learns
nothing that helps another peer, because it is bound to a peer id, and that to an ed25519 key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from swarm.errors import ConfigError
from swarm.types import PeerId

PROOF_BYTES = 32
DOMAIN = b"swarm/v1/member\0"
KEY_DOMAIN = b"swarm/v1/key\0"
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 4096
"""The digest of a key is public, and so are proofs of it: a short one could be guessed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Of the swarm `swarm`, as one node can judge it. With a list and a key, a member needs both."""

    swarm: str
    """The swarm's id."""
    key: bytes | None = field(default=None, repr=False)
    """Shared in advance by all members; None where none is asked for."""
    allow: frozenset[PeerId] | None = None
    """All members; None where everybody may join."""

    def proof(self, peer: PeerId) -> bytes:
        """What `peer` shows of the key; empty where none is asked for."""
        if self.key is None:
            return b""
        return hmac.digest(self.key, DOMAIN + f"{self.swarm}\0{peer}".encode(), hashlib.sha256)

    def complaint(self, swarm: str, peer: PeerId, proof: bytes) -> str | None:
        """Why `peer`, who says that it is in `swarm` and shows `proof`, is none of us; None if it is."""
        if swarm != self.swarm:
            return f"of swarm {swarm}: ours is {self.swarm}"
        if self.allow is not None and peer not in self.allow:
            return f"{peer} is not on the swarm's list"
        if self.key is not None and not hmac.compare_digest(proof, self.proof(peer)):
            return f"{peer} does not show the swarm's key"
        return None


def read_key(path: Path) -> bytes:
    """A swarm's key as a file has it, without white space around it. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            key = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"key file {path}: cannot be read: {error.strerror}") from error
    if len(key) > MAX_KEY_BYTES:
        raise ConfigError(f"key file {path}: has more than {MAX_KEY_BYTES} bytes")
    if len(key.strip()) < MIN_KEY_BYTES:
        raise ConfigError(
            f"key file {path}: has a key of {len(key.strip())} bytes; it must be at least {MIN_KEY_BYTES}"
        )
    return key.strip()


def key_digest(name: str, key: bytes) -> str:
    """What a swarm file may say of its key: 64 hex digits, other ones for the same key in a swarm of another name."""
    return hashlib.sha256(KEY_DOMAIN + f"{name}\0".encode() + key).hexdigest()
