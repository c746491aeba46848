"""hivemind's routing table with rules of its own for who gets in: bound to its key, and cheap in a large swarm.

A table of hivemind's (1.1.12) splits its buckets to a depth of five, so that it knows some 640 peers, evenly spread,
and those near to it. In a swarm of thousands most of those that ask it something are not among them, and it would ping
another peer for each, and remember all that came too late: now it does so now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarm.net.records import place_of
from swarm.types import PeerId

MAX_ROUTES = 2048
CHECK_S = 10.0
"""From one peer that is pinged, because a newcomer would have its place in a full bucket, to the next. Those that are
gone and asked for something are found out anyway."""
SPARE = 4
"""Newcomers to a full bucket that are remembered, should one of its peers be gone."""


def bind_routes(protocol: Any, clock: Callable[[], float]) -> None:
    """Lets nobody into the routing table at a place that does not follow from its peer id, nor more than MAX_ROUTES.
    `clock`: monotonic seconds."""
    update, table = protocol.update_routing_table, protocol.routing_table
    next_check = clock()

    async def update_if_bound(node_id: Any, peer_id: Any, responded: bool = True) -> None:
        nonlocal next_check
        if responded and node_id is not None:
            if node_id != place_of(PeerId(peer_id.to_base58())):
                return
            bucket = table.buckets[table.get_bucket_index(node_id)]
            if node_id not in bucket.nodes_to_peer_id:
                full = _is_full(table, bucket)
                if len(table.uid_to_peer_id) >= MAX_ROUTES or (full and clock() < next_check):
                    return
                if full:
                    next_check = clock() + CHECK_S
        await update(node_id, peer_id, responded=responded)
        if node_id is not None:
            _forget_spare(table, node_id)

    protocol.update_routing_table = update_if_bound


def _is_full(table: Any, bucket: Any) -> bool:
    """Whether there is no more room in it, and it would not be split."""
    splits = bucket.has_in_range(table.node_id) or bucket.depth % table.depth_modulo != 0
    return len(bucket.nodes_to_peer_id) >= bucket.size and not splits


def _forget_spare(table: Any, place: int) -> None:
    spare = table.buckets[table.get_bucket_index(place)].replacement_nodes
    while len(spare) > SPARE:
        del table[next(iter(spare))]
