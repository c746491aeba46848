"""What a run has to say of one target."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tests.fuzz.watch import Watch, resident_peak

HEADER = (
    f"{'target':20} {'inputs':>9} {'inputs/s':>8} {'edges':>6} {'slowest':>9} {'traced':>9} {'process':>8}  outcomes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    target: str
    inputs: int
    seconds: float
    slowest_s: float
    traced_bytes: int
    resident_bytes: int
    """Of the whole process, Python and its libraries included."""
    outcomes: dict[str, int]
    edges: int | None = None
    """That libFuzzer saw taken in swarm/; None where nobody counted."""
    defect: str = ""
    """What went wrong, in a few lines; empty if nothing did."""

    @classmethod
    def of(cls, watch: Watch, seconds: float) -> Self:
        return cls(
            target=watch.target.name,
            inputs=watch.inputs,
            seconds=seconds,
            slowest_s=watch.slowest_s,
            traced_bytes=watch.traced_bytes,
            resident_bytes=resident_peak(),
            outcomes=dict(watch.outcomes.most_common()),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def line(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0
        edges = "-" if self.edges is None else str(self.edges)
        outcomes = ", ".join(f"{name} {count}" for name, count in self.outcomes.items())
        return (
            f"{self.target:20} {self.inputs:9} {rate:8.0f} {edges:>6} {self.slowest_s * 1e3:6.1f} ms"
            f" {self.traced_bytes / 1e6:6.2f} MB {self.resident_bytes / 1e6:5.0f} MB  {outcomes}"
        )
