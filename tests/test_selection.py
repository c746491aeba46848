"""Whom to follow. The clock and the dice are arguments."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from swarm.net.peertable import MAX_PEERS, PeerTable
from swarm.net.selection import (
    FIRST_TERM_S,
    HALF_LIFE_S,
    HYSTERESIS,
    PRIOR_GROUPS,
    TERM_S,
    Place,
    Seats,
    Uses,
    advantage,
    review,
)
from swarm.net.standing import Standing
from swarm.types import PeerId
from tests.builders import announcement, cell_value, identity


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def peers(*names: str) -> list[PeerId]:
    return [PeerId(name) for name in names]


A, B, C = peers("a", "b", "c")


def crowd(count: int) -> list[PeerId]:
    return [PeerId(f"peer {number:03}") for number in range(count)]


# What peers are worth -------------------------------------------------------------------------------------------------


def test_worth_is_the_decayed_mean_together_with_a_few_groups_of_the_average_peer() -> None:
    clock = Clock()
    uses = Uses(clock)
    assert uses.average is None
    for _ in range(4):
        uses.thanked(A, 0.5)
    uses.thanked(B, 0.0)
    uses.thanked(B, 0.0)
    uses.thanked(B, 0.0)
    uses.thanked(B, 0.0)
    assert uses.average == 0.25
    assert uses.worth(A, 0.0) == (PRIOR_GROUPS * 0.25 + 4 * 0.5) / (PRIOR_GROUPS + 4)
    assert uses.worth(B, 0.0) == PRIOR_GROUPS * 0.25 / (PRIOR_GROUPS + 4)
    clock.now = HALF_LIFE_S
    assert uses.worth(A, 0.0) == pytest.approx((PRIOR_GROUPS * 0.25 + 2 * 0.5) / (PRIOR_GROUPS + 2))
    clock.now = 100 * HALF_LIFE_S
    assert uses.worth(A, 0.0) == uses.worth(B, 0.0) == pytest.approx(0.25)
    uses.thanked(B, 1.0)
    assert uses.worth(B, 0.0) == pytest.approx((PRIOR_GROUPS + 1) / (PRIOR_GROUPS + 1))


def test_claims_count_until_there_is_evidence_and_never_more_than_the_average_peer() -> None:
    uses = Uses(Clock())
    assert (uses.worth(A, 0.9), uses.worth(B, 0.1), uses.worth(C, 0.0)) == (0.9, 0.1, 0.0)
    uses.thanked(C, 0.2)
    assert (uses.worth(A, 0.9), uses.worth(B, 0.1)) == (0.2, 0.1)
    uses.thanked(A, 0.05)
    assert uses.worth(A, 1.0) == uses.worth(A, 0.0)
    uses.missed(B)
    assert uses.worth(B, 1.0) == uses.worth(B, 0.0) < uses.average  # type: ignore[operator]


def test_claims_do_not_come_back_when_the_evidence_is_old() -> None:
    clock = Clock()
    uses = Uses(clock)
    uses.thanked(B, 0.5)
    uses.missed(A)
    clock.now = 1000 * HALF_LIFE_S
    assert uses.worth(A, 1.0) == uses.worth(A, 0.0)


def test_silence_is_evidence() -> None:
    clock = Clock()
    uses = Uses(clock)
    uses.thanked(B, 0.4)
    clock.now = 10.0
    assert uses.silent_since(A, 0.0)
    assert uses.silent_since(B, 5.0)
    assert not uses.silent_since(B, 0.0)
    before = uses.worth(B, 0.0)
    uses.missed(B)
    assert uses.worth(B, 0.0) < 0.65 * before
    assert uses.average == 0.4
    assert uses.silent_since(B, 5.0)


def test_what_is_remembered_of_peers_is_bounded() -> None:
    uses = Uses(Clock())
    for number in range(MAX_PEERS + 10):
        uses.thanked(PeerId(str(number)), 0.1)
    assert len(uses._peers) == MAX_PEERS
    assert uses.silent_since(PeerId("9"), -1.0)
    assert not uses.silent_since(PeerId("10"), -1.0)


# Claims ---------------------------------------------------------------------------------------------------------------


def test_an_advantage_is_being_strong_where_we_are_weak() -> None:
    ours = [cell_value("t/weak", 0.1), cell_value("t/strong", 0.9)]
    assert advantage(ours, [cell_value("t/weak", 0.8)]) == pytest.approx(0.8 * 0.9**2)
    assert advantage(ours, [cell_value("t/strong", 0.9)]) == pytest.approx(0.9 * 0.1**2)
    assert advantage(ours, [cell_value("t/weak", 0.0)]) == 0
    both = [cell_value("t/weak", 0.8, mass=3.0), cell_value("t/strong", 0.9, mass=1.0)]
    assert advantage(ours, both) == pytest.approx((3 * 0.8 * 0.81 + 0.9 * 0.01) / 4)


def test_a_difficulty_that_we_do_not_know_counts_as_its_source_and_an_unknown_source_not_at_all() -> None:
    ours = [cell_value("t/a", 0.2, difficulty="1"), cell_value("t/a", 0.6, difficulty="2")]
    assert advantage(ours, [cell_value("t/a", 1.0, difficulty="2")]) == pytest.approx(0.4**2)
    assert advantage(ours, [cell_value("t/a", 1.0, difficulty="3")]) == pytest.approx(0.6**2)
    assert advantage(ours, [cell_value("t/other", 1.0)]) == 0
    assert advantage([], [cell_value("t/a", 1.0)]) == 0
    assert advantage(ours, []) == 0
    assert advantage(ours, [cell_value("t/a", 1.0, mass=0.0)]) == 0


# Places ---------------------------------------------------------------------------------------------------------------


def chosen(places: list[Place], useful: bool | None = None) -> set[PeerId]:
    return {place.peer for place in places if useful is None or place.useful is useful}


def test_half_of_the_places_go_to_the_most_useful_and_half_to_anybody() -> None:
    worth = {peer: number / 100 for number, peer in enumerate(crowd(100))}
    counts = Counter[PeerId]()
    for seed in range(400):
        places = review([], worth, 8, 0.0, random.Random(seed))
        assert chosen(places, useful=True) == set(crowd(100)[-4:])
        assert len(chosen(places)) == 8
        counts.update(chosen(places, useful=False))
    # 4 of the other 96 each time: 16.7 on average.
    assert len(counts) == 96
    assert max(counts.values()) < 40


def test_the_same_dice_choose_the_same_peers_whatever_the_order() -> None:
    worth = dict.fromkeys(crowd(50), 0.0)
    backwards = dict(reversed(list(worth.items())))
    assert review([], worth, 8, 0.0, random.Random(3)) == review([], backwards, 8, 0.0, random.Random(3))
    assert review([], worth, 8, 0.0, random.Random(3)) != review([], worth, 8, 0.0, random.Random(4))


def test_few_peers_are_all_followed_and_nobody_leaves_for_an_empty_place() -> None:
    rng = random.Random(0)
    worth = {A: 0.0, B: 0.5, C: 0.0}
    places = review([], worth, 8, 0.0, rng)
    assert chosen(places) == {A, B, C}
    assert chosen(review(places, worth, 8, 10 * TERM_S, rng)) == {A, B, C}
    assert review([], {}, 8, 0.0, rng) == []
    assert len(review([], worth, 1, 0.0, rng)) == 1


def test_a_place_is_kept_for_its_term_but_not_by_who_is_gone() -> None:
    rng = random.Random(0)
    worth = dict.fromkeys(crowd(100), 0.0)
    places = review([], worth, 8, 0.0, rng)
    gone = places[0].peer
    worth = {peer: 1.0 for peer in worth if peer != gone}
    after = review(places, worth, 8, 0.6 * TERM_S, rng)
    assert [place for place in places if place.peer != gone] == after[:7]
    assert len(after) == 8
    assert all(2 / 3 * TERM_S <= place.until - place.since <= 4 / 3 * TERM_S for place in after)


def test_the_useful_are_kept_and_replaced_only_by_who_is_clearly_better() -> None:
    rng = random.Random(0)
    worth = {A: 0.4, B: 0.4, **dict.fromkeys(crowd(20), 0.1)}
    places = review([], worth, 4, 0.0, rng)
    assert chosen(places, useful=True) == {A, B}
    worth[C] = 0.4 * HYSTERESIS * 0.99
    places = review(places, worth, 4, 2 * TERM_S, rng)
    assert chosen(places, useful=True) == {A, B}
    worth[A] = 0.2
    worth[C] = 0.4 * HYSTERESIS * 1.01
    places = review(places, worth, 4, 4 * TERM_S, rng)
    assert chosen(places, useful=True) == {B, C}


def test_everybody_is_tried_sooner_or_later() -> None:
    rng = random.Random(0)
    worth = {peer: float(number < 4) for number, peer in enumerate(crowd(40))}
    places: list[Place] = []
    tried: list[set[PeerId]] = []
    for number in range(40):
        places = review(places, worth, 8, number * 2 * TERM_S, rng)
        assert chosen(places, useful=True) == set(crowd(4))
        tried.append(chosen(places, useful=False))
    assert not tried[0] & tried[1]
    assert set.union(*tried) == set(crowd(40)[4:])


def test_one_place_goes_to_a_peer_that_hardly_anybody_reads() -> None:
    rng = random.Random(0)
    worth = dict.fromkeys(crowd(100), 0.0)
    lonely = {A, B, C}
    worth.update(dict.fromkeys(lonely, 0.0))
    places = review([], worth, 8, 0.0, rng, lonely)
    alone = {place.peer for place in places if place.lonely}
    assert len(alone) == 1
    assert alone <= lonely
    later = review(places, worth, 8, 2 * TERM_S, rng, lonely - alone)
    assert {place.peer for place in later if place.lonely} < lonely - alone
    kept = [replace(place, until=9 * TERM_S) for place in places if place.lonely]
    again = review(kept, worth, 8, TERM_S, rng, set(worth))
    assert sum(place.lonely for place in again) == 1, "whoever says so without need gets no more"
    assert not any(place.lonely for place in review([], worth, 2, 0.0, rng, lonely))


def test_who_has_just_come_looks_again_soon() -> None:
    clock, rng = Clock(), random.Random(0)
    table = PeerTable(A, 20.0, clock, rng)
    seats = Seats(2, table, Standing(clock), Uses(clock), tuple, rng)
    for number in (3, 4):
        table.announced(announcement(identity(number)))
    first = seats.review()
    assert len(first) == 2
    for number in range(5, 30):
        table.announced(announcement(identity(number)))
    clock.now = 4 / 3 * FIRST_TERM_S
    second = seats.review()
    assert set(second) & set(first) == set()
    clock.now += 0.5 * FIRST_TERM_S
    assert seats.review() == second, "and then not so soon"


def test_a_place_that_is_not_free_is_kept_by_who_is_alive_and_good() -> None:
    clock, rng = Clock(), random.Random(0)
    table, standing = PeerTable(A, 20.0, clock, rng), Standing(clock)
    seats = Seats(2, table, standing, Uses(clock), tuple, rng)
    for number in (3, 4, 5):
        table.announced(announcement(identity(number)))
    one, other = seats.review()
    assert seats.review() == [one, other]
    standing.rest(one, 60.0)
    assert set(seats.review()) == {identity(number).peer_id for number in (3, 4, 5)} - {one}


# The whole: a swarm of peers of different use -------------------------------------------------------------------------


def live(hours: float, bring: dict[PeerId, float], claims: dict[PeerId, float], k: int = 8) -> Counter[PeerId]:
    """Seconds that each peer was followed in the second half of the time. `bring`: use of the group that a peer hands
    over every 20 s; who is not in it is silent."""
    clock, rng = Clock(), random.Random(0)
    uses = Uses(clock)
    places: list[Place] = []
    seconds = Counter[PeerId]()
    while clock.now < hours * 3600:
        for place in places:
            if clock.now >= place.until and uses.silent_since(place.peer, place.since):
                uses.missed(place.peer)
        places = review(places, {peer: uses.worth(peer, claim) for peer, claim in claims.items()}, k, clock.now, rng)
        clock.now += 20
        for place in places:
            if place.peer in bring:
                uses.thanked(place.peer, bring[place.peer])
            seconds[place.peer] += 20 * (clock.now > hours * 1800)
    return seconds


def test_the_useful_are_found_and_liars_and_the_silent_are_followed_no_longer_than_chance_has_it() -> None:
    honest, liars, silent = crowd(60)[:40], crowd(60)[40:50], crowd(60)[50:]
    good = set(honest[:4])
    bring = {peer: 0.3 if peer in good else 0.02 for peer in honest} | dict.fromkeys(liars, 0.0)
    claims = dict.fromkeys(crowd(60), 0.1) | dict.fromkeys([*liars, *silent], 1.0)
    seconds = live(12.0, bring, claims)
    per_peer = {
        name: sum(seconds[peer] for peer in group) / len(group)
        for name, group in (("good", good), ("bad", liars), ("silent", silent))
    }
    half = 6.0 * 3600
    assert per_peer["good"] > 0.75 * half
    assert per_peer["bad"] < 0.12 * half
    assert per_peer["silent"] < 0.12 * half
    assert min(seconds[peer] for peer in honest) > 0
