"""Groups that were not signed by whom they say: by nobody, by another key, for another body, in another's name."""

from __future__ import annotations

from dataclasses import replace

from swarm.types import SignedGroup
from swarm.wire.identity import ANNOUNCEMENT_DOMAIN, Identity
from tests.adversaries.made import by_another, made, raw


def wrong(author: Identity, count: int = 12) -> list[SignedGroup]:
    """Its own groups: signed with another key, with another group's signature, for another purpose, with nothing."""
    another = Identity(bytes(range(32)))
    groups = list[SignedGroup]()
    for index in range(0, count, 4):
        good = [made(author, index + i) for i in range(4)]
        groups += [
            by_another(author, another, index),
            replace(good[1], signature=good[2].signature),
            raw(good[2].body, author.sign(ANNOUNCEMENT_DOMAIN, good[2].body)),
            raw(good[3].body, b""),
        ]
    return groups


def in_the_name_of(victim: Identity, author: Identity, count: int = 12) -> list[SignedGroup]:
    """Bad groups that another peer is to be blamed for."""
    return [by_another(victim, author, 500 + index) for index in range(count)]
