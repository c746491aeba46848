"""One stream after the other, and how far behind a log's head its reader stays."""

from __future__ import annotations

import random

import pytest

from swarm.net.following import (
    FIRST_FAILURES,
    FIRST_RETRY_S,
    LAST_RETRY_S,
    MAX_FAILURES,
    SHORT_STREAM_S,
    Attempts,
    backlog,
)
from swarm.net.streams import CATCH_UP


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
