"""Task sources: what they make, what they refuse and what they give marks for."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ConfigError, TaskError
from swarm.tasks import make_source
from swarm.tasks.base import SourceSpec, canonical_json, held_out
from swarm.tasks.gym import CHUNK, FORMS, REFUSED, ReasoningGymSource, difficulty_of
from swarm.tasks.jsonl import JsonlSource, math_equal
from swarm.tasks.scoring import final_answer


def gym(name: str, **config: object) -> ReasoningGymSource:
    return ReasoningGymSource(SourceSpec(type="reasoning_gym", name=name, config=canonical_json(config)))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("", ""),
        ("  42\n", "42"),
        ("so <answer> 42 </answer>.", "42"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer>1</answer> no: <answer>2", "1"),
        ("<answer>1</answer> </answer>", "1"),
        ("<answer><answer>1</answer></answer>", "1"),
        ("</answer>1<answer>", "</answer>1<answer>"),
        ("<answer>1", "<answer>1"),
        ("<answer></answer>", ""),
    ],
)
def test_the_answer_is_in_the_last_pair_of_tags(response: str, answer: str) -> None:
    assert final_answer(response) == answer


@given(st.text(alphabet="<answer>/ 1"), st.text(alphabet="0123456789", min_size=1))
def test_whatever_came_before_the_last_answer_wins_nothing(before: str, answer: str) -> None:
    assert final_answer(f"{before}<answer>{answer}</answer>") == answer


def test_one_question_in_eight_is_held_out() -> None:
    assert not held_out("123456789")  # the check value of CRC-32: 0xCBF43926, of which the last three bits are 110
    assert held_out("question 4")
    share = sum(held_out(f"question {i}") for i in range(8000)) / 8000
    assert abs(share - 1 / 8) < 0.02


def test_a_task_is_the_item_of_the_library() -> None:
    from reasoning_gym.factory import create_dataset

    source = gym("spell_backward", min_word_len=3, max_word_len=6)
    dataset = create_dataset("spell_backward", seed=1234, min_word_len=3, max_word_len=6)
    for index in (0, 7, 499):
        task = source.task(1234, index)
        assert task.prompt == dataset[index]["question"]
        assert task.answer == dataset[index]["answer"]
        assert task.ref.source == "reasoning_gym/spell_backward"
        assert task.ref.family == "spell_backward"
        assert task.ref.version == version("reasoning-gym") == "0.1.25"
        assert task.ref.config == '{"max_word_len":6,"min_word_len":3}'
        assert (task.ref.seed, task.ref.index) == (1234, index)


def test_a_dataset_that_draws_when_it_is_made_has_every_index() -> None:
    source = gym("gsm_symbolic")
    again = gym("gsm_symbolic")
    tasks = [source.task(5, index) for index in (0, CHUNK - 1, CHUNK, 2**32 - 1)]
    assert len({task.prompt for task in tasks}) == 4
    assert [again.task(5, task.ref.index) for task in reversed(tasks)] == tasks[::-1]


NAMES = ("spell_backward", "number_sorting", "rotate_matrix", "acre", "zebra_puzzles", "simple_integration", "survo")


def test_other_processes_make_the_same_tasks() -> None:
    code = """
import sys
from swarm.tasks.base import SourceSpec
from swarm.tasks.gym import ReasoningGymSource
for name in sys.argv[1:]:
    source = ReasoningGymSource(SourceSpec(type="reasoning_gym", name=name))
    print(ascii([source.task(seed, index) for seed in (0, 2**31) for index in (3, 100_000)]))
