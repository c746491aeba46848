"""Too many of them: connections of hundreds of identities, streams of one.

A connection is a libp2p one, up to the multiplexer (libp2p specs: connections, noise, yamux), and costs its maker as
little as it can: nothing is ever said on it, and nothing read.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from swarm.errors import NetworkError
from swarm.net.handshake import STATIC_KEY_DOMAIN, _derive, _sha256
from swarm.net.stack import Stack
from swarm.types import PeerId
from swarm.wire.identity import Identity, public_key
from tests.fuzz.mutation import BYTES, Field, encode

HEADER, NOISE, YAMUX = b"\x13/multistream/1.0.0\n", b"\x07/noise\n", b"\x0d/yamux/1.0.0\n"
NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"
ED25519_KEY = bytes([0x08, 1, 0x12, 32])


async def open_streams(stack: Stack, victim: PeerId, protocol: str, streams: int, at_once: int = 64) -> int:
    """Opens so many as fast as they come and leaves them open; returns how many that were before it was hung up on."""
    writers = list[asyncio.StreamWriter]()
    room = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with room:
            with suppress(NetworkError, OSError):
                _, writer = await stack.open_stream(victim, protocol)
                writers.append(writer)

    await asyncio.gather(*(one() for _ in range(streams)))
    for writer in writers:
        writer.transport.abort()
    return len(writers)


async def connect(host: str, port: int, count: int) -> list[asyncio.StreamWriter]:
    """A connection each of `count` identities. Whoever asked aborts them."""
    writers = list[asyncio.StreamWriter]()
    for _ in range(count):
        with suppress(OSError, EOFError):
            async with asyncio.timeout(5):
                writers.append(await _upgraded(host, port))
    return writers


async def _upgraded(host: str, port: int) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(HEADER + NOISE)
    await reader.readexactly(len(HEADER + NOISE))
    us, noise = Identity(secrets.token_bytes(32)), _Noise()
    static = X25519PrivateKey.generate()
    writer.write(_framed(noise.ephemeral.public_key().public_bytes_raw()))
    noise.read_answer(await _frame(reader))
    shown = static.public_key().public_bytes_raw()
    payload = encode(
        [
            Field(1, BYTES, ED25519_KEY + public_key(us.peer_id)),
            Field(2, BYTES, us.sign(STATIC_KEY_DOMAIN, shown)),
        ]
    )
    writer.write(_framed(noise.last_message(static, payload)))
    cipher = ChaCha20Poly1305(_derive(noise.chain, b"")[0])
    writer.write(_framed(cipher.encrypt(bytes(12), HEADER + YAMUX, None)))
    await _frame(reader)
    return writer


@dataclass
class _Noise:
    """The initiator's side of the handshake."""

    ephemeral: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    chain: bytes = NAME
    digest: bytes = NAME
    key: bytes = b""
    theirs: bytes = b""

    def read_answer(self, message: bytes) -> None:
        self.digest = _sha256(self.digest)
        self._mix(self.ephemeral.public_key().public_bytes_raw())
        self._mix(b"")
        self.theirs, sealed, payload = message[:32], message[32:80], message[80:]
        self._mix(self.theirs)
        self._agree(self.ephemeral, self.theirs)
        static = ChaCha20Poly1305(self.key).decrypt(bytes(12), sealed, self.digest)
        self._mix(sealed)
        self._agree(self.ephemeral, static)
        self._mix(payload)

    def last_message(self, static: X25519PrivateKey, payload: bytes) -> bytes:
        first = bytes(4) + (1).to_bytes(8, "little")  # the answer's payload was the key's message 0
        shown = ChaCha20Poly1305(self.key).encrypt(first, static.public_key().public_bytes_raw(), self.digest)
        self._mix(shown)
        self._agree(static, self.theirs)
        sealed = ChaCha20Poly1305(self.key).encrypt(bytes(12), payload, self.digest)
        self._mix(sealed)
        return shown + sealed

    def _mix(self, data: bytes) -> None:
        self.digest = _sha256(self.digest, data)

    def _agree(self, ours: X25519PrivateKey, theirs: bytes) -> None:
        self.chain, self.key = _derive(self.chain, ours.exchange(X25519PublicKey.from_public_bytes(theirs)))


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
