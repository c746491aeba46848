"""Which bytes of a text each token stands for. Pure; knows tokenizers, not transformers.

Byte-level BPE (GPT-2, Qwen, Llama 3) writes every byte as one printable character; metaspace tokenizers (Llama 2,
Gemma, T5) write a space as U+2581 and bytes without a token of their own as "<0xAB>". Both become a table from id to
bytes, made once. For any other decoder a token's bytes are found by decoding prefixes.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

METASPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    table: Mapping[int, bytes]
    """An id that is not in it (models pad their vocabularies) stands for nothing."""
    leading_spaces: int = 0
    """Spaces that the decoder takes off the beginning of a text."""

    fallback: frozenset[int] = frozenset()
    """Ids of a byte each, that the tokenizer writes only where no others will do."""

    def unambiguous(self) -> dict[bytes, int]:
        """Bytes -> the one id that stands for them, or the one that is no fallback."""
        others = {token: piece for token, piece in self.table.items() if piece and token not in self.fallback}
        times = Counter(others.values())
        names = {self.table[token]: token for token in self.fallback if self.table[token] not in times}
        return names | {piece: token for token, piece in others.items() if times[piece] == 1}

    def of(self, ids: Sequence[int]) -> list[bytes]:
        pieces = [self.table.get(token, b"") for token in ids]
        to_strip = self.leading_spaces
        for position, piece in enumerate(pieces):
            spaces = len(piece) - len(piece.lstrip(b" "))
            stripped = min(spaces, to_strip)
            pieces[position] = piece[stripped:]
            to_strip -= stripped
            if to_strip == 0 or pieces[position]:
                break
        return pieces


def token_bytes(tokenizer: Tokenizer) -> TokenBytes | None:
    """The table of a byte-level or metaspace tokenizer, None for any other kind."""
    definition = json.loads(tokenizer.to_str())
    decoder = definition.get("decoder") or {}
    # one decoder or a sequence of them
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    added = {token["id"]: token["content"].encode() for token in definition.get("added_tokens") or []}
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if kinds == ["ByteLevel"]:
        alphabet = byte_alphabet()
        table = {token: _from_alphabet(piece, alphabet) for piece, token in vocabulary.items()}
        return TokenBytes(table=table | added)
    metaspace = kinds == ["Metaspace"]
    if not metaspace and not _is_byte_fallback(steps):
        return None
    fallback = "ByteFallback" in kinds
    table = {token: _from_metaspace(piece, fallback) for piece, token in vocabulary.items()}
    if metaspace:
        stripped = int(steps[0].get("prepend_scheme", "always") != "never")
    else:
        stripped = sum(int(step["start"]) for step in steps if step["type"] == "Strip")
    fallbacks = (token for piece, token in vocabulary.items() if fallback and _BYTE_TOKEN.fullmatch(piece))
    return TokenBytes(table=table | added, leading_spaces=stripped, fallback=frozenset(fallbacks))


def credit_bytes(pieces: Sequence[bytes]) -> tuple[str, np.ndarray]:
    """Text of the concatenated pieces, invalid UTF-8 replaced by U+FFFD, and int32 [T]: how many bytes of that text
    each piece completed. What is incomplete at the end is the last piece's."""
    whole = b"".join(pieces)
    if whole.isascii():  # nearly always, and each piece is whole characters then
        return whole.decode(), np.asarray([len(piece) for piece in pieces], dtype=np.int32)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    last = len(pieces) - 1
    completed = [decoder.decode(piece, final=position == last) for position, piece in enumerate(pieces)]
    return "".join(completed), np.asarray([len(part.encode()) for part in completed], dtype=np.int32)


def credit_by_prefixes(ids: Sequence[int], decode: Callable[[list[int]], str]) -> tuple[str, np.ndarray]:
    """The same for any decoder: a token is credited with what the text of the ids up to it has, beyond what earlier
    ones had, in common with the whole text. Quadratic in the number of tokens."""
    text = decode(list(ids))
    done, credits = 0, np.zeros(len(ids), dtype=np.int32)
    whole = text.encode()
    for position in range(len(ids)):
        is_last = position + 1 == len(ids)
        reached = len(whole) if is_last else _common_prefix(decode(list(ids[: position + 1])), text)
        credits[position] = max(reached - done, 0)
        done = max(done, reached)
    return text, credits


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: a visible Latin-1 character is its own byte, the others follow from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


def _from_alphabet(piece: str, alphabet: Mapping[str, int]) -> bytes:
    if all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    return piece.encode()


def _from_metaspace(piece: str, byte_fallback: bool) -> bytes:
    if byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
        return bytes([int(match[1], 16)])
    return piece.replace(METASPACE, " ").encode()


def _is_byte_fallback(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Exactly: metaspace to space, byte tokens, fuse, and possibly a strip of leading spaces."""
    kinds = [step.get("type") for step in steps]
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or kinds[3:] not in ([], ["Strip"]):
        return False
    if steps[0].get("pattern") != {"String": METASPACE} or steps[0].get("content") != " ":
        return False
    return not kinds[3:] or (steps[3].get("content") == " " and not steps[3].get("stop"))


def _common_prefix(left: str, right: str) -> int:
    """In UTF-8 bytes."""
    length = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return len(left[:length].encode())
