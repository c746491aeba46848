"""Where the demo's nodes meet: addresses that are known before any of them is there, so that all can start at once."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

from node.datadir import DataDirectory
from node.demo.plan import Meeting, NodePlan
from swarm.wire.identity import Identity

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)
"""Below those that a system gives to whoever asks for any: what is free stays so until the nodes are there."""
KNOWN = 2
"""Nodes whose addresses all others are told; the rest they find. Two, because one may die."""


def meetings(plans: Sequence[NodePlan]) -> Mapping[str, Meeting]:
    """By node name. Keys are made in the nodes' data directories.

    Raises ConfigError when a key cannot be written or read, OSError when there are no free ports.
    """
    listen = [f"/ip4/{HOST}/tcp/{port}" for port in _free_ports(len(plans))]
    peers = [Identity.load_or_create(DataDirectory(plan.directory).identity).peer_id for plan in plans]
    known = [f"{address}/p2p/{peer}" for address, peer in zip(listen, peers, strict=True)][:KNOWN]
    return {plan.name: Meeting(listen[i], [*known[:i], *known[i + 1 :]]) for i, plan in enumerate(plans)}


def _free_ports(count: int) -> list[int]:
    free = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(free) == count:
            break
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.bind((HOST, port))
            free.append(port)
    if len(free) < count:
        raise OSError(f"of the ports {PORTS.start} to {PORTS.stop - 1} of {HOST} only {len(free)} are free")
    return free
