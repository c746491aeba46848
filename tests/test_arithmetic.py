"""Expressions of any length: what they say, what they come to, how hard they are, and what cannot be asked for."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import ArithmeticTasks
from swarm.errors import ConfigError, TaskError
from swarm.manifest import Manifest
from swarm.tasks import make_source
from swarm.tasks.arithmetic import MAX_TERMS, OPERATIONS, ArithmeticSource
from swarm.tasks.base import SourceSpec
from swarm.types import Task

SETTINGS = {"min_terms": 4, "max_terms": 4, "max_value": 20, "operations": "+-*", "modulus": 997}
ASKED = ", and take the result modulo 997. Give the answer, a number from 0 to 996, inside <answer></answer>."

places = st.integers(0, 2**32 - 1)


def source(**settings: object) -> ArithmeticSource:
    """Of 4 terms up to 20 modulo 997, but for what is said otherwise."""
    config = json.dumps(SETTINGS | settings)
    return ArithmeticSource(SourceSpec(type="arithmetic", name="sums", config=config))


def expression(task: Task) -> str:
    return task.prompt.removeprefix("Calculate ").split(",")[0].split(".")[0]


def value_of(expression: str) -> int:
    """Products before sums, by taking the text apart: another way than the source's."""
    sums = expression.replace(" - ", " + -").split(" + ")
    return sum(math.prod(-int(f[1:]) if f[0] == "-" else int(f) for f in product.split(" * ")) for product in sums)


# What is asked --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "asked", "answer"),
    [(0, "14 * 8 - 17 * 10", "939"), (1, "9 - 8 * 18 + 20", "882"), (2, "7 * 15 * 15 * 10", "795")],
)
def test_a_reference_is_the_same_task_for_ever(index: int, asked: str, answer: str) -> None:
    task = source().task(0, index)
    assert task.prompt == f"Calculate {asked}{ASKED}"
    assert (task.answer, task.difficulty) == (answer, '{"terms":4}')
    assert (task.ref.source, task.ref.version, task.ref.seed, task.ref.index) == ("arithmetic/sums", "1", 0, index)


def test_without_a_modulus_the_answer_is_the_value() -> None:
    task = source(modulus=0).task(0, 0)
    assert task.prompt == "Calculate 14 * 8 - 17 * 10. Give the answer, an integer, inside <answer></answer>."
    assert task.answer == "-58"


@given(
    seed=places,
    index=places,
    terms=st.tuples(st.integers(2, 12), st.integers(0, 6)),
    max_value=st.integers(1, 30),
    operations=st.sampled_from(OPERATIONS),
    modulus=st.sampled_from([0, 2, 10, 997]),
)
def test_every_task_keeps_to_its_settings_and_has_the_right_answer(
    seed: int, index: int, terms: tuple[int, int], max_value: int, operations: str, modulus: int
) -> None:
    least, most = terms[0], sum(terms)
    try:
        made = source(min_terms=least, max_terms=most, max_value=max_value, operations=operations, modulus=modulus)
    except ConfigError:
        assert modulus == 0
        assert max_value**most >= 10**18  # the only thing that these may not be
        return
    task = made.task(seed, index)
    words = expression(task).split()
    numbers, signs = [int(word) for word in words[::2]], words[1::2]
    assert least <= len(numbers) <= most
    assert json.loads(task.difficulty) == {"terms": len(numbers)}
    assert all(1 <= number <= max_value for number in numbers)
    assert set(signs) <= set(operations)
    value = value_of(expression(task))
    assert int(task.answer) == (value % modulus if modulus else value)
    assert made.score(task, f"<answer>{task.answer}</answer>") == 1.0
    assert task == made.task(seed, index)