"""

    def start(hash_seed: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.Popen([sys.executable, "-c", code, *NAMES], env=environment, stdout=subprocess.PIPE)

    with start("1") as one, start("2") as other:
        made = one.communicate(timeout=60)[0]
        assert made == other.communicate(timeout=60)[0]
    assert made.count(b"\n") == len(NAMES)


@pytest.mark.parametrize(
    ("name", "config", "difficulty"),
    [
        ("spell_backward", {"min_word_len": 4, "max_word_len": 4}, '{"word_len":4}'),
        (
            "rotate_matrix",
            {"min_n": 2, "max_n": 2, "min_rotations": 1, "max_rotations": 1},
            '{"n":2,"num_rotations":1}',
        ),
        ("number_sorting", {"min_numbers": 3, "max_numbers": 3}, '{"numbers":3}'),
        ("gcd", {}, '{"num_terms":2}'),
        ("lcm", {}, "{}"),
        ("gsm_symbolic", {"difficulty": 1.0}, '{"difficulty":1.0}'),
    ],
)
def test_difficulty_is_the_items_own(name: str, config: dict[str, object], difficulty: str) -> None:
    assert gym(name, **config).task(0, 0).difficulty == difficulty


@pytest.mark.parametrize(
    ("metadata", "difficulty"),
    [
        ({}, "{}"),
        ({"difficulty": {"n": (1, 5)}}, "{}"),
        ({"difficulty": {"n": (1, 5)}, "n": 3}, '{"n":3}'),
        ({"difficulty": {"b": [1, 2], "a": 7}, "b": True}, '{"a":7,"b":true}'),
        ({"difficulty": {"p": (0, 1)}, "p": 0.5553630998}, '{"p":0.56}'),
        ({"difficulty": {"difficulty": 4}}, '{"difficulty":4}'),
        ({"difficulty": {"n": (1, 2)}, "n": [1]}, "{}"),
    ],
)
def test_difficulty_leaves_ranges_out(metadata: dict[str, object], difficulty: str) -> None:
    assert difficulty_of(metadata) == difficulty


def test_partial_credit_is_no_credit() -> None:
    source = gym("spell_backward", min_word_len=9, max_word_len=9)
    task = source.task(0, 0)
    entry = task.metadata["entry"]
    assert isinstance(entry, dict)
    from reasoning_gym.factory import create_dataset

    dataset = create_dataset("spell_backward", seed=0)
    nearly = task.answer[:-1] + "#"
    assert 0.8 < dataset.score_answer(nearly, entry) < 0.99
    assert dataset.score_answer(task.answer + "#", entry) > 1.0  # nine times a ninth
    assert [source.score(task, text) for text in (task.answer, nearly, task.answer + "#", "")] == [1.0, 0.0, 0.0, 0.0]


def test_a_palindrome_of_other_letters_wins_nothing() -> None:
    source = gym("palindrome_generation", min_length=3, max_length=3)
    task = source.task(0, 0)
    assert source.score(task, f"<answer>{task.answer}</answer>") == 1.0
    assert source.score(task, "<answer>###</answer>") == 0.0


def test_a_list_of_nan_is_not_sorted() -> None:
    source = gym("number_sorting", min_numbers=2, max_numbers=2)
    task = source.task(0, 0)
    assert source.score(task, task.answer) == 1.0
    assert source.score(task, "[NaN, NaN]") == 0.0
    assert source.score(task, "[Infinity, NaN]") == 0.0


def test_an_entry_that_did_not_travel_is_made_again() -> None:
    from dataclasses import replace

    source = gym("countdown")
    task = replace(source.task(3, 4), metadata={})
    assert source.score(task, task.answer) == 1.0
    assert source.score(task, "1+1") == 0.0


@pytest.mark.parametrize("name", sorted(FORMS))
def test_what_is_evaluated_cannot_be_code(name: str, tmp_path: Path) -> None:
    """Of these scorers: the right answer passes its form, and a response that is a program is not run."""
    source = gym(name)
    task = source.task(1, 2)
    assert source.score(task, task.answer) == 1.0
    target = tmp_path / "written"
    for program in (
        f"open({str(target)!r}, 'w')",
        f"[open({str(target)!r}, 'w')]",
        f"__import__('pathlib').Path({str(target)!r}).touch()",
        f"S(open({str(target)!r}, 'w'))",
    ):
        assert source.score(task, f"<answer>{program}</answer>") == 0.0
    assert not target.exists()
    assert source.score(task, "nan") == 0.0
    assert source.score(task, "x.y") == 0.0


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_agreed_upon_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^reasoning_gym/{name} cannot be used in a swarm: "):
        gym(name)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("spel_backward", {}, "no dataset 'spel_backward'; nearest are spell_backward"),
        ("spell_backward", {"max_word_length": 3}, r"config.max_word_length = 3: .* nearest are max_word_len"),
        ("spell_backward", {"max_word_len": "3"}, "max_word_len = '3' is a str; it must be a int"),
        ("spell_backward", {"max_word_len": True}, "max_word_len = True is a bool; it must be a int"),
        ("spell_backward", {"min_word_len": 0}, "config min_word_len = 0: min_word_len must be positive"),
        ("spell_backward", {"seed": 1}, r"config.seed = 1: seed and size are not settings"),
        ("spell_backward", {"size": 1}, r"config.size = 1: seed and size are not settings"),
        ("time_intervals", {"min_date": "1999-01-01"}, "min_date = '1999-01-01': a date cannot be written in a config"),
    ],
)
def test_bad_settings_are_named(name: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gym(name, **config)


@pytest.mark.parametrize("config", ["{", "[]", "1"])
def test_a_config_is_a_json_object(config: str) -> None:
    with pytest.raises(ConfigError, match="config"):
        make_source(SourceSpec(type="reasoning_gym", name="gcd", config=config))


def test_the_order_of_settings_means_nothing() -> None:
    spec = SourceSpec(type="reasoning_gym", name="spell_backward", config='{"min_word_len": 3, "max_word_len": 6}')
    assert make_source(spec).config == gym("spell_backward", max_word_len=6, min_word_len=3).config


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (2**32, 0), (0, 2**32)])
def test_seed_and_index_have_32_bits(seed: int, index: int) -> None:
    with pytest.raises(TaskError, match=f"seed {seed}, index {index}: both are integers from 0 to 4294967295"):
        gym("gcd").task(seed, index)


def test_an_item_that_the_library_cannot_make_is_no_task() -> None:
    with pytest.raises(TaskError, match=r"pool_matrix: no task at seed 4294967295, index 4294967295: ValueError: Seed"):
        gym("pool_matrix").task(2**32 - 1, 2**32 - 1)


WriteFile = Callable[..., SourceSpec]


@pytest.fixture
def file(tmp_path: Path) -> WriteFile:
    def write(*lines: str, verifier: str = "math") -> SourceSpec:
        path = tmp_path / "tasks.jsonl"
        path.write_text("\n".join(lines) + "\n" if lines else "")
        return SourceSpec(type="jsonl", name="t", config=canonical_json({"verifier": verifier}), path=str(path))

    return write


LINE = '{"prompt": "1+1?", "answer": "2"}'


def test_a_file_of_tasks(file: WriteFile) -> None:
    spec = file(
        LINE,
        '{"prompt": "Wörter", "answer": "a  b", "verifier": "exact", "difficulty": {"b": 1, "a": 2}}',
        '{"prompt": "c", "answer": "d", "difficulty": 3}',
    )
    source = make_source(spec)
    assert source.name == "jsonl/t"
    assert source.version == hashlib.sha256(Path(spec.path).read_bytes()).hexdigest()
    assert source.config == '{"verifier":"math"}'
    assert source.size == 3
    tasks = [source.task(0, index) for index in (2, 1, 0)]
    assert [task.prompt for task in tasks] == ["c", "Wörter", "1+1?"]
    assert [task.difficulty for task in tasks] == ['{"level":3}', '{"a":2,"b":1}', "{}"]
    assert [task.ref.index for task in tasks] == [2, 1, 0]
    assert source.score(tasks[2], "I say <answer>2.0</answer>") == 1.0
    assert source.score(tasks[1], "<answer> a b\n</answer>") == 1.0
    assert source.score(tasks[1], "A b") == 0.0


def test_the_default_verifier_is_the_configs(file: WriteFile) -> None:
    source = make_source(file(LINE, verifier="exact"))
    assert source.config == '{"verifier":"exact"}'
    assert source.score(source.task(0, 0), "2.0") == 0.0
    assert source.score(source.task(0, 0), "2") == 1.0


@pytest.mark.parametrize(("seed", "index"), [(1, 0), (0, 1), (0, -1)])
def test_a_file_has_one_seed_and_its_lines(file: WriteFile, seed: int, index: int) -> None:
    with pytest.raises(TaskError, match=f"seed {seed}, index {index}"):
        make_source(file(LINE)).task(seed, index)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[1]", "is a list, not an object"),
        ('{"prompt": "a"}', "answer = None; it must be a text"),
        ('{"prompt": " ", "answer": "b"}', "prompt = ' '; it must be a text that is not empty"),
        ('{"prompt": "a", "answer": 2}', "answer = 2; it must be a text"),
        ('{"prompt": "a", "answer": "b", "verifer": "math"}', "unknown key 'verifer'; allowed are answer, difficulty"),
        ('{"prompt": "a", "answer": "b", "verifier": "maths"}', "verifier = 'maths'; it is one of math, exact"),
        ('{"prompt": "a", "answer": "b", "difficulty": [1]}', r"difficulty = \[1\]; it must be an object"),
        ('{"prompt": "a", "answer": "b", "difficulty": NaN}', "Out of range float"),
        (json.dumps({"prompt": "a" * (1 << 20), "answer": "b"}), "is longer than 1048576 bytes"),
    ],
)
def test_a_bad_line_is_named(file: WriteFile, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"tasks\.jsonl, line 2: .*{message}"):
        make_source(file(LINE, line, LINE))


def test_bytes_that_are_not_utf8_are_a_bad_line(file: WriteFile) -> None:
    spec = file(LINE)
    Path(spec.path).write_bytes(b'{"prompt": "\xff", "answer": "b"}\n')
    with pytest.raises(ConfigError, match="line 1: is not JSON"):
        make_source(spec)


def test_bad_files_are_named(file: WriteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        make_source(file())
    with pytest.raises(ConfigError, match=r"jsonl/x: path '/nowhere/x' cannot be read: No such file"):
        JsonlSource(SourceSpec(type="jsonl", name="x", path="/nowhere/x"))
    with pytest.raises(ConfigError, match=r"config.verifier = 'maths'; it is one of math, exact"):
        make_source(file(LINE, verifier="maths"))
    monkeypatch.setattr("swarm.tasks.jsonl.MAX_FILE_BYTES", 10)
    with pytest.raises(ConfigError, match=r"has 34 bytes; at most 10 are allowed"):
        make_source(file(LINE))


@pytest.mark.parametrize(
    ("gold", "given", "equal"),
    [
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        ("0.5", r"$\frac{1}{2}$", True),
        ("x+1", "1+x", True),
        ("2^{10}", "1024", True),
        ("2^{10}", "2", False),
        ("1,000", "1000", True),
        ("(1,2)", "(1, 2)", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("3", "x=3", True),
        ("42", "43", False),
        ("5", "", False),
        ("3", "nan", False),
        ("A", "B", False),
    ],
)
def test_maths_is_compared_by_value(gold: str, given: str, equal: bool) -> None:
    assert math_equal(gold, given, tagged=True) is equal


@pytest.mark.parametrize("response", ["The answer is 42.", r"so \boxed{42}", "Thus $x = 42$"])
def test_maths_is_found_in_prose(response: str) -> None:
    assert math_equal("42", response, tagged=False)
    assert not math_equal("41", response, tagged=False)
