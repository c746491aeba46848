"""Who gets into the routing table, and who keeps our records: hivemind's table, and clocks that stand still."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.p2p import PeerID

from swarm.net.holders import HOLDERS_S, MAX_MISSED, Holders
from swarm.net.records import place_of
from swarm.net.routes import CHECK_S, MAX_ROUTES, SPARE, bind_routes
from swarm.types import PeerId
from swarm.wire.identity import Identity
from tests.builders import identity

ME = identity(0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Routes:
    """hivemind's routing table and its own rule for it, with our rules around."""

    def __init__(self) -> None:
        self.clock, self.pinged = Clock(), list[PeerID]()
        self.table = RoutingTable(place_of(ME.peer_id), bucket_size=20, depth_modulo=5)
        self._protocol: Any = SimpleNamespace(routing_table=self.table, storage={}, call_ping=self._ping)
        rule: Any = DHTProtocol.update_routing_table
        self._protocol.update_routing_table = rule.__get__(self._protocol)
        bind_routes(self._protocol, self.clock)

    async def _ping(self, peer: PeerID) -> None:
        self.pinged.append(peer)

    async def heard(self, peer: PeerId, place: DHTID | None = None) -> None:
        place = place_of(peer) if place is None else place
        await self._protocol.update_routing_table(place, PeerID.from_base58(peer))
        await asyncio.sleep(0)  # hivemind pings in a task of its own


PEERS = [Identity(number.to_bytes(32, "big")).peer_id for number in range(1, 1500)]


async def test_a_large_swarm_fills_the_table_evenly_and_is_not_pinged_for_it() -> None:
    routes = Routes()
    for peer in PEERS:
        await routes.heard(peer)
    table = routes.table
    assert 32 * 15 < len(table.uid_to_peer_id) < MAX_ROUTES
    assert max(bucket.depth for bucket in table.buckets) <= 10
    assert len(routes.pinged) <= 1
    assert sum(len(bucket.replacement_nodes) for bucket in table.buckets) <= 1
    known = [peer for peer in PEERS if place_of(peer) in table.uid_to_peer_id]
    before = len(routes.pinged)
    for peer in known:
        await routes.heard(peer)
    assert len(routes.pinged) == before, "who is known already costs nothing"


async def test_now_and_then_a_newcomer_makes_us_look_whether_somebody_is_gone() -> None:
    routes = Routes()
    for peer in PEERS:
        routes.clock.now += CHECK_S
        await routes.heard(peer)
    assert len(routes.pinged) > 100
    assert all(len(bucket.replacement_nodes) <= SPARE for bucket in routes.table.buckets)
    spare = sum(len(bucket.replacement_nodes) for bucket in routes.table.buckets)
    assert spare > SPARE
    buckets = sum(len(bucket.nodes_to_peer_id) for bucket in routes.table.buckets)
    assert len(routes.table.uid_to_peer_id) == len(routes.table.peer_id_to_uid) == buckets + spare


async def test_those_next_to_us_always_get_in() -> None:
    routes = Routes()
    nearest = sorted(PEERS, key=lambda peer: place_of(peer) ^ place_of(ME.peer_id))[:20]
    for peer in [*(peer for peer in PEERS if peer not in nearest), *nearest]:
        await routes.heard(peer)
    assert {place_of(peer) for peer in nearest} <= routes.table.uid_to_peer_id.keys()


async def test_nobody_chooses_its_place() -> None:
    routes = Routes()
    await routes.heard(PEERS[0], place_of(PEERS[1]))
    assert not routes.table.uid_to_peer_id


# Holders --------------------------------------------------------------------------------------------------------------


def test_holders_are_looked_up_now_and_then() -> None:
    clock = Clock()
    holders = Holders(clock)
    assert holders.of("key") is None
    holders.found("key", PEERS[:5])
    clock.now = HOLDERS_S - 1
    assert holders.of("key") == tuple(PEERS[:5])
    assert holders.of("other") is None
    clock.now = HOLDERS_S
    assert holders.of("key") is None


@pytest.mark.parametrize(("missed", "kept"), [(0, True), (MAX_MISSED - 1, True), (MAX_MISSED, False)])
def test_holders_that_do_not_answer_are_looked_up_again(missed: int, kept: bool) -> None:
    holders = Holders(Clock())
    holders.found("key", PEERS[:5])
    holders.missed("key", missed)
    assert (holders.of("key") is not None) is kept


def test_keys_that_are_no_longer_ours_are_forgotten() -> None:
    clock = Clock()
    holders = Holders(clock)
    for level in range(7):
        holders.found(level, PEERS[:5])
    clock.now = HOLDERS_S
    holders.found(9, PEERS[:5])
    assert list(holders._found) == [9]
