"""What is measured of one daemon at a moment."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import psutil

from node.disk import size_of
from swarm.wire.v1 import node_pb2


class Sample(TypedDict):
    node: str
    elapsed_s: float
    rss_mib: float
    """Of the daemon itself."""
    children_mib: float
    """Of the processes that it started: libp2p's daemon, the judges."""
    descriptors: int
    threads: int
    processes: int
    """With itself."""
    disk_mib: float
    """Of its directory, without the log of metrics (which has a bound of its own: 128 MB)."""
    metrics_mib: float
    loop_delay_max_ms: float
    """Of the last minute."""
    loop_delay_p99_ms: float
    steps: int
    own_groups: int
    admitted: int
    peers: int


def measured(directory: Path, pid: int, elapsed_s: float, status: node_pb2.NodeStatus) -> Sample:
    process = psutil.Process(pid)
    children = process.children(recursive=True)
    metrics = sum(path.stat().st_size for path in directory.glob("metrics.jsonl*"))
    with process.oneshot():
        return Sample(
            node=status.name,
            elapsed_s=elapsed_s,
            rss_mib=process.memory_info().rss / (1 << 20),
            children_mib=sum(map(_rss, children)) / (1 << 20),
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            processes=1 + len(children),
            disk_mib=(size_of(directory) - metrics) / (1 << 20),
            metrics_mib=metrics / (1 << 20),
            loop_delay_max_ms=status.metrics["loop_delay_max_ms"],
            loop_delay_p99_ms=status.metrics["loop_delay_p99_ms"],
            steps=status.steps,
            own_groups=status.counters["own_groups"],
            admitted=sum(status.admitted.values()),
            peers=status.peers,
        )


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
