"""Estimators with known values, the search for held-out tasks, and the whole evaluation over an exact generator."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import pytest
from builders import EchoJudge, task_ref

from node.engine.base import Completion, Weights
from node.evaluate import (
    CONCURRENCY,
    clustered_wilson,
    evaluate,
    family_result,
    held_out_from,
    pass_at_k,
    wilson,
)
from swarm.errors import TaskError, TaskTimeout
from swarm.tasks.base import held_out
from swarm.types import FinishReason, PolicyVersion, SamplingParams, Task, TaskRef, VersionSpan


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [(1, 0, 1, 0.0), (1, 1, 1, 1.0), (4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 1, 4, 1.0), (4, 0, 4, 0.0)],
)
def test_pass_at_k(n: int, c: int, k: int, value: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_of_nonsense(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass_at_k"):
        pass_at_k(n, c, k)


def test_wilson_by_hand() -> None:
    # z = 1 makes it arithmetic: centre (p + 1/2n) / (1 + 1/n), half sqrt(p(1-p)/n + 1/4n^2) / (1 + 1/n)
    low, high = wilson(2, 4, z=1.0)
    assert low == pytest.approx(0.5 - math.sqrt(1 / 16 + 1 / 64) / 1.25)
    assert high == pytest.approx(0.5 + math.sqrt(1 / 16 + 1 / 64) / 1.25)


def test_wilson_as_published() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


def test_wilson_of_nonsense() -> None:
    for successes, n in [(1, 0), (-1, 4), (5, 4)]:
        with pytest.raises(ValueError, match="wilson"):
            wilson(successes, n)


def test_one_sample_per_task_is_plain_wilson() -> None:
    assert clustered_wilson([1.0] * 3 + [0.0] * 7, samples=1) == pytest.approx(wilson(3, 10))


def test_samples_that_agree_within_their_task_are_worth_one() -> None:
    assert clustered_wilson([1.0] * 30 + [0.0] * 70, samples=8) == pytest.approx(wilson(30, 100))


def test_samples_are_worth_at_most_their_number() -> None:
    assert clustered_wilson([0.5] * 10, samples=4) == pytest.approx(wilson(20, 40))
    low, high = clustered_wilson([0.25, 0.5, 0.75, 0.5] * 10, samples=4)
    assert wilson(80, 160)[0] == pytest.approx(low)  # p(1-p)/s^2 is more than 4: capped
    assert high - low < np.diff(wilson(20, 40))


def test_nothing_varies_at_the_edges() -> None:
    assert clustered_wilson([0.0] * 20, samples=8) == wilson(0, 20)
    assert clustered_wilson([1.0] * 20, samples=8) == wilson(20, 20)


def test_family_result() -> None:
    result = family_result([0, 1, 4], samples=4, unscored=2)
    assert result.pass_at_1 == pytest.approx(5 / 12)
    assert result.pass_at_k == pytest.approx(2 / 3)
    assert (result.tasks, result.samples, result.unscored) == (3, 4, 2)
    assert result.interval[0] < 5 / 12 < result.interval[1]


@dataclass
class NumberSource:
    """The prompts of "Say 0." to "Say {distinct - 1}.", over and over."""

    name: str = "test/echo"
    version: str = "1"
    config: str = "{}"
    size: int | None = None
    distinct: int = 1_000_000
    looked_at: list[tuple[int, int]] = field(default_factory=list)

    def task(self, seed: int, index: int) -> Task:
        self.looked_at.append((seed, index))
        number = (1000 * seed + index) % self.distinct
        return Task(ref=task_ref(index, seed), prompt=f"Say {number}.", answer=str(number), difficulty="{}")

    def score(self, task: Task, response: str) -> float:
        return float(response == task.answer)


class SourceJudge(EchoJudge):
    def __init__(self, source: NumberSource) -> None:
        super().__init__([source])
        self.source = source

    async def task(self, ref: TaskRef) -> Task:
        return self.source.task(ref.seed, ref.index)


async def found(source: NumberSource, n: int, seed: int) -> list[Task]:
    return await held_out_from(SourceJudge(source), source, n, seed)


async def test_held_out_tasks_are_distinct_held_out_and_the_same_every_time() -> None:
    source = NumberSource()
    tasks = await found(source, 20, seed=3)
    assert len({task.prompt for task in tasks}) == 20
    assert all(held_out(task.prompt) for task in tasks)
    assert tasks == await found(source, 20, seed=3)
    assert tasks != await found(source, 20, seed=4)


async def test_a_finite_source_is_searched_within_its_bounds_and_once() -> None:
    source = NumberSource(size=50)
    with pytest.raises(TaskError, match=r"test/echo: 40 held-out questions wanted, \d+ different ones found among 50"):
        await found(source, 40, seed=3)
    assert sorted(source.looked_at) == [(0, index) for index in range(50)]


async def test_a_source_that_repeats_itself_is_given_up() -> None:
    source = NumberSource(distinct=20)
    with pytest.raises(TaskError, match="5 held-out questions wanted"):
        await found(source, 5, seed=0)
    assert len(source.looked_at) == 1000


async def test_tasks_that_do_not_exist_are_passed_over_and_named_in_the_end() -> None:
    source = NumberSource(size=5)
    with pytest.raises(TaskError, match="found among 0 tasks") as raised:
        await held_out_from(EchoJudge(size=0), source, 1, seed=0)
    assert "has no task" in str(raised.value.__cause__)


async def test_a_source_that_hangs_is_not_waited_for_twice() -> None:
    class Hanging(EchoJudge):
        async def task(self, ref: TaskRef) -> Task:
            self.asked += 1
            raise TaskTimeout("took too long")

    judge = Hanging()
    with pytest.raises(TaskTimeout):
        await held_out_from(judge, NumberSource(), 5, seed=0)
    assert judge.asked == 1


class Characters:
    """A codec of one token per character."""

    fingerprint, eos_id, vocab_size = "characters", 0, 128

    def prompt(self, task: Task) -> np.ndarray:
        return self.encode(task.prompt, FinishReason.LENGTH)

    def next_turn(self, message: str) -> np.ndarray:
        return self.encode(message, FinishReason.LENGTH)

    def encode(self, text: str, finish: FinishReason) -> np.ndarray:
        return np.array([ord(character) for character in text] + [0] * (finish is FinishReason.STOP), np.int32)

    def decode(self, ids: np.ndarray) -> tuple[str, np.ndarray]:
        return "".join(chr(token) for token in ids if token), (ids > 0).astype(np.int32)


class Echo:
    """Answers "Say N." with N in the first half of its samples, and with "?" in the others."""

    max_length, in_flight = 1024, 64

    def __init__(self) -> None:
        self.running = self.most_running = 0

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)  # lets the others in, as an engine that batches does
        self.running -= 1
        number = "".join(character for character in map(chr, prompt) if character.isdigit())
        return [self._completion(number if i < n // 2 else "?") for i in range(n)]

    async def load(self, weights: Weights) -> None: ...

    def make_room(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def gauges(self) -> Mapping[str, float]:
        return {}

    def _completion(self, text: str) -> Completion:
        ids = Characters().encode(text, FinishReason.STOP)
        spans = (VersionSpan(version=PolicyVersion(0), length=len(ids)),)
        return Completion(ids=ids, logprobs=np.zeros(len(ids), np.float32), versions=spans, finish=FinishReason.STOP)


async def test_evaluate_counts_right_wrong_and_unscored() -> None:
    source, generator = NumberSource(), Echo()
    tasks = {"echo": await found(source, 100, seed=0), "none": []}
    results = await evaluate(generator, Characters(), EchoJudge(), tasks, 4, SamplingParams())
    assert list(results) == ["echo"]
    assert results["echo"] == family_result([2] * 100, samples=4, unscored=200)
    assert results["echo"].pass_at_1 == 0.5
    assert results["echo"].pass_at_k == 1.0
    assert 1 < generator.most_running <= CONCURRENCY
