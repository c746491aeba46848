"""Shares of time, to the second, on a clock that stands still until it is told to go on."""

from __future__ import annotations

import pytest

from node.time_account import OTHER, PAUSED, PIECES, POOL_FULL, SAMPLING, WEIGHTS, WORKING, TimeAccount, Times


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def account(clock: Clock) -> TimeAccount:
    return TimeAccount(("first", "second", "third"), window_s=60.0, clock=clock)


def test_no_time_has_no_shares(clock: Clock) -> None:
    assert account(clock).shares() == {}


def test_what_has_no_name_is_other(clock: Clock) -> None:
    times = account(clock)
    clock.now += 6.0
    with times.during("second"):
        clock.now += 18.0
        assert times.present == "second"
    clock.now += 6.0
    assert times.present == OTHER
    assert times.shares() == {"second": 0.6, OTHER: 0.4}


def test_what_is_under_way_counts_already(clock: Clock) -> None:
    times = account(clock)
    with times.during("first"):
        clock.now += 5.0
        assert times.shares() == {"first": 1.0}


def test_of_several_the_first_one_counts(clock: Clock) -> None:
    times = account(clock)
    with times.during("second"), times.during("third"):
        clock.now += 4.0
        with times.during("first"), times.during("second"):
            clock.now += 5.0
        clock.now += 1.0
    assert times.shares() == {"first": 0.5, "second": 0.5}


def test_an_activity_lasts_as_long_as_anybody_is_at_it(clock: Clock) -> None:
    times = account(clock)
    one, other = times.during("second"), times.during("second")
    one.__enter__()
    clock.now += 1.0
    other.__enter__()
    clock.now += 1.0
    one.__exit__(None, None, None)
    clock.now += 2.0
    other.__exit__(None, None, None)
    clock.now += 4.0
    assert times.shares() == {"second": 0.5, OTHER: 0.5}


def test_an_error_ends_an_activity(clock: Clock) -> None:
    times = account(clock)
    with pytest.raises(RuntimeError), times.during("first"):
        raise RuntimeError
    assert times.present == OTHER


def test_time_falls_out_of_the_window_piece_by_piece(clock: Clock) -> None:
    times = account(clock)
    with times.during("first"):
        clock.now += 30.0
    with times.during("second"):
        clock.now += 30.0
        assert times.shares() == {"first": 0.5, "second": 0.5}
        clock.now += 15.0
        assert times.shares() == {"first": 0.25, "second": 0.75}
        clock.now += 15.0
        assert times.shares() == {"second": 1.0}


def test_a_window_can_begin_anew_in_the_middle_of_an_activity(clock: Clock) -> None:
    times = account(clock)
    clock.now += 7.0
    with times.during("third"):
        clock.now += 2.0
        times.forget()
        assert times.shares() == {}
        clock.now += 2.0
    clock.now += 6.0
    assert times.shares() == {"third": 0.25, OTHER: 0.75}


def test_a_month_without_a_look_is_no_more_than_a_window(clock: Clock) -> None:
    times = account(clock)
    with times.during("first"):
        clock.now += 1.0
    clock.now += 30 * 86400.0
    assert times.shares() == {OTHER: 1.0}
    assert len(times._pieces) == PIECES


def test_an_activity_that_the_account_has_not(clock: Clock) -> None:
    with (
        pytest.raises(ValueError, match="'fourth' is none of first, second, third, other"),
        account(clock).during("fourth"),
    ):
        pass


def test_a_nodes_metrics_name_whose_time_it_is(clock: Clock) -> None:
    times = Times(
        learner=TimeAccount((WORKING, PAUSED), clock=clock),
        generator=TimeAccount((WEIGHTS, SAMPLING, POOL_FULL), clock=clock),
    )
    with times.generator.during(POOL_FULL), times.learner.during(WORKING):
        clock.now += 3.0
    with times.generator.during(SAMPLING):
        clock.now += 1.0
    assert times.metrics() == {
        "learner_working_share": 0.75,
        "learner_other_share": 0.25,
        "generator_sampling_share": 0.25,
        "generator_pool_full_share": 0.75,
    }
