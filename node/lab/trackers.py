"""Other value trackers to compare ours with. None is good enough to be an option of a node."""

from __future__ import annotations

from collections.abc import Mapping

from node.rl.tracker import Evidence, ValueTracker, cell_key, prompt_key
from swarm.types import PolicyVersion, Task


class PromptTracker(ValueTracker):
    """Every prompt by itself, as SPO was published (arXiv 2509.13232): one that has not been seen is worth 0.5."""

    def cell_value(self, source: str, difficulty: str, now: PolicyVersion) -> float:
        return 0.5


class SourceTracker(ValueTracker):
    """A mean per source and nothing below it, like RAE's per-agent average (SPIRAL, arXiv 2506.24119)."""

    def value(self, task: Task, now: PolicyVersion) -> float:
        return self.source_value(task.ref.source, now)


class VisitTracker(ValueTracker):
    """What was seen fades when something else is seen (SPO), and not when the policy changes (SPO++): every key has a
    clock of its own, its number of outcomes."""

    def value(self, task: Task, now: PolicyVersion) -> float:
        return super().value(task, PolicyVersion(0))  # no outcome is later than a key's newest

    def source_value(self, source: str, now: PolicyVersion) -> float:
        return super().source_value(source, PolicyVersion(0))

    def _observe_all(self, task: Task, reward: float, version: int, weight: float) -> None:
        source = task.ref.source
        known = self._sources.get(source, Evidence())
        self._sources[source] = known.observe(reward, known.version + 1, self._config.cell_decay, weight)
        cell, prompt = cell_key(task), prompt_key(task)
        seen, asked = self._cells.get(cell, Evidence()).version, self._prompts.get(prompt, Evidence()).version
        self._observe(self._cells, cell, reward, seen + 1, self._config.cell_decay, weight)
        self._observe(self._prompts, prompt, reward, asked + 1, self._config.prompt_decay, weight)


TRACKERS: Mapping[str, type[ValueTracker]] = {
    "ours": ValueTracker,
    "prompt": PromptTracker,
    "source": SourceTracker,
    "visits": VisitTracker,
}
