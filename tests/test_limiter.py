"""How many streams peers may open: pure, by a clock of its own."""

from __future__ import annotations

from swarm.net.limiter import FORGIVEN_S, MAX_PEERS, MAX_SERVED, PATIENCE, STREAMS_PER_S, Answer, StreamLimiter
from swarm.types import PeerId

A, B = PeerId("a"), PeerId("b")
BURST = int(STREAMS_PER_S)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answers(limiter: StreamLimiter, peer: PeerId, count: int, served: int = 0) -> list[Answer]:
    return [limiter.ask(peer, served) for _ in range(count)]


def test_a_peer_may_open_so_many_at_once_and_then_so_many_a_second() -> None:
    clock = Clock()
    limiter = StreamLimiter(clock)
    assert answers(limiter, A, BURST + 1) == [Answer.SERVE] * BURST + [Answer.REFUSE]
    assert answers(limiter, B, 1) == [Answer.SERVE], "what others do is their own affair"
    clock.now = 0.5
    assert answers(limiter, A, BURST) == [Answer.SERVE] * (BURST // 2) + [Answer.REFUSE] * (BURST // 2)


def test_whoever_goes_on_is_hung_up_on_and_may_come_back() -> None:
    clock = Clock()
    limiter = StreamLimiter(clock)
    answers(limiter, A, BURST)
    assert answers(limiter, A, PATIENCE) == [Answer.REFUSE] * (PATIENCE - 1) + [Answer.HANG_UP]
    assert answers(limiter, A, PATIENCE)[-1] is Answer.HANG_UP
    clock.now = 1.0
    assert answers(limiter, A, 1) == [Answer.SERVE]


def test_a_flood_that_is_served_now_and_then_is_one_all_the_same() -> None:
    clock, got = Clock(), list[Answer]()
    limiter = StreamLimiter(clock)
    while Answer.HANG_UP not in got:
        got += answers(limiter, A, 2 * BURST)
        clock.now += 1.0
    assert got.count(Answer.REFUSE) == PATIENCE - 1
    assert clock.now == PATIENCE / BURST


def test_refusals_are_forgiven() -> None:
    clock = Clock()
    limiter = StreamLimiter(clock)
    for _ in range(3):
        assert Answer.HANG_UP not in answers(limiter, A, BURST + PATIENCE - 1)
        clock.now += FORGIVEN_S


def test_all_together_may_have_so_many() -> None:
    limiter = StreamLimiter(Clock())
    assert answers(limiter, A, 1, served=MAX_SERVED) == [Answer.REFUSE]
    assert answers(limiter, A, 1, served=MAX_SERVED - 1) == [Answer.SERVE]


def test_callers_are_forgotten() -> None:
    limiter = StreamLimiter(Clock())
    answers(limiter, A, BURST)
    for number in range(MAX_PEERS):
        answers(limiter, PeerId(str(number)), 1)
    assert len(limiter._callers) == MAX_PEERS
    assert answers(limiter, A, 1) == [Answer.SERVE]
