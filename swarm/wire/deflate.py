"""One direction of a stream, compressed: each message by itself to be read, with all earlier ones as its dictionary.

A packed frame is a zero byte, the message's length (4 bytes, big-endian) and DEFLATE data (RFC 1951) up to a flush, of
which the four bytes that are always the same are left out (as RFC 7692, 7.2.1, does). No protobuf message begins with a
zero byte, so whoever can unpack frames tells packed ones from plain ones, which older peers send. An empty frame is
never packed.

What is signed and hashed is what was packed: compression ends with the stream, and a group is passed on as it was.

A small frame can stand for a large message. What is said to be too large is refused before anything is inflated, and
nothing is inflated beyond what was said.
"""

from __future__ import annotations

import zlib

from swarm.errors import LimitError, WireError

LEVEL = 2
"""Of zlib: 6 saves another 6 % and takes twice as long (docs/benchmarks.md)."""
MARK = b"\0"
_LENGTH_BYTES = 4
_HEADER_BYTES = len(MARK) + _LENGTH_BYTES
_FLUSHED = b"\x00\x00\xff\xff"
_RAW = -zlib.MAX_WBITS


def largest_frame(message_bytes: int) -> int:
    """Bytes that a packed message of `message_bytes` may have: where nothing can be saved, DEFLATE stores it."""
    return message_bytes + message_bytes // 1024 + 64


class Deflater:
    """Packs messages; the other end has an `Inflater` and gets all of them, in this order. About 256 kB."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(LEVEL, zlib.DEFLATED, _RAW)

    def pack(self, message: bytes) -> bytes:
        """A frame; `message` is not empty."""
        data = self._stream.compress(message) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        return MARK + len(message).to_bytes(_LENGTH_BYTES, "big") + data[: -len(_FLUSHED)]


class Inflater:
    """Unpacks frames of one stream. After an error it is of no use any more. About 40 kB."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_RAW)

    def unpack(self, frame: bytes, limit: int) -> bytes:
        """The message, of at most `limit` bytes; a frame that is not packed as it is.

        Raises LimitError for one that says that it is larger, WireError for what is not DEFLATE or not of the length
        that it says."""
        if not frame.startswith(MARK):
            return frame
        length = int.from_bytes(frame[len(MARK) : _HEADER_BYTES], "big")
        if length > limit:
            raise LimitError(f"a message of {length} bytes, packed in {len(frame)}: must be at most {limit}")
        try:
            # One byte more than was said, so that what goes on is noticed; it also asks for the end of what is exact.
            message = self._stream.decompress(frame[_HEADER_BYTES:] + _FLUSHED, length + 1)
        except zlib.error as error:
            raise WireError(f"{len(frame)} bytes are no packed message: {error}") from error
        if not message or len(message) != length or self._stream.eof or self._stream.unconsumed_tail:
            raise WireError(f"packed bytes that are not a message of {length} bytes")
        return message
