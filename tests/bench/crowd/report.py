"""What a crowd came to, in numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from statistics import mean, median

from tests.bench.crowd.crowd import Crowd, Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Per node and second, or as it says. Everything after the warm-up."""

    nodes: int
    bytes_out: float
    bytes_in: float
    bytes_out_most: float
    """Of the node that sent most."""
    messages_out: float
    messages_in: float
    directory_bytes: float
    reads_per_min: float
    """Shards looked up, per honest node."""
    checks_per_min: float
    """Signatures of records, per honest node."""
    size_estimate: float
    """Median over honest nodes."""
    known: float
    """Honest live nodes in an honest node's view, on average."""
    followed: float
    unfollowed: float
    """Share of the honest that no honest node follows."""
    groups: float
    """New ones taken in."""
    duplicates: float
    """Bodies that came again, per new group."""
    hostile_bodies: float
    """Share of bodies that a hostile node handed over or made."""
    hostile_groups: float
    """Share of the admitted that hostile nodes made."""
    reached: tuple[float | None, ...]
    """Seconds for a useful group to reach 50, 90 and 99 % of the honest: median over those that spread at all."""
    within_30_s: float
    """Share of the honest that a useful group reached in 30 s: mean, again over those that spread."""
    spread: float
    """Share of the useful groups that reached half of the honest."""
    hops: float

    def lines(self) -> list[str]:
        return [f"{name:18} {getattr(self, name)}" for name in self.__dataclass_fields__]


def report(crowd: Crowd) -> Report:
    """As far as it has lived."""
    plan, counts, honest = crowd.plan, crowd.world.counts, crowd.honest
    seconds = crowd.world.now - plan.warm_s
    traffic = [it.traffic for it in crowd.alive]
    node_s = max(counts.node_seconds, 1.0)
    honest_s = max(counts.honest_seconds, 1.0)
    good = {node.peer for node in honest}
    readers = Counter(peer for node in honest for peer in node.streams)
    probes = [_came(probe, good) for probe in crowd.probes.values()]
    spread = [came for came in probes if _after(came, 0.5) is not None]
    return Report(
        nodes=plan.nodes,
        bytes_out=sum(it.bytes_out for it in traffic) / len(traffic) / seconds,
        bytes_in=sum(it.bytes_in for it in traffic) / len(traffic) / seconds,
        bytes_out_most=max(it.bytes_out for it in traffic) / seconds,
        messages_out=sum(it.messages_out for it in traffic) / len(traffic) / seconds,
        messages_in=sum(it.messages_in for it in traffic) / len(traffic) / seconds,
        directory_bytes=counts.directory_bytes / node_s,
        reads_per_min=60 * counts.reads / honest_s,
        checks_per_min=60 * counts.checked / honest_s,
        size_estimate=median(node.swarm_size for node in honest),
        known=mean(sum(it.peer in good for it, _ in node.table.alive()) for node in honest),
        followed=mean(len(good & node.streams.keys()) for node in honest),
        unfollowed=mean(peer not in readers for peer in good),
        groups=counts.new / honest_s,
        duplicates=counts.duplicates / max(counts.new, 1),
        hostile_bodies=counts.hostile_bodies / max(counts.delivered, 1),
        hostile_groups=counts.from_hostile / max(counts.new, 1),
        reached=tuple(_median(_after(came, share) for came in spread) for share in (0.5, 0.9, 0.99)),
        within_30_s=mean(mean(at <= 30.0 for at in came) for came in spread) if spread else 0.0,
        spread=len(spread) / max(len(probes), 1),
        hops=mean(hops for probe in crowd.probes.values() for hops in probe.hops.values()) if spread else 0.0,
    )


def _came(probe: Probe, alive: Collection[str]) -> list[float]:
    """When each of those that were there from then until now got it; infinite if it did not."""
    return sorted(probe.came.get(peer, math.inf) for peer in probe.wanted if peer in alive)


def _after(came: list[float], share: float) -> float | None:
    at = came[math.ceil(share * len(came)) - 1] if came else math.inf
    return None if math.isinf(at) else at


def _median(values: Iterable[float | None]) -> float | None:
    """Of those that there are, if they are most."""
    them = sorted(math.inf if value is None else value for value in values)
    middle = them[len(them) // 2] if them else math.inf
    return None if math.isinf(middle) else middle
