"""Who a node is: one ed25519 key, which is its libp2p identity and what it signs with.

A peer id contains the public key, so a signature is checked with nothing but the name of its author.

The key file is libp2p's own format, a protobuf message of two fields, so that the libp2p daemon reads the same file:

    PrivateKey { KeyType type = 1; bytes data = 2; }    type Ed25519 = 1; data = 32 bytes seed + 32 bytes public key
    PublicKey  { KeyType type = 1; bytes data = 2; }    data = 32 bytes

A peer id is the base58 of the identity multihash of the PublicKey message: 0x00, length, message ("12D3KooW...").
(libp2p specs, peer-ids/peer-ids.md)
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarm.errors import ConfigError, SignatureMismatch, WireError
from swarm.types import PeerId

#: What a signature is for goes into it, so that none can be used for anything else.
GROUP_DOMAIN = b"swarm/v1/group\0"
ANNOUNCEMENT_DOMAIN = b"swarm/v1/announcement\0"

_SEED_BYTES = _PUBLIC_BYTES = 32
_PRIVATE_HEADER = bytes([0x08, 1, 0x12, _SEED_BYTES + _PUBLIC_BYTES])
_PUBLIC_HEADER = bytes([0x08, 1, 0x12, _PUBLIC_BYTES])
_MULTIHASH_HEADER = bytes([0x00, len(_PUBLIC_HEADER) + _PUBLIC_BYTES])
_PEER_ID_CHARS = 52


class Identity:
    """An ed25519 key pair. Equal files make equal identities."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: the 32 secret bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes_raw()
        encoded = base58.b58encode(_MULTIHASH_HEADER + _PUBLIC_HEADER + self._public)
        self.peer_id = PeerId(encoded.decode("ascii"))

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """The identity in `path`; a new one is made there (mode 0600) if there is no file.

        Raises ConfigError when there is a file that cannot be read or is not a key: it is never written over.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            identity = cls(secrets.token_bytes(_SEED_BYTES))
            identity._save(path)
            return identity
        except OSError as error:
            raise ConfigError(f"identity {path}: cannot be read ({error.strerror}); make it readable") from error
        seed = data[len(_PRIVATE_HEADER) : len(_PRIVATE_HEADER) + _SEED_BYTES]
        if not data.startswith(_PRIVATE_HEADER) or len(seed) != _SEED_BYTES or cls(seed)._serialised() != data:
            raise ConfigError(
                f"identity {path}: {len(data)} bytes that are not a libp2p ed25519 private key; restore the file, "
                "or move it away to start as a new peer"
            )
        return cls(seed)

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """The 64 byte ed25519 signature of `domain + body`."""
        return self._key.sign(domain + body)

    def _serialised(self) -> bytes:
        return _PRIVATE_HEADER + self._key.private_bytes_raw() + self._public

    def _save(self, path: Path) -> None:
        """Written aside and renamed: a crash leaves either no key or a whole one."""
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(self._serialised())
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(path)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"identity {path}: cannot be written ({error.strerror})") from error


def public_key(peer: PeerId) -> bytes:
    """The 32 byte ed25519 key that a peer id contains. Raises WireError for all but canonical ed25519 peer ids."""
    if len(peer) == _PEER_ID_CHARS and peer.isascii():
        try:
            multihash = base58.b58decode(peer)
        except ValueError:
            multihash = b""
        header = _MULTIHASH_HEADER + _PUBLIC_HEADER
        # The way back is compared because b58decode forgives, and one key must have one name.
        if multihash.startswith(header) and base58.b58encode(multihash).decode("ascii") == peer:
            return multihash[len(header) :]
    raise WireError(f"peer id {peer[:64]!r} is not that of an ed25519 key (12D3KooW...)")


def check_signature(peer: PeerId, domain: bytes, body: bytes, signature: bytes) -> None:
    """Returns if `peer` signed `domain + body`; raises SignatureMismatch if not, WireError if `peer` is no peer id."""
    key = Ed25519PublicKey.from_public_bytes(public_key(peer))
    try:
        key.verify(signature, domain + body)
    except InvalidSignature as error:
        raise SignatureMismatch(f"{len(signature)} byte signature is not by {peer}") from error
