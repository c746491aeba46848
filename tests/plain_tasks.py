"""Tasks for an untrained policy: one that it gets right half of the time and learns in seconds, and one that it always
gets right where it has room for the answer."""

from __future__ import annotations

from dataclasses import replace

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


class Long(Plain):
    """ "Be long. 17" is answered by any text of two characters, which takes at least two bytes."""

    def __init__(self, spec: SourceSpec) -> None:
        self.name, self.config = f"long/{spec.name}", spec.config

    def task(self, seed: int, index: int) -> Task:
        plain = super().task(seed, index)
        return replace(plain, prompt=plain.prompt.replace("plain", "long"))

    def score(self, task: Task, response: str) -> float:
        return float(len(response) >= 2)
