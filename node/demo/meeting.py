"""Where the demo's nodes meet: addresses that are known before any of them is there, so that all can start at once."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from node.datadir import DataDirectory
from node.demo.plan import Meeting, NodePlan
from swarm.wire.identity import Identity

HOST = "127.0.0.1"
KNOWN = 2
"""Nodes whose addresses all others are told; the rest they find. Two, because one may die."""


def meetings(plans: Sequence[NodePlan]) -> Mapping[str, Meeting]:
    """By node name. Ports are free now; keys are made in the nodes' data directories.

    Raises ConfigError when a key cannot be written or read, OSError when there is no free port.
    """
    listen = [f"/ip4/{HOST}/tcp/{port}" for port in _free_ports(len(plans))]
    peers = [Identity.load_or_create(DataDirectory(plan.directory).identity).peer_id for plan in plans]
    known = [f"{address}/p2p/{peer}" for address, peer in zip(listen, peers, strict=True)][:KNOWN]
    return {plan.name: Meeting(listen[i], [*known[:i], *known[i + 1 :]]) for i, plan in enumerate(plans)}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        # all of them open at the same time: otherwise two could be the same
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
