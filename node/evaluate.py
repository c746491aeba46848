"""How good a policy is on questions that nobody trains on.

`ask` asks a generator and a judge, many questions at a time so that the engine can batch; `summary` makes the numbers
(node/estimators.py) of what came back.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from node.engine.base import Completion, Generator
from node.estimators import clustered_wilson, majority_at_k, pass_at_k, stratified_mean
from node.text_codec import TextCodec
from swarm.errors import TaskError, TaskTimeout
from swarm.tasks.base import HELD_OUT_IN, Judge, SourceInfo, held_out
from swarm.tasks.scoring import final_answer
from swarm.types import FinishReason, SamplingParams, ScoreStatus, Task, TaskRef, family_of

#: Tasks being answered at a time.
CONCURRENCY = 64
#: Tasks that are made for a look at them, in one turn of the judge: a node that is busy has other callers waiting.
LOOKS_AT_ONCE = 32
#: References looked at for each wanted task: 8 would do if no question came twice.
LOOKS_PER_TASK = 8 * HELD_OUT_IN
MIN_LOOKS = 1000
DIGEST_CHARS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question's samples, in the order in which they were drawn."""

    answers: tuple[str, ...]
    """What each says, as the scorers look for it: the text between the last <answer> tags, or all of it where there is
    none; white space normalised. Empty for one that the engine failed on."""
    right: tuple[bool, ...]
    """Full marks. A sample without a score is not right."""
    unscored: int
    """Samples that the engine failed on, or the source could not score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    value: float
    interval: tuple[float, float]
    """95 %: `clustered_wilson`, questions being the clusters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one family, or of several that count the same."""

    tasks: int
    samples: int
    """Per task."""
    pass_at_k: dict[int, Estimate]
    """By k, ascending, 1 always among them: that a right one is among k samples."""
    majority_at_k: dict[int, Estimate]
    """By k, without 1: that the most frequent answer of k samples is right."""
    unscored: int
    """Samples that count as wrong because they have no score."""

    @property
    def pass_at_1(self) -> float:
        """Share of samples that are right."""
        return self.pass_at_k[1].value


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one evaluation says, and what somebody else needs to repeat it."""

    model: str
    """As it was named."""
    fingerprint: str
    """Of its architecture and weights."""
    engine: str
    questions: int
    samples: int
    """Per question."""
    digest: str
    """`digest` of the questions."""
    system_prompt: str
    sampling: SamplingParams
    overall: Result
    families: dict[str, Result]


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4, ... and, at the end, `samples` itself."""
    return sorted({samples, *(1 << i for i in range(samples.bit_length()))})


def summary(families: Sequence[Sequence[Answered]], ks: Collection[int] = (1,)) -> Result:
    """Of one or more families, each with at least one question and all with the same number of samples. pass@1 is
    always there; every k is at most that number, or it is a ValueError."""
    questions = [answered for family in families for answered in family]
    samples = len(questions[0].right)

    def estimate(value: Callable[[Answered], float]) -> Estimate:
        strata = [[value(answered) for answered in family] for family in families]
        return Estimate(value=stratified_mean(strata), interval=clustered_wilson(strata, samples))

    def passed(k: int) -> Estimate:
        return estimate(lambda answered: pass_at_k(samples, sum(answered.right), k))

    def agreed(k: int) -> Estimate:
        return estimate(lambda answered: majority_at_k(answered.answers, answered.right, k))

    wanted = sorted({1, *ks})
    return Result(
        tasks=len(questions),
        samples=samples,
        pass_at_k={k: passed(k) for k in wanted},
        majority_at_k={k: agreed(k) for k in wanted if k > 1},
        unscored=sum(answered.unscored for answered in questions),
    )


async def ask(
    generator: Generator,
    codec: TextCodec,
    judge: Judge,
    tasks: Mapping[str, Sequence[Task]],
    samples: int,
    params: SamplingParams,
) -> dict[str, list[Answered]]:
    """`samples` answers to every task, by family; a family without tasks is left out."""
    limit = asyncio.Semaphore(CONCURRENCY)

    async def answer(task: Task) -> Answered:
        async with limit:
            completions = await generator.sample(codec.prompt(task), samples, params)
            texts = [_text(codec, completion) for completion in completions]
            scores = await judge.score(task, texts)
        scored = [
            score.status is ScoreStatus.OK and completion.finish is not FinishReason.ERROR
            for score, completion in zip(scores, completions, strict=True)
        ]
        return Answered(
            answers=tuple(" ".join(final_answer(text).split()) for text in texts),
            right=tuple(counts and score.reward >= 1.0 for counts, score in zip(scored, scores, strict=True)),
            unscored=scored.count(False),
        )

    async with asyncio.TaskGroup() as group:
        answers = {
            family: [group.create_task(answer(task)) for task in family_tasks] for family, family_tasks in tasks.items()
        }
    return {family: [one.result() for one in asked] for family, asked in answers.items() if asked}


def _text(codec: TextCodec, completion: Completion) -> str:
    return "" if completion.finish is FinishReason.ERROR else codec.decode(completion.ids)[0]


async def evaluate(
    generator: Generator,
    codec: TextCodec,
    judge: Judge,
    tasks: Mapping[str, Sequence[Task]],
    samples: int,
    params: SamplingParams,
) -> dict[str, Result]:
    """pass@1 by family; a family without tasks is left out."""
    answered = await ask(generator, codec, judge, tasks, samples, params)
    return {family: summary([questions]) for family, questions in answered.items()}


async def held_out_questions(judge: Judge, n: int, seed: int) -> dict[str, list[Task]]:
    """n held-out tasks of each of the judge's sources, by family; a question that two of them have is asked once.

    Families with the same name have their whole source's. Raises what `held_out_from` does.
    """
    families = [family_of(source.name) for source in judge.sources]
    found = dict[str, list[Task]]()
    taken = set[str]()
    for source, family in zip(judge.sources, families, strict=True):
        name = family if families.count(family) == 1 else f"{source.name} {source.config}"
        found[name] = await held_out_from(judge, source, n, seed, taken)
        taken |= {task.prompt for task in found[name]}
    return found


async def held_out_from(
    judge: Judge, source: SourceInfo, n: int, seed: int, taken: Collection[str] = frozenset()
) -> list[Task]:
    """n held-out tasks of `source` with different questions, none of them in `taken`; the same ones for the same seed.

    Raises TaskError when there are too few (after a bounded search), TaskTimeout when one cannot be made in time.
    """
    found = dict[str, Task]()
    looked_at, last_error = 0, None
    places = candidates(source, n, seed)
    while len(found) < n and (refs := list(itertools.islice(places, LOOKS_AT_ONCE))):
        for made in await judge.tasks(refs):
            if isinstance(made, TaskTimeout):
                raise made  # a search of such would take hours
            if isinstance(made, TaskError):
                last_error = made
                continue
            looked_at += 1
            if len(found) < n and held_out(made.prompt) and made.prompt not in taken:
                found.setdefault(made.prompt, made)
    if len(found) < n:
        raise TaskError(
            f"{source.name}: {n} held-out questions wanted, {len(found)} different ones found among {looked_at} tasks"
        ) from last_error
    return list(found.values())


def candidates(source: SourceInfo, n: int, seed: int) -> Iterator[TaskRef]:
    """Where n held-out tasks are looked for: at consecutive indices of a procedural source, at random ones of a finite
    one, which has the seed 0."""
    looks = max(MIN_LOOKS, LOOKS_PER_TASK * n)
    if source.size is None:
        places = ((seed, index) for index in range(looks))
    else:
        places = ((0, index) for index in random.Random(seed).sample(range(source.size), min(looks, source.size)))
    for task_seed, index in places:
        yield TaskRef(source=source.name, version=source.version, config=source.config, seed=task_seed, index=index)


def digest(tasks: Mapping[str, Sequence[Task]]) -> str:
    """32 hex digits that two people have in common if they asked the same questions of the same sources (name, version
    and config); the order means nothing."""
    asked = sorted([t.ref.source, t.ref.version, t.ref.config, t.prompt] for family in tasks.values() for t in family)
    return hashlib.sha256(json.dumps(asked, separators=(",", ":")).encode()).hexdigest()[:DIGEST_CHARS]
