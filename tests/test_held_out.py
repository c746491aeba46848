"""The questions that are held out: found, the same for everybody, asked once, and never yielded by a producer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from builders import MEMBERSHIP, Characters, EchoJudge, identity, task_ref
from hypothesis import given, settings
from hypothesis import strategies as st

from node.algorithms import TrackerConfig
from node.config import SamplerConfig
from node.engine.base import Completion, Weights
from node.evaluate import digest, held_out_from, held_out_questions
from node.holds import Holds
from node.ledger import Ledger
from node.producer import Author, Producer
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from swarm.errors import TaskError, TaskTimeout
from swarm.tasks.base import SourceSpec, canonical_json, held_out
from swarm.tasks.judge import LocalJudge
from swarm.types import FinishReason, PolicyVersion, SamplingParams, Task, TaskRef, VersionSpan


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


async def test_a_search_takes_few_turns_of_a_judge_whom_others_wait_for() -> None:
    class Counting(SourceJudge):
        turns = 0

        async def tasks(self, refs: Sequence[TaskRef]) -> list[Task | TaskError]:
            self.turns += 1
            return await super().tasks(refs)

    source = NumberSource()
    judge = Counting(source)
    assert len(await held_out_from(judge, source, 20, seed=3)) == 20
    assert len(source.looked_at) == judge.turns * 32
    assert judge.turns < 10


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


def arithmetic_spec(**settings: object) -> SourceSpec:
    config = {"min_terms": 2, "max_terms": 3, "max_value": 9, "operations": "+-*", "modulus": 997, **settings}
    return SourceSpec(type="arithmetic", name="sums", config=canonical_json(config))


async def test_a_question_of_two_families_is_asked_once() -> None:
    short, long = (replace(arithmetic_spec(max_terms=n), name=name) for n, name in ((2, "short"), (3, "long")))
    questions = await held_out_questions(LocalJudge([short, long]), 20, 0)
    assert {family: len(tasks) for family, tasks in questions.items()} == {"short": 20, "long": 20}
    prompts = [task.prompt for tasks in questions.values() for task in tasks]
    assert len(set(prompts)) == 40
    alone = await held_out_questions(LocalJudge([long]), 20, 0)
    shared = {task.prompt for task in alone["long"]} & {task.prompt for task in questions["short"]}
    assert shared  # by itself, the second would ask some of the first one's
    assert all(held_out(prompt) for prompt in prompts)


async def test_families_of_one_name_are_told_apart() -> None:
    questions = await held_out_questions(LocalJudge([arithmetic_spec(), arithmetic_spec(max_value=8)]), 5, 0)
    assert [len(tasks) for tasks in questions.values()] == [5, 5]
    assert all(name.startswith("arithmetic/sums {") for name in questions)


async def test_the_digest_tells_who_asked_the_same() -> None:
    judge = LocalJudge([arithmetic_spec(), replace(arithmetic_spec(), name="more")])
    questions = await held_out_questions(judge, 8, 0)
    turned = {family: tasks[::-1] for family, tasks in reversed(questions.items())}
    fewer = {family: tasks[1:] for family, tasks in questions.items()}
    others = await held_out_questions(judge, 8, 1)
    assert digest(turned) == digest(questions)
    assert len({digest(questions), digest(fewer), digest(others)}) == 3
    versions = {f: [replace(t, ref=replace(t.ref, version="2")) for t in tasks] for f, tasks in questions.items()}
    assert digest(versions) != digest(questions)


def test_the_digest_is_the_same_for_ever() -> None:
    tasks = {"echo": [NumberSource().task(0, index) for index in (1, 0)]}
    said = b'[["test/echo","1","{}","Say 0."],["test/echo","1","{}","Say 1."]]'
    assert digest(tasks) == hashlib.sha256(said).hexdigest()[:32]


# Never trained on -----------------------------------------------------------------------------------------------------


class Silent:
    """A generator of empty answers."""

    max_length, in_flight = 100_000, 1

    async def sample(self, prompt: np.ndarray, n: int, params: SamplingParams) -> list[Completion]:
        spans = (VersionSpan(version=PolicyVersion(0), length=1),)
        ids, logprobs = np.zeros(1, np.int32), np.zeros(1, np.float32)
        return [Completion(ids=ids, logprobs=logprobs, versions=spans, finish=FinishReason.STOP)] * n

    async def load(self, weights: Weights) -> None: ...

    def make_room(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def gauges(self) -> Mapping[str, float]:
        return {}


def producer_of(judge: LocalJudge, seed: int) -> Producer:
    config, tracker = SamplerConfig(group_size=1, max_prompt_tokens=100_000), ValueTracker(TrackerConfig())
    running = Holds()
    author = Author(
        identity=identity(),
        membership=MEMBERSHIP,
        model="model-a",
        codec=Characters(),
        sampling=config.params,
    )
    return Producer(
        config=config,
        truncated="scored",
        sampler=TaskSampler(judge.sources, [1.0] * len(judge.sources), tracker, config, seed),
        tracker=tracker,
        judge=judge,
        generator=Silent(),
        author=author,
        version=lambda: PolicyVersion(0),
        running=running,
        ledger=Ledger(),
    )


async def evaluated_and_produced(
    specs: Sequence[SourceSpec], n: int, seed: int, groups: int
) -> tuple[set[str], set[str]]:
    """Questions of an evaluation, and those that a producer of the same sources makes groups of."""
    judge = LocalJudge(specs)
    evaluated = await held_out_questions(judge, n, seed)
    producer = producer_of(judge, seed)
    refs = [(await producer.next_group()).signed.group.task for _ in range(groups)]
    produced = {(await judge.task(ref)).prompt for ref in refs}
    return {task.prompt for tasks in evaluated.values() for task in tasks}, produced


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    max_value=st.integers(5, 7),
    modulus=st.sampled_from([0, 7]),
)
def test_a_producer_never_yields_an_evaluated_question(seed: int, max_value: int, modulus: int) -> None:
    """Of sources with so few questions that it would come across all of them."""
    specs = [
        arithmetic_spec(max_terms=2, max_value=max_value, modulus=modulus),
        SourceSpec(type="reasoning_gym", name="gcd", config=canonical_json({"min_value": 1, "max_value": max_value})),
    ]
    evaluated, produced = asyncio.run(evaluated_and_produced(specs, 2, seed, groups=100))
    assert len(evaluated) == 4
    assert len(produced) > 20
    assert not evaluated & produced
    assert not any(map(held_out, produced))


async def test_nor_one_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}.", "answer": str(n)}) + "\n" for n in range(64)))
    spec = SourceSpec(type="jsonl", name="said", config='{"verifier":"exact"}', path=str(path))
    evaluated, produced = await evaluated_and_produced([spec], 5, seed=0, groups=400)
    assert len(evaluated) == 5
    assert produced == {f"Say {n}." for n in range(64) if not held_out(f"Say {n}.")}
