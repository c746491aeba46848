"""Iterative lookups (Kademlia, Maymounkov and Mazieres 2002): who of all peers is nearest to a place in the DHT.

Our own rather than hivemind's, which believes a peer that says where another one sits, and so can be led to a nest of
made-up neighbours; which has no bound on whom it asks; and which does not say who told what. Here a peer sits where its
id puts it, and a lookup asks at most MAX_ASKED peers within a deadline. Pure but for `ask` and the event loop's clock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable, Sequence

from swarm.types import PeerId

REPLICAS = 5
"""Peers that keep a record: those nearest to its key."""
BEAM = 8
"""A lookup is over when the nearest so many peers that it heard of have answered, or failed to."""
PARALLEL = 4
MAX_ASKED = 32
MAX_TOLD = 20
"""Peers that one answer may name: as many as hivemind does."""

Ask = Callable[[PeerId], Awaitable[Sequence[PeerId] | None]]
"""Asks a peer whom it knows near the place; None is no answer. It raises nothing, and has a deadline of its own."""


async def nearest(
    target: int, start: Iterable[PeerId], ask: Ask, place: Callable[[PeerId], int], deadline_s: float
) -> list[PeerId]:
    """At most BEAM peers that answered, the nearest to `target` first; what there is when the time is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline_s
    distances = {peer: place(peer) ^ target for peer in start}
    asked: set[PeerId] = set()
    failed: set[PeerId] = set()
    pending: dict[asyncio.Future[Sequence[PeerId] | None], PeerId] = {}
    try:
        while True:
            beam = heapq.nsmallest(BEAM, distances.keys() - failed, key=distances.__getitem__)
            room = min(PARALLEL - len(pending), MAX_ASKED - len(asked))
            for peer in [peer for peer in beam if peer not in asked][:room]:
                asked.add(peer)
                pending[asyncio.ensure_future(ask(peer))] = peer
            if not pending:
                break
            left_s = max(until - loop.time(), 0.0)
            done, _ = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for answer in done:
                peer, told = pending.pop(answer), answer.result()
                if told is None:
                    failed.add(peer)
                for other in (told or ())[:MAX_TOLD]:
                    distances.setdefault(other, place(other) ^ target)
    finally:
        for answer in pending:
            answer.cancel()
    answered = asked - failed - set(pending.values())
    return heapq.nsmallest(BEAM, answered, key=distances.__getitem__)
