"""Judges, in this process and in a real child process."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from hostile_tasks import FAILING, HANGING, MISSING

from swarm.errors import ConfigError, TaskError, TaskTimeout
from swarm.tasks import judge as judge_module
from swarm.tasks.base import SourceSpec, canonical_json
from swarm.tasks.judge import MAX_RESPONSE_CHARS, LocalJudge, ProcessJudge
from swarm.types import Score, ScoreStatus, Task, TaskRef

pytestmark = pytest.mark.asyncio(loop_scope="module")

REF = TaskRef(source="hostile/a", version="1", config="{}", seed=0, index=0)
OK = Score(reward=1.0)
WRONG = Score(reward=0.0)
SPELLING = SourceSpec(type="reasoning_gym", name="spell_backward", config=canonical_json({"max_word_len": 6}))


def hostile(name: str = "a", path: str = "") -> SourceSpec:
    return SourceSpec(type="hostile_tasks:Hostile", name=name, path=path)


def at(index: int) -> TaskRef:
    return TaskRef(source=REF.source, version=REF.version, config=REF.config, seed=0, index=index)


async def until(condition: Callable[[], bool]) -> None:
    """Of another process, which has no events to wait for."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("judge") / "file", "precious")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def judge(path: Path) -> AsyncIterator[ProcessJudge]:
    async with ProcessJudge([hostile(path=str(path))], timeout_s=5.0) as judge:
        yield judge


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient() -> AsyncIterator[ProcessJudge]:
    async with ProcessJudge([hostile()], timeout_s=0.3) as judge:
        yield judge


async def test_both_judges_say_the_same() -> None:
    specs = [hostile(), SPELLING]
    local = LocalJudge(specs)
    async with ProcessJudge(specs) as remote:
        assert [(s.name, s.version, s.config, s.size) for s in remote.sources] == [
            (s.name, s.version, s.config, s.size) for s in local.sources
        ]
        spelling = local.sources[1]
        for index in range(5):
            ref = TaskRef(
                source=spelling.name, version=spelling.version, config=spelling.config, seed=2**32 - 1, index=index
            )
            task = await remote.task(ref)
            assert task == await local.task(ref)
            responses = [task.answer, f"<answer>{task.answer}</answer>", "no", ""]
            assert await remote.score(task, responses) == await local.score(task, responses) == [OK, OK, WRONG, WRONG]


