"""How good a policy is on questions that nobody trains on: pass@1 with an interval, and pass@k.

The estimators are pure; `evaluate` asks a generator and a judge, many tasks at a time so that the engine can batch.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from node.engine.base import Generator, TextCodec
from swarm.errors import TaskError, TaskTimeout
from swarm.tasks.base import HELD_OUT_IN, Judge, SourceInfo, held_out
from swarm.types import SamplingParams, ScoreStatus, Task, TaskRef

#: 97.5 % quantile of the normal distribution: 95 % intervals.
Z95 = 1.959963984540054
#: Tasks being answered at a time.
CONCURRENCY = 64
#: References looked at for each wanted task: 8 would do if no question came twice.
LOOKS_PER_TASK = 8 * HELD_OUT_IN
MIN_LOOKS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyResult:
    tasks: int
    samples: int
    """Per task."""
    pass_at_1: float
    """Mean over tasks of the share of fully right samples."""
    interval: tuple[float, float]
    """95 % of pass_at_1: `clustered_wilson`."""
    pass_at_k: float
    """With k = samples: mean over tasks of `pass_at_k`."""
    unscored: int
    """Samples that the source could not score; they count as wrong."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k samples drawn without replacement from n, of which c are right, include a right one:
    1 - C(n-c, k) / C(n, k) (Chen et al. 2021, eq. 1), unbiased for k <= n."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): expected 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), here also for an effective, fractional n."""
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"wilson(successes={successes}, n={n}): expected 0 <= successes <= n and n > 0")
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # the ends are exactly 0 and 1 there; rounding would say 1e-17
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def clustered_wilson(rates: Sequence[float], samples: int) -> tuple[float, float]:
    """Wilson's interval of the mean of per-task success rates, with an effective number of independent samples.

    Samples of one task are alike, so they are worth less than as many tasks: n_eff = p(1-p) / (s^2 / n) by the variance
    s^2 between the n tasks (Kish's design effect), no less than n and no more than n * samples.
    """
    n, rate = len(rates), float(np.mean(rates))
    effective = float(n)
    if n > 1 and 0 < rate < 1:
        of_mean = float(np.var(rates, ddof=1)) / n
        effective = n * samples if of_mean == 0 else min(max(rate * (1 - rate) / of_mean, n), n * samples)
    return wilson(min(rate * effective, effective), effective)


def family_result(correct: Sequence[int], samples: int, unscored: int = 0) -> FamilyResult:
    """From the number of right samples of each task."""
    rates = [c / samples for c in correct]
    return FamilyResult(
        tasks=len(correct),
        samples=samples,
        pass_at_1=float(np.mean(rates)),
        interval=clustered_wilson(rates, samples),
        pass_at_k=float(np.mean([pass_at_k(samples, c, samples) for c in correct])),
        unscored=unscored,
    )


async def evaluate(
    generator: Generator,
    codec: TextCodec,
    judge: Judge,
    tasks: Mapping[str, Sequence[Task]],
    samples: int,
    params: SamplingParams,
) -> dict[str, FamilyResult]:
    """`samples` answers to every task, by family. A family without tasks is left out. A sample is right when it has
    full marks; one that cannot be scored is not."""
    limit = asyncio.Semaphore(CONCURRENCY)

    async def answer(task: Task) -> tuple[int, int]:
        """How many samples are right, and how many have no score."""
        async with limit:
            completions = await generator.sample(codec.prompt(task), samples, params)
            scores = await judge.score(task, [codec.decode(completion.ids)[0] for completion in completions])
        right = sum(score.status is ScoreStatus.OK and score.reward >= 1.0 for score in scores)
        return right, sum(score.status is not ScoreStatus.OK for score in scores)

    async with asyncio.TaskGroup() as group:
        answers = {
            family: [group.create_task(answer(task)) for task in family_tasks] for family, family_tasks in tasks.items()
        }
    results = {family: [answered.result() for answered in answered_all] for family, answered_all in answers.items()}
    return {
        family: family_result([right for right, _ in counts], samples, sum(unscored for _, unscored in counts))
        for family, counts in results.items()
        if counts
    }


async def held_out_from(judge: Judge, source: SourceInfo, n: int, seed: int) -> list[Task]:
    """n held-out tasks of `source` with different questions, the same ones for the same seed.

    Raises TaskError when there are too few (after a bounded search), TaskTimeout when one cannot be made in time.
    """
    found = dict[str, Task]()
    looked_at, last_error = 0, None
    for ref in candidates(source, n, seed):
        if len(found) == n:
            break
        try:
            task = await judge.task(ref)
        except TaskTimeout:
            raise  # a search of such would take hours
        except TaskError as error:
            last_error = error
            continue
        looked_at += 1
        if held_out(task.prompt):
            found.setdefault(task.prompt, task)
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
