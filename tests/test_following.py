"""One stream after the other, and how far behind a log's head its reader stays."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from swarm.errors import NetworkError
from swarm.limits import Limits
from swarm.net import virtual_time
from swarm.net.following import (
    FIRST_FAILURES,
    FIRST_RETRY_S,
    LAST_RETRY_S,
    MAX_FAILURES,
    SHORT_STREAM_S,
    Attempts,
    Following,
    backlog,
)
from swarm.net.peertable import PeerTable
from swarm.net.rates import Meter, Rate, Shares
from swarm.net.relay import Rules, Wishes
from swarm.net.relay_reader import RelayReader
from swarm.net.relaying import RELAY
from swarm.net.selection import Uses
from swarm.net.standing import Standing
from swarm.net.streams import CATCH_UP
from swarm.types import GroupId, PeerId
from tests.builders import MEMBERSHIP, NOW, announcement, identity

ME = identity(1).peer_id


class Middle(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_failures_are_followed_by_longer_and_longer_pauses() -> None:
    attempts = Attempts(Middle(), was_there=True)
    pauses = [attempts.ended(0, 0.0, broken=True) for _ in range(8)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, *[LAST_RETRY_S] * 3]
    assert attempts.ended(1, 0.0, broken=True) == FIRST_RETRY_S / 10
    assert attempts.ended(0, SHORT_STREAM_S / 2, broken=False) == pytest.approx(1.0 - SHORT_STREAM_S / 2)


def test_a_pause_is_between_two_attempts_and_not_after_a_stream_that_lasted() -> None:
    attempts = Attempts(Middle(), was_there=True)
    assert attempts.ended(0, 0.75, broken=True) == 0.25
    assert attempts.ended(0, 60.0, broken=True) == FIRST_RETRY_S / 10
    assert attempts.failures == 2


def test_one_that_never_was_there_is_given_up_soon() -> None:
    for was_there, patience in ((False, FIRST_FAILURES), (True, MAX_FAILURES)):
        attempts = Attempts(Middle(), was_there=was_there)
        for _ in range(patience):
            assert not attempts.hopeless
            attempts.ended(0, 0.0, broken=True)
        assert attempts.hopeless


@pytest.mark.parametrize(
    ("rate", "logs", "groups"), [(0.45, 8, 1), (8.0, 8, 30), (8.0, 0, 240), (0.0, 8, 1), (1e6, 1, CATCH_UP)]
)
def test_a_reader_stays_behind_by_what_it_wants_in_half_a_minute(rate: float, logs: int, groups: int) -> None:
    assert backlog(rate, logs) == groups


# A peer whose relay starts late ---------------------------------------------------------------------------------------


class SlowToServe:
    """A stack with one peer, whose log is read in peace, and which refuses to relay so many times."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.asked_at = refusals, list[float]()

    async def connect(self, peer: PeerId, addresses: object) -> None:
        pass

    async def value(self, peer: PeerId, valued: bool) -> None:
        pass

    async def open_stream(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, Any]:
        if protocol == RELAY:
            self.asked_at.append(asyncio.get_running_loop().time())
            if len(self.asked_at) <= self.refusals:
                raise NetworkError("protocol not supported")
        return asyncio.StreamReader(), _Writer()


class _Writer:
    """Takes everything, and never complains."""

    transport = SimpleNamespace(abort=lambda: None)

    def write(self, data: bytes) -> None:
        pass

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_relay_that_starts_late_is_tried_again_as_long_as_the_log_is_read() -> None:
    """With two tries, what only it passes on would not come before another review: minutes."""

    async def main() -> list[float]:
        clock = asyncio.get_running_loop().time
        table, standing = PeerTable(ME, 20.0, clock), Standing(clock)
        table.announced(announcement(identity(2)))
        meter = Meter(Shares(Rate(groups=10.0, bytes=1e6), 1.0, 0.0), clock)
        rules = Rules(me=ME, max_hops=6, max_age_s=100.0, max_clock_skew_s=50.0)
        wishes = Wishes(rules, standing.banned)
        rest: Any = {"me": ME, "membership": MEMBERSHIP, "limits": Limits(), "meter": meter}
        relays = RelayReader(**rest, wishes=wishes, known=_nothing, clock=clock, wall=lambda: NOW)
        following = Following(
            **rest,
            follow=8,
            table=table,
            standing=standing,
            cursors=_Cursors(),
            appetite=lambda: 10.0,
            relays=relays,
            uses=Uses(clock),
            worth=tuple,
            rng=Middle(),
        )
        stack: Any = SlowToServe(refusals=FIRST_FAILURES + 2)
        task = asyncio.create_task(following.run(stack))
        await asyncio.sleep(40.0)
        task.cancel()
        await asyncio.wait({task})
        return stack.asked_at

    asked_at = virtual_time.run(main())
    pauses = [later - earlier for earlier, later in pairwise(asked_at)]
    assert pauses == pytest.approx([1.0, 2.0, 4.0, 8.0], abs=0.01)


async def _nothing(id: GroupId) -> bool:
    return False


class _Cursors:
    def cursor(self, peer: PeerId) -> tuple[bytes, int]:
        return b"", 0

    def set_cursor(self, peer: PeerId, epoch: bytes, cursor: int) -> None:
        pass