async def test_a_judge_does_not_import_the_gym_into_the_node() -> None:
    code = """
import asyncio, sys
from swarm.tasks.base import SourceSpec
from swarm.tasks.judge import ProcessJudge

async def main():
    async with ProcessJudge([SourceSpec(type="reasoning_gym", name="gcd")]) as judge:
        print(judge.sources[0].name, "reasoning_gym" in sys.modules, "sympy" in sys.modules)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert output.decode().split() == ["reasoning_gym/gcd", "False", "False"]


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ("raise no\x1b[31m luck\n", "ValueError: no [31m luck "),
        ("raise " + "x" * 1000, "ValueError: " + "x" * 187 + "…"),
        ("return 1.5", "reward 1.5 is not in [0, 1]"),
        ("return nan", "reward nan is not in [0, 1]"),
    ],
)
async def test_what_a_source_raises_is_a_status(judge: ProcessJudge, response: str, detail: str) -> None:
    expected = [Score(reward=0.0, status=ScoreStatus.FAILED, detail=detail), OK]
    local = LocalJudge([hostile()])
    task = await local.task(REF)
    assert await local.score(task, [response, "right"]) == expected
    assert await judge.score(task, [response, "right"]) == expected


async def test_a_task_that_cannot_be_made_is_an_error(judge: ProcessJudge) -> None:
    for asked in (judge, LocalJudge([hostile()])):
        with pytest.raises(TaskError, match=r"ZeroDivisionError: no such luck"):
            await asked.task(at(FAILING))
        with pytest.raises(TaskError, match=r"^no such task$"):
            await asked.task(at(MISSING))


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (TaskRef(source="hostile/b", version="1", config="{}", seed=0, index=0), "'hostile/b' is none of ours"),
        (TaskRef(source="hostile/a", version="2", config="{}", seed=0, index=0), "another version: '2'; ours is '1'"),
        (TaskRef(source="hostile/a", version="1", config="[]", seed=0, index=0), "another config"),
        (TaskRef(source="hostile/a", version="1", config="{}", seed=2**32, index=0), "seed 4294967296"),
        (TaskRef(source="hostile/a", version="1", config="{}", seed=0, index=-1), "index -1"),
    ],
)
async def test_a_reference_to_nothing_of_ours_never_reaches_the_child(
    judge: ProcessJudge, ref: TaskRef, message: str
) -> None:
    assert judge.pid is not None
    os.kill(judge.pid, signal.SIGSTOP)  # whoever asked it would wait
    task = Task(ref=ref, prompt="", answer="", difficulty="{}")
    with pytest.raises(TaskError, match=message) as caught:
        await judge.task(ref)
    assert not isinstance(caught.value, TaskTimeout)
    (score,) = await judge.score(task, ["right"])
    assert score.status is ScoreStatus.FAILED
    assert score.detail in str(caught.value)
    os.kill(judge.pid, signal.SIGCONT)


async def test_made_tasks_are_remembered(judge: ProcessJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "TASKS_KEPT", 2)
    first = await judge.task(at(0))
    assert await judge.task(at(0)) is first
    await judge.task(at(1))
    assert await judge.task(at(0)) is first
    second = await judge.task(at(2))  # pushes out 1, the least recently used
    assert await judge.task(at(0)) is first
    assert await judge.task(at(2)) is second
    assert await judge.task(at(1)) == Task(ref=at(1), prompt="prompt 0 1", answer="right", difficulty="{}")
    assert await judge.task(at(2)) is second
    assert await judge.task(at(0)) is not first


async def test_who_hangs_is_killed_and_nobody_else_notices(impatient: ProcessJudge) -> None:
    task = await impatient.task(REF)
    before = impatient.pid
    assert before is not None
    responses = [["right"], ["right", "hang"], ["right"], ["hang"], ["no", "right"]]
    scores = await asyncio.gather(*(impatient.score(task, group) for group in responses))
    timeout = Score(reward=0.0, status=ScoreStatus.TIMEOUT, detail="took longer than 0.3 s")
    assert scores == [[OK], [timeout] * 2, [OK], [timeout], [WRONG, OK]]
    assert impatient.pid != before
    assert not psutil.pid_exists(before)


async def test_making_a_task_has_a_time_limit_too(impatient: ProcessJudge) -> None:
    with pytest.raises(TaskTimeout, match=r"hostile/a: seed 0, index 100: took longer than 0\.3 s"):
        await impatient.task(at(HANGING))
    assert (await impatient.task(at(1))).prompt == "prompt 0 1"


async def test_several_tasks_are_one_turn(judge: ProcessJudge) -> None:
    task, ended = await judge.task(at(0)), list[str]()

    async def several() -> list[Task | TaskError]:
        made = await judge.tasks([at(0), at(1), replace(at(2), source="other"), at(3), at(1)])
        ended.append("several")
        return made

    async def one() -> None:
        await judge.score(task, ["right"])
        ended.append("one")

    made, *_ = await asyncio.gather(several(), one(), one())
    assert made[0] is task
    assert [m.prompt for m in made if isinstance(m, Task)] == ["prompt 0 0", "prompt 0 1", "prompt 0 3", "prompt 0 1"]
    assert isinstance(made[2], TaskError)
    assert "other" in str(made[2])
    assert ended == ["several", "one", "one"]


async def test_after_a_task_that_hangs_none_of_the_same_turn_is_tried(impatient: ProcessJudge) -> None:
    before = impatient.pid
    made = await impatient.tasks([at(1), at(HANGING), at(2)])
    assert [type(m) for m in made] == [Task, TaskTimeout, TaskTimeout]
    assert str(made[2]) == "hostile/a: seed 0, index 2: took longer than 0.3 s"
    assert (await impatient.task(at(2))).prompt == "prompt 0 2"
    assert impatient.pid != before


async def test_real_maths_can_hang(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"prompt": "How many?", "answer": "2"}\n')
    spec = SourceSpec(type="jsonl", name="big", path=str(file))
    async with ProcessJudge([spec], timeout_s=2.0) as judge:
        (source,) = judge.sources
        assert source.size == 1
        task = await judge.task(
            TaskRef(source=source.name, version=source.version, config=source.config, seed=0, index=0)
        )
        (score,) = await judge.score(task, ["<answer>9**9**9</answer>"])
        assert score.status is ScoreStatus.TIMEOUT
        assert await judge.score(task, ["<answer>4/2</answer>"]) == [OK]


async def test_a_child_that_dies_fails_its_request_only(judge: ProcessJudge) -> None:
    task = await judge.task(REF)
    died, fine = await asyncio.gather(judge.score(task, ["die"]), judge.score(task, ["right"]))
    assert died == [Score(reward=0.0, status=ScoreStatus.FAILED, detail="the judge's process has died")]
    assert fine == [OK]


async def test_a_child_that_died_between_requests_is_replaced(judge: ProcessJudge) -> None:
    before = judge.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    await until(lambda: judge.pid is None)
    assert await judge.score(await judge.task(REF), ["right"]) == [OK]
    assert judge.pid not in (None, before)


async def test_a_cancelled_request_does_not_cost_the_next_one(judge: ProcessJudge) -> None:
    task = await judge.task(REF)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await judge.score(task, ["hang"])
    assert await judge.score(task, ["right"]) == [OK]


async def test_what_a_task_prints_and_reads_is_nothing(judge: ProcessJudge) -> None:
    task = await judge.task(REF)
    assert await judge.score(task, ["print", "read", "right"]) == [WRONG, OK, OK]


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("remember", "MemoryError"),
        ("write secret", "PermissionError: a task may not open"),
        ("remove", "PermissionError: a task may not os.remove"),
        ("run", "PermissionError: a task may not subprocess.Popen"),
        ("connect", "PermissionError: a task may not socket.__new__"),
    ],
)
async def test_a_task_touches_nothing_else(judge: ProcessJudge, path: Path, response: str, error: str) -> None:
    score, after = await judge.score(await judge.task(REF), [response, "right"])
    assert score.status is ScoreStatus.FAILED
    assert score.detail.startswith(error)
    assert after == OK
    assert "precious" in await asyncio.to_thread(path.read_text)


async def test_the_child_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    async with ProcessJudge([hostile()]) as judge:
        task = await judge.task(REF)
        assert await judge.score(task, ["environment SECRET_TOKEN", "environment PATH"]) == [WRONG, OK]


async def test_more_text_than_a_message_may_have_is_not_scored(judge: ProcessJudge) -> None:
    task = await judge.task(REF)
    pid = judge.pid
    (score,) = await judge.score(task, ["x" * (MAX_RESPONSE_CHARS + 1)])
    assert score.status is ScoreStatus.FAILED
    assert "524288 are scored" in score.detail
    assert await judge.score(task, ["\U0001f9d0" * MAX_RESPONSE_CHARS]) == [WRONG]
    assert await judge.score(task, ["\ud800\n\0", "right"]) == [WRONG, OK]
    assert judge.pid == pid


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (hostile("refused"), "^this one refuses:   everything$"),
        (
            SourceSpec(type="gym", name="x"),
            r"task type 'gym' is unknown; it is one of 'reasoning_gym', 'arithmetic', 'jsonl'",
        ),
        (SourceSpec(type="nowhere:Source", name="x"), "task type 'nowhere:Source' cannot be imported"),
        (SourceSpec(type="hostile_tasks:HANGING", name="x"), "is a int, not something that makes a source"),
        (SourceSpec(type="reasoning_gym", name="spell_backwards"), "nearest are spell_backward"),
    ],
)
async def test_a_refused_source_is_a_config_error_here(spec: SourceSpec, message: str) -> None:
    before = children()
    with pytest.raises(ConfigError, match=message):
        await ProcessJudge([spec]).__aenter__()
    assert children() == before


async def test_the_same_source_twice_is_refused() -> None:
    before = children()
    with pytest.raises(ConfigError, match=r"task 'hostile/a' with config \{\} is there twice"):
        LocalJudge([hostile(), hostile()])
    with pytest.raises(ConfigError, match="is there twice"):
        await ProcessJudge([hostile(), hostile()]).__aenter__()
    assert children() == before


async def test_a_file_that_changed_is_another_source(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n')
    async with ProcessJudge([SourceSpec(type="jsonl", name="f", path=str(file))]) as judge:
        (source,) = judge.sources
        ref = TaskRef(source=source.name, version=source.version, config=source.config, seed=0, index=0)
        file.write_text('{"prompt": "a", "answer": "c!"}\n')
        with pytest.raises(TaskError, match="has changed since it was read"):
            await judge.task(ref)
        assert judge.pid is not None
        os.kill(judge.pid, signal.SIGKILL)
        await until(lambda: judge.pid is None)
        with pytest.raises(TaskError, match="task sources have changed since the judge was started"):
            await judge.task(ref)
        assert judge.pid is None


async def test_closing_leaves_no_process_and_tells_who_waits() -> None:
    before = children()
    async with ProcessJudge([hostile()]) as judge:
        task = await judge.task(REF)
        pid = judge.pid
        assert pid is not None
        busy = asyncio.create_task(judge.score(task, ["hang"]))
        waiting = asyncio.create_task(judge.score(task, ["right"]))
        await asyncio.sleep(0)
    assert not psutil.pid_exists(pid)
    assert children() == before
    assert [score.status for score in await busy + await waiting] == [ScoreStatus.FAILED] * 2
    with pytest.raises(TaskError, match="the judge is closed"):
        await judge.task(at(5))


async def test_the_child_does_not_end_at_ctrl_c(judge: ProcessJudge) -> None:
    pid = judge.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    assert await judge.score(await judge.task(REF), ["right"]) == [OK]
    assert judge.pid == pid


async def test_the_child_ends_at_the_end_of_its_input() -> None:
    settings = b'{"specs": [], "memory_bytes": 4294967296}\n'
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "swarm.tasks.worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(worker.communicate(settings), 20)
    assert (output, worker.returncode) == (b'{"sources": []}\n', 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
async def test_a_hanging_child_dies_with_its_parent() -> None:
    code = """
import asyncio
from swarm.tasks.base import SourceSpec
from swarm.tasks.judge import ProcessJudge
from swarm.types import TaskRef

async def main():
    async with ProcessJudge([SourceSpec(type="hostile_tasks:Hostile", name="a")], timeout_s=60) as judge:
        print(judge.pid, flush=True)
        await judge.task(TaskRef(source="hostile/a", version="1", config="{}", seed=0, index=100))

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    child = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), 60)))
    await until(lambda: child.cpu_times().user > 0.5)  # it hangs
    parent.kill()
    await parent.communicate()
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
