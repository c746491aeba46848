"""What a single value from outside may be. Each function returns the value, or raises WireError naming it."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from swarm.errors import LimitError, WireError
from swarm.membership import PROOF_BYTES

#: Cursors, seeds and versions are kept in signed 64 bit columns.
MAX_INTEGER = 2**63 - 1
MAX_LABEL_CHARS = 128
MAX_CONFIG_CHARS = 4096
MAX_NAME_CHARS = 64
MAX_ADDRESS_CHARS = 256
EPOCH_BYTES = 16
SIGNATURE_BYTES = 64
MAX_STOP_STRINGS = 8
MAX_STOP_BYTES = 64


def limit(name: str, value: int, largest: int) -> int:
    """`value`, if it is at most `largest`; else LimitError."""
    if value > largest:
        raise LimitError(f"{name} {value}: must be at most {largest}")
    return value


def integer(name: str, value: int) -> int:
    """From 0 to MAX_INTEGER."""
    if value < 0:
        raise WireError(f"{name} {value}: must not be negative")
    return limit(name, value, MAX_INTEGER)


def instant(name: str, value: float) -> float:
    """Unix seconds: finite, not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise WireError(f"{name} {value}: must be finite and not negative")
    return value


def between(name: str, value: float, least: float, largest: float) -> float:
    """From `least` to `largest`; NaN is nowhere."""
    if not least <= value <= largest:
        raise WireError(f"{name} {value}: must be from {least:g} to {largest:g}")
    return value


def label(name: str, value: str, max_chars: int = MAX_LABEL_CHARS) -> str:
    """Text that is shown to people: short, and nothing that a terminal would obey (control characters, escapes,
    direction overrides)."""
    limit(f"{name} characters", len(value), max_chars)
    if not value.isprintable():
        raise WireError(f"{name} {value!a}: must be printable")
    return value


def epoch(value: bytes) -> bytes:
    """Of a log: EPOCH_BYTES bytes."""
    if len(value) != EPOCH_BYTES:
        raise WireError(f"epoch of {len(value)} bytes: must be {EPOCH_BYTES}")
    return value


def proof(value: bytes) -> bytes:
    """Of membership: PROOF_BYTES bytes, or none."""
    if value and len(value) != PROOF_BYTES:
        raise WireError(f"membership of {len(value)} bytes: must be {PROOF_BYTES}, or none")
    return value


def stop_strings(values: Collection[str]) -> tuple[str, ...]:
    """Of sampling parameters: few and short, in UTF-8 bytes; else LimitError."""
    limit("stop strings", len(values), MAX_STOP_STRINGS)
    strings = tuple(values)
    for string in strings:
        limit("stop string bytes", len(string.encode()), MAX_STOP_BYTES)
    return strings


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: what was 0.7 before it travelled as a float32 is 0.7 again."""
    return float(str(np.float32(value)))
