"""Does a certain libp2p peer answer at a certain TCP address? Half a handshake tells: whoever answers signs its key.

Not by the daemon, which says "connected" as soon as there is any connection to that peer, tries every address that it
ever heard of it, and resolves names. Here one socket is opened, to one address, and closed.

    -> multistream-select: "/multistream/1.0.0", "/noise"       (libp2p specs, connections)
    -> e                                                        (libp2p specs, noise: Noise_XX_25519_ChaChaPoly_SHA256)
    <- e, ee, s, es, { identity_key = 1, identity_sig = 2 }     signed: "noise-libp2p-static-key:" + s
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from swarm.errors import SignatureMismatch, WireError
from swarm.net.multiaddr import read_varint
from swarm.types import PeerId
from swarm.wire.identity import check_signature, public_key

STATIC_KEY_DOMAIN = b"noise-libp2p-static-key:"
_NOISE = b"Noise_XX_25519_ChaChaPoly_SHA256"
_OFFERS = (b"\x13/multistream/1.0.0\n", b"\x07/noise\n")
_KEY_BYTES, _TAG_BYTES = 32, 16
_MAX_ANSWER_BYTES = 4096
_ED25519_KEY_HEADER = bytes([0x08, 1, 0x12, _KEY_BYTES])
_LENGTH_DELIMITED = 2


async def answers(host: str, port: int, peer: PeerId, timeout: float) -> bool:
    """Whether `peer` answers at the IP address `host` within `timeout` seconds. Never raises for the network's sake."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                await _prove(peer, reader, writer)
            finally:
                writer.transport.abort()
    except (OSError, EOFError, ValueError, InvalidTag, SignatureMismatch):  # A WireError and a TimeoutError are two.
        return False
    return True


async def _prove(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Returns if it is `peer` that is at the other end."""
    writer.write(b"".join(_OFFERS))
    for offer in _OFFERS:
        if await reader.readexactly(len(offer)) != offer:
            raise WireError("no libp2p peer with Noise")
    key = X25519PrivateKey.generate()
    ephemeral = key.public_key().public_bytes_raw()
    writer.write(len(ephemeral).to_bytes(2, "big") + ephemeral)
    size = int.from_bytes(await reader.readexactly(2), "big")
    if not 2 * _KEY_BYTES + 2 * _TAG_BYTES < size <= _MAX_ANSWER_BYTES:
        raise WireError(f"a Noise message of {size} bytes")
    static_key, payload = _open(key, await reader.readexactly(size))
    fields = _fields(payload)
    if fields.get(1) != _ED25519_KEY_HEADER + public_key(peer):
        raise WireError("another peer")
    check_signature(peer, STATIC_KEY_DOMAIN, static_key, fields.get(2, b""))


def _open(key: X25519PrivateKey, message: bytes) -> tuple[bytes, bytes]:
    """The responder's static key and payload, from its message. Raises ValueError, InvalidTag."""
    digest = chain = _NOISE  # Exactly a hash's length: it stands for itself.
    digest = _sha256(digest)  # The prologue, which is empty.
    digest = _sha256(digest, key.public_key().public_bytes_raw())
    digest = _sha256(digest)  # The first message's payload, empty as well.
    theirs, sealed_key, sealed = message[:32], message[32:80], message[80:]
    digest = _sha256(digest, theirs)
    chain, secret = _derive(chain, key.exchange(X25519PublicKey.from_public_bytes(theirs)))
    static_key = ChaCha20Poly1305(secret).decrypt(bytes(12), sealed_key, digest)
    digest = _sha256(digest, sealed_key)
    chain, secret = _derive(chain, key.exchange(X25519PublicKey.from_public_bytes(static_key)))
    return static_key, ChaCha20Poly1305(secret).decrypt(bytes(12), sealed, digest)


def _sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _derive(chain: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Noise's HKDF with two outputs: the next chaining key, and a key."""
    extracted = hmac.digest(chain, secret, "sha256")
    first = hmac.digest(extracted, b"\x01", "sha256")
    return first, hmac.digest(extracted, first + b"\x02", "sha256")


def _fields(payload: bytes) -> dict[int, bytes]:
    """Number -> value of a protobuf message all of whose fields are bytes. Raises WireError."""
    fields, at = {}, 0
    while at < len(payload):
        tag, at = read_varint(payload, at)
        size, at = read_varint(payload, at)
        if tag & 7 != _LENGTH_DELIMITED or at + size > len(payload):
            raise WireError("not a Noise handshake payload")
        fields[tag >> 3] = payload[at : at + size]
        at += size
    return fields