def test_every_number_of_terms_number_and_operation_is_drawn() -> None:
    made = source(min_terms=2, max_terms=5, max_value=7)
    tasks = [made.task(0, index) for index in range(2000)]
    words = [expression(task).split() for task in tasks]
    assert {len(w) // 2 + 1 for w in words} == {2, 3, 4, 5}
    assert {number for w in words for number in w[::2]} == {str(n) for n in range(1, 8)}
    operations = Counter(operation for w in words for operation in w[1::2])
    assert all(0.3 < count / operations.total() < 0.37 for count in (operations[o] for o in "+-*"))


def test_neighbouring_seeds_have_other_tasks() -> None:
    made = source(max_terms=8)
    assert not {made.task(0, i).prompt for i in range(100)} & {made.task(1, i).prompt for i in range(100)}


def test_no_answer_is_worth_guessing() -> None:
    """With a modulus that is not a prime, most long products would be 0."""
    made = source(min_terms=12, max_terms=12, operations="*")
    answers = Counter(made.task(0, index).answer for index in range(2000))
    assert answers["0"] == 0
    assert answers.most_common(1)[0][1] < 20
    naive = source(min_terms=12, max_terms=12, operations="*", modulus=1000)
    assert Counter(naive.task(0, index).answer for index in range(2000))["0"] > 800


def test_the_longest_expression_is_made_in_no_time() -> None:
    task = source(min_terms=MAX_TERMS, max_terms=MAX_TERMS, max_value=10**9, operations="*").task(0, 0)
    assert expression(task).count("*") == MAX_TERMS - 1
    assert int(task.answer) == value_of(expression(task)) % 997


def test_other_processes_make_the_same_tasks() -> None:
    code = (
        "import json, sys; from swarm.tasks import make_source; from swarm.tasks.base import SourceSpec\n"
        "made = make_source(SourceSpec(type='arithmetic', name='sums', config=sys.argv[1]))\n"
        "print([made.task(2**31, index).prompt for index in range(5)])"
    )
    command = [sys.executable, "-c", code, json.dumps(SETTINGS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str([source().task(2**31, index).prompt for index in range(5)])


def test_there_are_no_other_places() -> None:
    for seed, index in [(-1, 0), (0, -1), (2**32, 0), (0, 2**32)]:
        with pytest.raises(TaskError, match="arithmetic/sums: seed"):
            source().task(seed, index)


# What an answer is worth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("<answer>939</answer>", 1),
        ("939", 1),
        (" <answer>\n 939 </answer> as I said", 1),
        ("<answer>1</answer>, no: <answer>939</answer>", 1),
        ("<answer>0939</answer>", 1),
        ("<answer>+939</answer>", 1),
        ("<answer>939</answer>, no: <answer>938</answer>", 0),
        ("<answer>-939</answer>", 0),
        ("<answer>-58</answer>", 0),  # right, but not modulo 997
        ("<answer>1936</answer>", 0),  # 939 + 997
        ("<answer>939.0</answer>", 0),
        ("<answer>938 + 1</answer>", 0),
        ("<answer>9 3 9</answer>", 0),
        ("<answer>9_39</answer>", 0),
        ("<answer>٩٣٩</answer>", 0),  # digits, but not ASCII
        ("the answer is 939", 0),
        ("<answer></answer>", 0),
        ("", 0),
        (f"<answer>{'0' * 38}939</answer>", 0),
        (f"<answer>{'9' * 10_000}</answer>", 0),  # too long for int()
    ],
)
def test_only_the_integer_itself_is_right(response: str, score: int) -> None:
    assert source().score(source().task(0, 0), response) == score


@given(st.text(alphabet="<answer>/ 0123456789-+"))
def test_whatever_is_written_is_scored(response: str) -> None:
    assert source().score(source().task(0, 0), response) in (0.0, 1.0)


def test_a_negative_answer_is_compared_as_a_number() -> None:
    made = source(modulus=0)
    task = made.task(0, 0)
    assert [made.score(task, text) for text in ("-58", "-058", "58", "+58", "--58", "- 58")] == [1, 1, 0, 0, 0, 0]


# What peers agree on --------------------------------------------------------------------------------------------------


def test_a_swarm_agrees_on_every_setting() -> None:
    ids = {Manifest.of("s", [made]).id for made in (source(), source(modulus=991), source(max_terms=5))}
    assert len(ids) == 3
    shuffled = SourceSpec(type="arithmetic", name="sums", config=json.dumps(dict(reversed(SETTINGS.items()))))
    assert Manifest.of("s", [make_source(shuffled)]).id == Manifest.of("s", [source()]).id


def test_the_config_has_what_the_source_wants() -> None:
    assert ArithmeticTasks().model_dump(exclude={"type", "name", "weight"}).keys() == SETTINGS.keys()
    assert get_args(ArithmeticTasks.model_fields["operations"].annotation) == OPERATIONS


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"min_terms": 1}, "config.min_terms = 1; it must be a whole number from 2 to 10000"),
        ({"max_terms": 10_001}, "config.max_terms = 10001; it must be a whole number from 2 to 10000"),
        ({"max_terms": 3}, "config.max_terms = 3; it must be at least min_terms (4)"),
        ({"max_terms": 4.5}, "config.max_terms = 4.5; it must be a whole number from 2 to 10000"),
        ({"max_value": 0}, "config.max_value = 0; it must be a whole number from 1 to 1000000000"),
        ({"max_value": True}, "config.max_value = True; it must be a whole number from 1 to 1000000000"),
        ({"max_value": "9"}, "config.max_value = '9'; it must be a whole number from 1 to 1000000000"),
        ({"operations": "/"}, "config.operations = '/'; it is one of '+', '-', '*', '+-', '+*', '-*', '+-*'"),
        ({"operations": "*+"}, "config.operations = '*+'; it is one of"),
        ({"operations": ""}, "config.operations = ''; it is one of"),
        ({"operations": ["+"]}, "config.operations = ['+']; it is one of"),
        ({"modulus": -1}, "config.modulus = -1; it must be a whole number from 0 to 1000000000"),
        ({"modulus": 1}, "config.modulus = 1; every answer would be 0: it must be 0 (none) or at least 2"),
        (
            {"modulus": 0, "max_terms": 20},
            "config.modulus = 0; with max_terms = 20, max_value = 20 and operations = '+-*' an answer may have 27"
            " digits, and at most 18 are allowed: set a modulus, or make the others smaller",
        ),
        ({"modulo": 7}, "config.modulo: there is no such setting; nearest is modulus"),
        ({"zzz": 7}, "config.zzz: there is no such setting; nearest is min_terms, max_terms, max_value,"),
    ],
)
def test_what_cannot_be_asked_for_is_said(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        source(**settings)
    assert str(caught.value).startswith(f"arithmetic/sums: {sentence}")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "config '{' is not JSON: "),
        ("[]", "config '[]' is not an object"),
        ("{}", "config.min_terms is missing; it must have min_terms, max_terms, max_value, operations, modulus"),
    ],
)
def test_a_config_that_is_none_is_said(config: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_source(SourceSpec(type="arithmetic", name="sums", config=config))
    assert str(caught.value).startswith(f"arithmetic/sums: {sentence}")


def test_sums_without_a_modulus_may_be_long() -> None:
    task = source(min_terms=500, max_terms=500, modulus=0, operations="+-").task(0, 0)
    assert int(task.answer) == value_of(expression(task))
