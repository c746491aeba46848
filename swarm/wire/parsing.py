"""Protobuf's own refusals, in our words. Both ways: they are the format's, and raise WireError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from swarm.errors import WireError

MessageT = TypeVar("MessageT", bound=Message)


@contextmanager
def encoding() -> Iterator[None]:
    """Around the making of a message: an integer out of range, a lone surrogate."""
    try:
        yield
    except WireError:
        raise
    except ValueError as error:
        raise WireError(f"cannot be written: {error}") from error


def parse(message: MessageT, data: bytes) -> MessageT:
    """`message`, filled from bytes whose number somebody has bounded."""
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"{len(data)} bytes are no {message.DESCRIPTOR.name}: {error}") from error
    return message
