"""A task that an untrained policy gets right half of the time and learns in seconds: start with plain ASCII."""

from __future__ import annotations

from swarm.tasks.base import SourceSpec
from swarm.types import Task, TaskRef


class Plain:
    """ "Be plain. 17" is answered by any text whose first character is ASCII."""

    version = "1"
    size = None

    def __init__(self, spec: SourceSpec) -> None:
        self.name, self.config = f"plain/{spec.name}", spec.config

    def task(self, seed: int, index: int) -> Task:
        ref = TaskRef(source=self.name, version=self.version, config=self.config, seed=seed, index=index)
        return Task(ref=ref, prompt=f"Be plain. {seed} {index}", answer="", difficulty="{}")

    def score(self, task: Task, response: str) -> float:
        return float(response[:1].isascii() and response != "")
