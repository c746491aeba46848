"""What a node takes in follows what it trains on."""

import pytest

from node.appetite import FIRST, LEAST, MEMORY, PLENTY, Appetite
from node.experience import Experience
from tests.test_alarms import experience


def batch(own: int, foreign: int) -> list[Experience]:
    return [experience(own=True)] * own + [experience(own=False)] * foreign


def test_three_times_what_a_step_draws_by_the_seconds_that_it_takes():
    appetite = Appetite(8)
    assert appetite.groups_per_s == FIRST
    for _ in range(300):
        appetite.stepped(batch(4, 2), 0.5)
    assert appetite.groups_per_s == pytest.approx(PLENTY * 2 / 0.5)


def test_one_step_moves_it_by_a_tenth():
    appetite = Appetite(8)
    appetite.stepped(batch(4, 8), 1.0)
    appetite.stepped(batch(4, 0), 2.0)
    assert appetite.groups_per_s == pytest.approx(PLENTY * (8 * MEMORY) / (MEMORY + 2 * (1 - MEMORY)))


def test_a_node_that_finds_nothing_goes_on_tasting():
    appetite = Appetite(80)
    for _ in range(300):
        appetite.stepped(batch(4, 0), 1.0)
    assert appetite.groups_per_s == pytest.approx(PLENTY * LEAST * 80)


def test_whoever_learns_from_nobody_takes_nothing():
    assert Appetite(0).groups_per_s == 0.0
