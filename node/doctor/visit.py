"""A look at the network as a peer: are the seeds there, what time is it for them, and can they dial us?

With a libp2p daemon of its own that lives for a moment, with a new identity and on the node's own ports.
"""

from __future__ import annotations

import asyncio
import ipaddress
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import SwarmError
from swarm.net.addressbook import AddressBook
from swarm.net.addresses import peer_of, port_of
from swarm.net.dialback import MAX_ADDRESSES, Reach, ask, endpoint, is_public
from swarm.net.p2pd import stack_config
from swarm.net.reservation import reserve
from swarm.net.settings import P2PSettings
from swarm.net.stack import Stack, open_stack
from swarm.types import PeerId
from swarm.wire.identity import Identity

DIAL_S = 4.0
ASK_S = 3.0
DIAL_BACK_S = 7.0
MAX_SEEDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    address: str
    trouble: str = ""
    """Why it was not reached; empty if it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What was seen of the network. All that the findings need."""

    seeds: tuple[Seed, ...] = ()
    offset_s: float | None = None
    """How far our clock is ahead of the peers' (median); None if nobody told."""
    tried: tuple[str, ...] = ()
    """Our addresses that another peer was asked to dial."""
    reached: tuple[str, ...] | None = None
    """Those where it reached us; None if nobody could be asked."""
    relayed: bool = False
    """A seed relays for others, and we would have it relay for us."""
    trouble: str = ""
    """Why there is no more: the daemon did not start."""


async def visit(settings: P2PSettings, wall_clock: Callable[[], float]) -> Visit:
    """Goes and looks. `wall_clock`: unix seconds. Raises nothing for the network's sake."""
    with tempfile.TemporaryDirectory(prefix="swarm-doctor-") as place:
        key = Path(place) / "identity.key"
        Identity.load_or_create(key)
        try:
            async with open_stack(stack_config(settings, key, AddressBook(Path(place) / "peers.json"))) as stack:
                return await _look_around(stack, settings, wall_clock)
        except SwarmError as error:
            return Visit(trouble=str(error))


async def _look_around(stack: Stack, settings: P2PSettings, wall_clock: Callable[[], float]) -> Visit:
    addresses = settings.initial_peers[:MAX_SEEDS]
    seeds = await asyncio.gather(*(_dial(stack, address) for address in addresses))
    there = [peer_of(seed.address) for seed in seeds if not seed.trouble]
    answers = await asyncio.gather(*(_ask(stack, peer, (), ASK_S, wall_clock) for peer in there))
    told = [(peer, *answer) for peer, answer in zip(there, answers, strict=True) if answer is not None]
    if not told:
        return Visit(seeds=tuple(seeds))
    peer, first, _ = told[0]
    tried = await candidates(settings, stack.addresses, first.seen_at, stack.peer_id)
    answer = await _ask(stack, peer, tried, DIAL_BACK_S, wall_clock) if tried else None
    return Visit(
        seeds=tuple(seeds),
        offset_s=statistics.median(offset for _, _, offset in told),
        tried=tried,
        reached=() if not tried else None if answer is None else answer[0].reached,
        relayed=settings.relay and any(await asyncio.gather(*(_relays(stack, peer) for peer in there))),
    )


async def _dial(stack: Stack, address: str) -> Seed:
    try:
        async with asyncio.timeout(DIAL_S):
            await stack.connect(peer_of(address), [address])
    except TimeoutError:
        return Seed(address=address, trouble=f"no answer within {DIAL_S:g} s")
    except SwarmError as error:
        return Seed(address=address, trouble=str(error)[-120:])
    return Seed(address=address)


async def _ask(
    stack: Stack, peer: PeerId, addresses: Sequence[str], timeout: float, wall_clock: Callable[[], float]
) -> tuple[Reach, float] | None:
    """What it says, and how far our clock was ahead of its own."""
    sent = wall_clock()
    try:
        async with asyncio.timeout(timeout):
            reach = await ask(stack, peer, addresses)
    except (SwarmError, TimeoutError):
        return None
    return reach, (sent + wall_clock()) / 2 - reach.time


async def _relays(stack: Stack, peer: PeerId) -> bool:
    try:
        async with asyncio.timeout(ASK_S):
            await reserve(stack, peer)
    except (SwarmError, TimeoutError):
        return False
    return True


async def candidates(settings: P2PSettings, own: Sequence[str], seen_at: str, peer: PeerId) -> tuple[str, ...]:
    """Where others might reach us: as announced, else where a peer sees us (on our ports) and where we are."""
    if settings.announce:
        places = [place for address in settings.announce for place in await _resolved(address)]
    else:
        places = [*_seen_with_port(settings, seen_at), *(address.rpartition("/p2p/")[0] for address in own)]
        places.sort(key=lambda place: not is_public_address(f"{place}/p2p/{peer}"))
    direct = [place for place in dict.fromkeys(places) if endpoint(place) is not None]
    return tuple(f"{place}/p2p/{peer}" for place in direct[:MAX_ADDRESSES])


def _seen_with_port(settings: P2PSettings, seen_at: str) -> list[str]:
    """Our IP address as another saw it: its port is the connection's, ours are those that we listen on."""
    at = endpoint(seen_at)
    if at is None:
        return []
    family = f"/ip{at[0].version}/"
    return [
        f"{family}{at[0]}/tcp/{port_of(address)}"
        for address in settings.listen
        if address.startswith(family) and "/tcp/" in address
    ]


async def _resolved(address: str) -> list[str]:
    """With IP addresses in place of a name, which nobody dials for us."""
    parts = address.split("/")
    if not parts[1].startswith("dns"):
        return [address]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts[2], None)
    except OSError:
        return []
    hosts = [ipaddress.ip_address(host) for host in dict.fromkeys(str(entry[4][0]) for entry in found)]
    wanted = [host for host in hosts if parts[1] in ("dns", f"dns{host.version}")]
    return ["/".join(["", f"ip{host.version}", str(host), *parts[3:]]) for host in wanted]


def is_public_address(address: str) -> bool:
    at = endpoint(address.rpartition("/p2p/")[0])
    return at is not None and is_public(at[0])
