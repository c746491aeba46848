"""Held-out questions for simulated nodes: the same ones for every run, in no virtual time, with random numbers of their
own, so that looking changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from node.engine.policy import Policy
from node.engine.sampling import sample
from node.evaluate import held_out_from
from swarm.tasks.judge import LocalJudge
from swarm.tasks.scoring import score_response
from swarm.types import SamplingParams, ScoreStatus, Task, family_of

#: Where the search for questions begins; nobody's own evaluation starts there.
SEED = 40_000_003
MAX_NEW_TOKENS = 32
#: How every answer begins that the seed models were shown.
ANSWER = "<answer>"


@dataclass(frozen=True, slots=True)
class Marks:
    rates: Mapping[str, float]
    """Family -> strict pass@1."""
    odd: float
    """Share of answers, right or wrong, that begin with anything but their answer: what an adversary is after."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exam:
    judge: LocalJudge
    tasks: Mapping[str, Sequence[Task]]
    """By family."""
    samples: int
    """Answers per question, at temperature 1."""

    @classmethod
    async def prepare(cls, judge: LocalJudge, tasks: int, samples: int) -> Exam:
        """`tasks` questions of each family. Raises TaskError where there are too few."""
        found = {family_of(s.name): await held_out_from(judge, s, tasks, SEED) for s in judge.sources}
        return cls(judge=judge, tasks=found, samples=samples)

    def sit(self, policy: Policy, seed: int) -> Marks:
        """The same random numbers for every exam of a seed: arms differ in their policies."""
        sources = {family_of(source.name): source for source in self.judge.sources}
        asked = [(family, task) for family, tasks in self.tasks.items() for task in tasks]
        rows = sample(
            policy.model,
            [policy.codec.prompt(task) for _, task in asked],
            [self.samples] * len(asked),
            SamplingParams(max_new_tokens=MAX_NEW_TOKENS),
            policy.codec.eos_id,
            torch.Generator().manual_seed(seed),
        )
        right = dict.fromkeys(self.tasks, 0)
        odd = 0
        for (family, task), answers in zip(asked, rows, strict=True):
            for answer in answers:
                text = policy.codec.decode(answer.ids)[0]
                score = score_response(sources[family], task, text)
                right[family] += score.status is ScoreStatus.OK and score.reward >= 1.0
                odd += not text.startswith(ANSWER)
        return Marks(
            rates={family: right[family] / (len(tasks) * self.samples) for family, tasks in self.tasks.items()},
            odd=odd / (len(asked) * self.samples),
        )
