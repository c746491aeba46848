"""A simulated crowd (tests/bench/crowd): the same numbers every time, and what a small one has to come to."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from swarm.net.lookup import MAX_ASKED, REPLICAS
from swarm.net.records import place_of
from swarm.types import Reason
from swarm.verify import Context
from tests.bench.crowd.crowd import Crowd
from tests.bench.crowd.groups import LIMITS, Verdicts, make
from tests.bench.crowd.keys import Places, key_of
from tests.bench.crowd.node import Node
from tests.bench.crowd.report import Report, report
from tests.bench.crowd.world import WALL, Plan
from tests.bench.scale import table
from tests.builders import MANIFEST, MEMBERSHIP, identity

SMALL = Plan(nodes=10, seconds=150, warm_s=90)


def lived(plan: Plan) -> tuple[Crowd, Report]:
    crowd = Crowd(plan)
    crowd.live()
    return crowd, report(crowd)


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    for plan in (SMALL, replace(SMALL, nodes=60, seconds=75, warm_s=45)):
        assert lived(plan)[1] == lived(plan)[1]
    assert lived(SMALL)[1] != lived(replace(SMALL, seed=1))[1]


def test_a_swarm_without_losses_and_villains_is_known_whole_and_a_useful_group_reaches_all() -> None:
    crowd, it = lived(replace(SMALL, lost=0.0, hostile=0.0, replaced_per_h=0.0, appetite=10.0))
    assert (it.known, it.followed, it.unfollowed) == (9, 8, 0)
    assert it.spread == it.within_30_s == 1
    assert it.reached[2] is not None
    assert it.reached[2] < 10
    assert it.hostile_bodies == it.hostile_groups == 0
    assert it.bytes_out == pytest.approx(it.bytes_in, rel=0.01)
    assert it.groups == pytest.approx(crowd.plan.groups_per_s * 9, rel=0.3)
    assert all(not node.standing.banned(other.peer) for node in crowd.honest for other in crowd.honest)


def test_who_sends_garbage_is_banned_and_left() -> None:
    crowd, it = lived(replace(SMALL, nodes=20, hostile=0.4, replaced_per_h=0.0, appetite=10.0))
    garbage = [other.peer for other in crowd.members.values() if type(other).__name__ == "Garbage"]
    assert len(garbage) == 2
    banned = [(node, peer) for node in crowd.honest for peer in garbage if node.standing.banned(peer)]
    assert banned
    assert all(peer not in node.streams for node, peer in banned)
    assert it.spread == 1, "and what is useful comes all the same"


def test_no_more_is_taken_in_than_there_is_an_appetite_for() -> None:
    crowd, it = lived(replace(SMALL, nodes=30, groups_per_s=1.0, appetite=0.5, seconds=120))
    assert 0.3 < it.groups <= 0.5 * 1.1
    assert crowd.world.counts.duplicates < 0.1 * crowd.world.counts.new


def test_half_of_a_swarm_is_replaced_and_its_place_is_taken() -> None:
    crowd, it = lived(replace(SMALL, nodes=40, replaced_per_h=10.0, hostile=0.25))
    assert len(crowd.members) > 45
    assert (len(crowd.alive), len(crowd.places), sum(other.hostile for other in crowd.alive)) == (40, 40, 10)
    assert it.followed > 3
    gone = {peer for peer, other in crowd.members.items() if not other.alive}
    followed = [peer for node in crowd.honest for peer in node.streams]
    assert sum(peer in gone for peer in followed) < 0.5 * len(followed)


def test_a_key_is_held_by_the_nearest() -> None:
    places, peers = Places(), [identity(number).peer_id for number in range(1, 200)]
    for peer in peers:
        places.add(peer)
    for shard in range(20):
        key = int(key_of(1, shard))
        assert places.holders(key) == sorted(peers, key=lambda peer: int(place_of(peer)) ^ key)[:REPLICAS]
    places.remove(peers[0])
    assert len(places) == 198
    costs = places.lookup_costs(0.05, random.Random(0))
    assert REPLICAS < sum(costs) / len(costs) < MAX_ASKED


def test_what_differs_between_receivers_is_checked_for_each() -> None:
    me, author = identity(1).peer_id, identity(2).peer_id
    context = Context(me=me, manifest=MANIFEST, membership=MEMBERSHIP, limits=LIMITS, now=WALL)
    verdicts, good = Verdicts(), make(1, author, WALL, b"body", 0.1, hostile=False)
    assert verdicts.of(good, context) is Reason.ADMITTED
    assert verdicts.of(replace(good, valid=False), context) is Reason.MALFORMED
    assert verdicts.of(make(2, me, WALL, b"body", 0.1, hostile=False), context) is Reason.WRONG_ORIGIN
    assert verdicts.of(good, replace(context, banned=lambda peer: peer == author)) is Reason.BANNED
    assert verdicts.of(good, replace(context, now=WALL + LIMITS.max_age_s + 1)) is Reason.STALE
    assert verdicts.of(good, replace(context, now=WALL - LIMITS.max_clock_skew_s - 1)) is Reason.FROM_FUTURE


def test_nodes_that_have_left_ask_nothing_and_hold_nothing() -> None:
    crowd, _ = lived(SMALL)
    node = next(other for other in crowd.alive if isinstance(other, Node))
    crowd.remove(node)
    sent = node.traffic.messages_out
    crowd.world.run(crowd.world.now + 150)
    assert (node.streams, len(node.storage), node.traffic.messages_out) == ({}, 0, sent)
    assert all(node.peer not in other.streams for other in crowd.honest if other is not node)


def test_the_table_has_a_column_for_each_size() -> None:
    _, it = lived(replace(SMALL, seconds=130))
    lines = table([it, it]).splitlines()
    assert lines[0] == "| nodes | 10 | 10 |"
    assert all(line.count("|") == 4 for line in lines)
