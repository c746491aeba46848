"""Time that does not pass as it should, with clocks that are set by hand."""

from __future__ import annotations

import pytest

from node.clock import TICK_S, ClockWatch

DAY_S = 86_400.0


class Clocks:
    def __init__(self) -> None:
        self.monotonic, self.wall = 100.0, 1_800_000_000.0
        self.warnings: list[str] = []
        self.refreshed = 0
        self.watch = ClockWatch(
            warn=self.warnings.append,
            refresh=self.refresh,
            wall_clock=lambda: self.wall,
            clock=lambda: self.monotonic,
        )

    def refresh(self) -> None:
        self.refreshed += 1

    def passed(self, monotonic_s: float, wall_s: float) -> None:
        self.monotonic += monotonic_s
        self.wall += wall_s
        self.watch.look()


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_time_that_passes_as_it_should_is_nobodys_business(clocks: Clocks) -> None:
    for late in (0.0, 0.3, 4.0, 0.0):
        clocks.passed(TICK_S + late, TICK_S + late + 0.5)
    assert (clocks.warnings, clocks.refreshed) == ([], 0)


def test_a_process_that_was_stopped_says_for_how_long(clocks: Clocks) -> None:
    clocks.passed(TICK_S + 300.0, TICK_S + 300.0)
    assert clocks.warnings == ["the node stood still for 300 s: the process was stopped, or the machine slept"]
    assert clocks.refreshed == 1


@pytest.mark.parametrize(("jump", "said"), [(DAY_S, "+86400"), (-DAY_S, "-86400"), (7.0, "+7")])
def test_a_clock_that_jumps_is_named(clocks: Clocks, jump: float, said: str) -> None:
    clocks.passed(TICK_S, TICK_S + jump)
    clocks.passed(TICK_S, TICK_S)
    (warning,) = clocks.warnings
    assert warning.startswith(f"the clock jumped by {said} s: ")
    assert clocks.refreshed == 1


def test_a_machine_that_slept_is_a_jump(clocks: Clocks) -> None:
    """The monotonic clock stands still meanwhile."""
    clocks.passed(TICK_S, TICK_S + 3600.0)
    assert len(clocks.warnings) == clocks.refreshed == 1
