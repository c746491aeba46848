"""The whole evaluation over exact generators: what is asked, what an answer is, and what the answers come to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import Characters, EchoJudge, task, task_ref
from policies import save_tiny_policy

from node.commands.evaluate_policy import evaluate_policy
from node.config import NodeConfig
from node.engine.base import Completion, Weights
from node.estimators import clustered_wilson
from node.evaluate import CONCURRENCY, Answered, ask, evaluate, powers_of_two, summary
from swarm.tasks.base import SourceSpec, canonical_json
from swarm.tasks.judge import LocalJudge
from swarm.types import FinishReason, PolicyVersion, SamplingParams, Score, Task, VersionSpan


def completion(text: str) -> Completion:
    ids = Characters().encode(text, FinishReason.STOP)
    spans = (VersionSpan(version=PolicyVersion(0), length=len(ids)),)
    return Completion(ids=ids, logprobs=np.zeros(len(ids), np.float32), versions=spans, finish=FinishReason.STOP)


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
        return [completion(number if i < n // 2 else "?") for i in range(n)]

    async def load(self, weights: Weights) -> None: ...

    def make_room(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def gauges(self) -> Mapping[str, float]:
        return {}


async def test_answers_are_asked_for_many_at_a_time_and_scored() -> None:
    generator = Echo()
    tasks = {"echo": [task(task_ref(index)) for index in range(100)], "none": []}
    answered = await ask(generator, Characters(), EchoJudge(), tasks, 4, SamplingParams())
    assert list(answered) == ["echo"]
    for asked, question in zip(tasks["echo"], answered["echo"], strict=True):
        expected = (asked.answer, asked.answer, "?", "?")
        assert question == Answered(answers=expected, right=(True, True, False, False), unscored=2)
    assert 1 < generator.most_running <= CONCURRENCY


async def test_pass_at_1_by_family() -> None:
    tasks = {"echo": [task(task_ref(index)) for index in range(20)], "none": []}
    results = await evaluate(Echo(), Characters(), EchoJudge(), tasks, 4, SamplingParams())
    assert {family: result.pass_at_1 for family, result in results.items()} == {"echo": 0.5}
    assert (results["echo"].tasks, results["echo"].samples, results["echo"].unscored) == (20, 4, 40)
    assert list(results["echo"].pass_at_k) == [1]


class Says:
    """A generator whose samples are these texts; None for one that the engine fails on."""

    max_length, in_flight = 1024, 64

    def __init__(self, *texts: str | None) -> None:
        self.texts = texts

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        return [replace(completion(text or "1"), finish=_finish(text)) for text in self.texts]

    async def load(self, weights: Weights) -> None: ...

    def make_room(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def gauges(self) -> Mapping[str, float]:
        return {}


def _finish(text: str | None) -> FinishReason:
    return FinishReason.ERROR if text is None else FinishReason.STOP


async def answered_with(*texts: str | None) -> Answered:
    """To a question whose answer is 1."""
    config = {"min_terms": 2, "max_terms": 2, "max_value": 1, "operations": "*", "modulus": 7}
    judge = LocalJudge([SourceSpec(type="arithmetic", name="ones", config=canonical_json(config))])
    product = judge.sources[0].task(0, 0)
    assert product.answer == "1"
    answered = await ask(Says(*texts), Characters(), judge, {"a": [product]}, len(texts), SamplingParams())
    return answered["a"][0]


async def test_an_answer_is_what_the_scorer_sees() -> None:
    answered = await answered_with("1", "so <answer> 1\n</answer>", "<answer>2</answer><answer>1</answer>", " a \n b ")
    assert answered.answers == ("1", "1", "1", "a b")
    assert answered.right == (True, True, True, False)
    assert answered.unscored == 0


class Generous(EchoJudge):
    async def score(self, task: Task, responses: Sequence[str]) -> list[Score]:
        return [Score(reward=1.0) for _ in responses]


async def test_not_even_a_judge_that_likes_everything_makes_a_failure_right() -> None:
    asked = await ask(Says("1", None), Characters(), Generous(), {"a": [task()]}, 2, SamplingParams())
    assert asked["a"][0].right == (True, False)


async def test_what_the_engine_fails_on_is_wrong_counted_and_no_vote() -> None:
    answered = await answered_with("1", None, None)
    assert answered == Answered(answers=("1", "", ""), right=(True, False, False), unscored=2)
    assert summary([[answered]], [3]).majority_at_k[3].value == 1.0


# What it comes to -----------------------------------------------------------------------------------------------------


def question(answers: str, truth: str = "a", unscored: int = 0) -> Answered:
    """One letter an answer."""
    return Answered(answers=tuple(answers), right=tuple(letter == truth for letter in answers), unscored=unscored)


def test_a_familys_numbers() -> None:
    family = [question("aabb"), question("bbba", unscored=1), question("cccc"), question("aaaa", unscored=2)]
    result = summary([family], [2, 4])
    assert (result.tasks, result.samples, result.unscored) == (4, 4, 3)
    assert {k: e.value for k, e in result.pass_at_k.items()} == {
        1: (2 + 1 + 0 + 4) / 16,
        2: pytest.approx((5 / 6 + 1 / 2 + 0 + 1) / 4),
        4: 3 / 4,
    }
    assert {k: e.value for k, e in result.majority_at_k.items()} == {2: 2 / 4, 4: (0.5 + 0 + 0 + 1) / 4}
    assert result.pass_at_1 == 7 / 16
    assert result.pass_at_k[1].interval == clustered_wilson([[0.5, 0.25, 0.0, 1.0]], 4)
    assert result.majority_at_k[4].interval == clustered_wilson([[0.5, 0.0, 0.0, 1.0]], 4)


def test_families_count_the_same_however_many_questions_they_have() -> None:
    result = summary([[question("a")] * 3, [question("b")]], [1])
    assert result.pass_at_1 == 0.5
    assert result.pass_at_k[1].interval == clustered_wilson([[1.0] * 3, [0.0]], 1)
    assert result.tasks == 4
    assert result.majority_at_k == {}


def test_more_than_was_sampled_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="k=3"):
        summary([[question("ab")]], [3])


@pytest.mark.parametrize(
    ("samples", "ks"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (9, [1, 2, 4, 8, 9])]
)
def test_the_k_that_nobody_chose(samples: int, ks: list[int]) -> None:
    assert powers_of_two(samples) == ks


# A model --------------------------------------------------------------------------------------------------------------


async def test_a_model_is_evaluated_on_the_same_questions_every_time(tmp_path: Path) -> None:
    directory = save_tiny_policy(tmp_path / "policy")
    tables = {
        "data_dir": str(tmp_path / "node"),
        "tasks": [
            {"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"},
            {"type": "arithmetic", "max_terms": 3},
        ],
        "policy": {"device": "cpu", "system_prompt": "Add."},
        "sampler": {"max_new_tokens": 2, "temperature": 0.9},
        "engine": {"type": "transformers"},
    }
    one, other, fewer = [
        await evaluate_policy(str(directory), NodeConfig.model_validate(tables | {"seed": seed}), tasks, 3, ks)
        for seed, tasks, ks in ((1, 5, None), (2, 5, [2]), (1, 4, None))
    ]
    assert one.digest == other.digest != fewer.digest
    assert (one.questions, one.samples, one.engine, one.system_prompt) == (10, 3, "transformers", "Add.")
    assert (one.model, one.fingerprint) == (str(directory), fewer.fingerprint)
    assert one.sampling == SamplingParams(max_new_tokens=2, temperature=0.9)
    assert list(one.families) == ["plain", "arithmetic"]
    assert list(one.overall.pass_at_k) == list(one.families["plain"].pass_at_k) == [1, 2, 3]
    assert list(other.overall.pass_at_k) == [1, 2]
    assert one.overall.pass_at_1 == pytest.approx(one.families["plain"].pass_at_1 / 2)  # sums are too hard for it
    assert one.families["plain"].pass_at_1 > 0
    assert not (tmp_path / "node").exists(), "a node may be running there"
