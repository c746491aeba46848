"""What was said before, said again: others' groups as they are, one's own under a new date, old ones, later ones."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.types import SignedGroup
from swarm.wire.identity import Identity
from tests.adversaries.made import made

PROSE = "Count on from one, and on, and on; who counts right says so in the end, and so do I. " * 3


def again(groups: Sequence[SignedGroup], times: int) -> list[SignedGroup]:
    """The same bytes. Signed by their origin, so anybody may pass them on."""
    return [group for _ in range(times) for group in groups]


def redated(author: Identity, count: int) -> list[SignedGroup]:
    """The same two responses to the same task, with another age and so another id."""
    return [made(author, 900, age_s=1.0 + number) for number in range(count)]


def stolen(thief: Identity, index: int) -> SignedGroup:
    """Somebody else's long texts (`prose`), one letter changed, as one's own."""
    return made(thief, index, *(text.replace("Count", "count", 1) for text in prose(index)))


def prose(index: int) -> tuple[str, str]:
    return f"{PROSE}{index}", f"{PROSE}it is not {index}"


def old(author: Identity, count: int) -> list[SignedGroup]:
    """Made in time, an hour ago."""
    return [made(author, index, age_s=3600.0) for index in range(count)]


def from_tomorrow(author: Identity, count: int) -> list[SignedGroup]:
    """Never old, if it were believed."""
    return [made(author, index, age_s=-86_400.0) for index in range(count)]
