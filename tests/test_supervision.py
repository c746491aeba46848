"""Parts that fail: how often, how long they wait, and when it is enough. With clocks that are set by hand."""

from __future__ import annotations

import logging
import random
from collections import Counter

import pytest

from node.supervision import Part, Parts, SupervisionConfig, unsupervised
from swarm.errors import ConfigError, CrashLoop, EngineError, NetworkError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Longest(random.Random):
    """Always the upper end."""

    def uniform(self, a: float, b: float) -> float:
        return b


def part_of(clock: Clock, *, outages: tuple[type[Exception], ...] = (), **settings: float) -> Part:
    config = SupervisionConfig.model_validate({"max_restarts": 3, "window_s": 100.0} | settings)
    return Part("engine", config, clock=clock, rng=Longest(), outages=outages)


def test_pauses_double_up_to_the_longest_and_are_shortened_by_chance() -> None:
    part = part_of(Clock(), max_restarts=6, first_pause_s=2.0, longest_pause_s=20.0)
    assert [part.failed(EngineError("lost")) for _ in range(6)] == [2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    jittered = [
        Part("engine", SupervisionConfig(), rng=random.Random(seed)).failed(EngineError("lost")) for seed in range(100)
    ]
    assert all(0.5 <= pause <= 1.0 for pause in jittered)
    assert max(jittered) - min(jittered) > 0.3, "nodes that fail together do not come back together"


def test_one_failure_more_than_allowed_within_the_window_is_a_crash_loop() -> None:
    clock = Clock()
    part = part_of(clock)
    for _ in range(3):
        part.failed(ValueError("odd"))
    sentence = r"^the engine failed 4 times within 100 s .*: ValueError: odd again$"
    with pytest.raises(CrashLoop, match=sentence) as caught:
        part.failed(ValueError("odd\nagain"))
    assert isinstance(caught.value.__cause__, ValueError)
    assert (part.state, part.restarts, part.recent) == ("given up", 3, 4)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    clock = Clock()
    part = part_of(clock, first_pause_s=1.0)
    for _ in range(50):
        assert part.failed(EngineError("lost")) == 1.0
        clock.now += 101.0
    assert (part.restarts, part.recent, part.last_error, part.last_error_s) == (50, 0, "lost", 101.0)


def test_outages_are_survived_for_ever_and_bugs_are_not() -> None:
    part = part_of(Clock(), outages=(OSError,), longest_pause_s=60.0)
    assert [part.failed(NetworkError("down")) for _ in range(40)][-1] == 60.0
    with pytest.raises(CrashLoop):
        part.failed(ZeroDivisionError())


@pytest.mark.parametrize("error", [ConfigError("wrong"), CrashLoop("another part's")])
def test_what_no_restart_can_help_is_raised_as_it_is(error: Exception) -> None:
    part = part_of(Clock())
    with pytest.raises(type(error)) as caught:
        part.failed(error)
    assert caught.value is error
    assert part.restarts == 0


async def test_keep_calls_again_until_it_returns() -> None:
    part, lives, seen = part_of(Clock(), first_pause_s=0.0), iter([ValueError("a"), MemoryError(), None]), []

    async def live() -> str:
        seen.append(part.state)
        if (error := next(lives)) is not None:
            raise error
        return "done"

    assert await part.keep(live) == "done"
    assert seen == ["up", "up", "up"]
    assert (part.restarts, part.last_error) == (2, "MemoryError")


async def test_keep_gives_up() -> None:
    calls = 0

    async def live() -> None:
        nonlocal calls
        calls += 1
        raise ValueError("always")

    with pytest.raises(CrashLoop, match="always"):
        await part_of(Clock(), first_pause_s=0.0).keep(live)
    assert calls == 4


def test_restarts_are_counted_said_and_logged_with_their_traceback(caplog: pytest.LogCaptureFixture) -> None:
    counters, warnings = Counter[str](), list[str]()
    parts = Parts.of(SupervisionConfig(), counters, warnings.append)
    with caplog.at_level(logging.WARNING):
        parts.learner.failed(ValueError("odd"))
        parts.network.failed(NetworkError("down"))
    assert counters == {"learner_restarts": 1, "network_restarts": 1}
    assert warnings == ["the learner is started again: ValueError: odd", "the network is started again: down"]
    bug, outage = caplog.records
    assert bug.exc_info is not None
    assert not outage.exc_info, "that the network is down is no bug"
    assert [part.name for part in parts] == ["learner", "engine", "network"]


def test_without_supervision_the_first_failure_is_the_last() -> None:
    with pytest.raises(CrashLoop):
        unsupervised("engine").failed(EngineError("lost"))
