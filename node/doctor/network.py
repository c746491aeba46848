"""Checks of the network: our ports, the seeds, the clock, and whether others can dial us. `visit` does the looking.

A running node keeps its own ports from being tried, which is said; else it is not disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from node.config import NodeConfig
from node.datadir import DataDirectory
from node.doctor.findings import Finding, failed, ok, warning
from node.doctor.visit import Seed, Visit, is_public_address, visit
from swarm.net.addressbook import AddressBook
from swarm.net.addresses import is_free, port_of, usable, wildcard, with_ports
from swarm.net.settings import P2PSettings

MAX_SKEW_S = 60.0
FIXED = '"/ip4/0.0.0.0/tcp/4001"'


async def ports(config: NodeConfig) -> Sequence[Finding]:
    if not isinstance(config.exchange, P2PSettings):
        return []
    book = AddressBook(DataDirectory(config.data_dir).peers)
    return [port_finding(address, book.port(address)) for address in usable(config.exchange.listen)]


def port_finding(address: str, remembered: int) -> Finding:
    """`remembered`: the port that a node with a port 0 had the last time, or 0."""
    if wildcard(address) is not None:
        chosen = port_of(with_ports([address], lambda _: remembered)[0])
        if remembered in (0, chosen):
            return ok("listen", f"{address}: port {chosen} as before" if remembered else f"{address}: any free port")
        advice = f"Others know the old one: stop what uses it, or set exchange.listen to a fixed port such as {FIXED}."
        return warning("listen", f"{address}: port {remembered}, which it had before, is taken", advice)
    if is_free(address):
        return ok("listen", f"{address} is free")
    advice = f"Stop what uses port {port_of(address)}, or set exchange.listen to another one."
    return failed("listen", f"{address} is taken, or no address of this machine", advice)


async def network(config: NodeConfig) -> Sequence[Finding]:
    if not isinstance(config.exchange, P2PSettings):
        return [ok("network", "exchange.type is none: the node stays alone")]
    settings = config.exchange
    book = AddressBook(DataDirectory(config.data_dir).peers)
    listen = with_ports(usable(settings.listen), book.port)
    free = tuple(address for address in listen if is_free(address))
    stable = all(wildcard(address) is None or book.port(address) for address in usable(settings.listen))
    seen = await visit(settings.model_copy(update={"listen": free}), time.time)
    port = port_of(listen[0]) if listen and stable else None
    return findings(settings, seen, port, taken=bool(listen) and not free)


def findings(settings: P2PSettings, seen: Visit, port: int | None, *, taken: bool) -> list[Finding]:
    """`port`: the one that a router would have to forward; None if it is another one each time. `taken`: our ports are
    in use, so that nobody could be asked to try them. Pure."""
    if seen.trouble:
        return [failed("network", seen.trouble, "Look at exchange.listen and exchange.announce.")]
    return [*seed_findings(seen.seeds), clock_finding(seen.offset_s), reach_finding(settings, seen, port, taken)]


def seed_findings(seeds: Sequence[Seed]) -> list[Finding]:
    if not seeds:
        advice = "Set exchange.initial_peers or join with a swarm file, unless this is the swarm's first node."
        return [warning("seeds", "none are known", advice)]
    lost = failed if all(seed.trouble for seed in seeds) else warning
    advice = "Check the address and this machine's way out, or take another seed peer."
    said = [lost("seeds", f"{seed.address}: {seed.trouble}", advice) for seed in seeds if seed.trouble]
    return [ok("seeds", f"{seed.address} answers") for seed in seeds if not seed.trouble] + said


def clock_finding(offset_s: float | None) -> Finding:
    if offset_s is None:
        return warning("clock", "not tested: no peer told its time", "Have a seed peer answer first.")
    if abs(offset_s) <= MAX_SKEW_S:
        return ok("clock", f"within {max(abs(offset_s), 1):.0f} s of the peers'")
    found = f"{abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} the peers'"
    return warning("clock", found, "Set it (timedatectl set-ntp true); peers refuse what is too old or not yet made.")


def reach_finding(settings: P2PSettings, seen: Visit, port: int | None, taken: bool) -> Finding:
    name = "reachability"
    if taken:
        advice = "Stop the node that uses it, and ask again."
        return warning(name, "not tested: the port is in use", advice)
    if seen.reached is None:
        return warning(name, "not tested: no seed peer could be asked", "Have a seed peer answer first.")
    if seen.reached:
        public = any(is_public_address(address) for address in seen.reached)
        where = "" if public else ", in this network" if not settings.local else ", on this machine"
        return ok(name, f"peers can dial {', '.join(seen.reached)}{where}")
    forward = (
        f"forward TCP port {port} to this machine, set exchange.announce to where that is"
        if port
        else f"set exchange.listen to a fixed port such as {FIXED}, and forward it to this machine"
    )
    tried = f"none of {len(seen.tried)} addresses answered"
    if seen.relayed:
        return warning(name, f"only through relays: {tried}", f"To be faster, {forward}; or leave it to relays.")
    advice = f"{forward[0].upper()}{forward[1:]}, or let relays help (exchange.relay, exchange.relays)."
    return failed(name, f"not reachable: {tried}", advice)
