"""What a light node (`tests.bench.light_node`) is told and what it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a child is told on its command line, as JSON."""

    directory: str
    listen: str
    initial_peers: list[str]
    heartbeat_s: float
    every_s: float
    """A group is made so often; 0 for never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    peers: list[str]
    made: int
    got: dict[str, list[int]]
    """By origin, in the order of coming: the numbers of the groups that were new."""
    pulled_again: int
    """Groups that came a second time out of their origin's log."""
    relayed_again: int
    """That a relay sent of what was here already."""
    latencies_s: list[float]
    steps: int
    longest_step_s: float
    rss_mb: float
    daemon_mb: float
