"""`swarm-node rollouts` and `swarm-node checkpoints`: what an operator sees while the daemon writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from node.checkpoint import CheckpointStore, Score
from node.cli import main
from node.journal import Journal
from swarm.types import FinishReason
from swarm.wire.codec import seal
from tests.builders import group, identity, judged, rollout, signed, task_ref

PEER = identity(9)
HOSTILE = "\x1b]0;owned\x07 \x9b2J \N{RIGHT-TO-LEFT OVERRIDE}evil\r[bold]markup[/bold]"


async def filled(directory: Path, journal: Journal) -> None:
    """Four own groups, of which the second is of another source, and a peer's."""
    for number in range(4):
        made = judged(signed(number), value=number / 10)
        if number == 1:
            other = group(ref=task_ref(1, source="test/other"), origin=identity().peer_id)
            made = judged(seal(other, identity()))
        await journal.keep(made)
    hostile = group(rollout(HOSTILE, FinishReason.LENGTH), ref=task_ref(7), origin=PEER.peer_id)
    await journal.keep(judged(seal(hostile, PEER), own=False))


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_it_reads_a_journal_that_is_being_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Journal.open(tmp_path / "journal.db", 1000) as journal:
        await filled(tmp_path, journal)
        listed = lines(said(capsys, "rollouts", "list", tmp_path, "--json"))
        assert [(entry["own"], entry["rewards"]) for entry in listed] == [(False, [0.0]), *[(True, r) for r in REWARDS]]
        assert {entry["id"] for entry in listed} == set(journal._ids)
        await journal.keep(judged(signed(50)))
        assert len(lines(said(capsys, "rollouts", "list", tmp_path, "--json"))) == 6
    assert len(lines(said(capsys, "rollouts", "list", tmp_path, "--json"))) == 6, "and one that nobody writes"


REWARDS = [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
"""Of the own ones, the newest first: groups answer "0" and "1"."""


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["--own"], 4),
        (["--foreign"], 1),
        (["--source", "other"], 1),
        (["--source", "test/echo"], 4),
        (["--min-reward", "0.5"], 2),
        (["--limit", "3"], 3),
        (["--since", "1h"], 5),
        (["--since", "2999-01-01"], 0),
        (["--own", "--source", "echo", "--min-reward", "1"], 1),
    ],
    ids=str,
)
async def test_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str], filters: list[str], count: int) -> None:
    async with Journal.open(tmp_path / "journal.db", 1000) as journal:
        await filled(tmp_path, journal)
        assert len(lines(said(capsys, "rollouts", "list", tmp_path, "--json", *filters))) == count


async def test_what_strangers_write_cannot_move_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Journal.open(tmp_path / "journal.db", 1000) as journal:
        await filled(tmp_path, journal)
    newest = lines(said(capsys, "rollouts", "list", tmp_path, "--json", "--foreign"))[0]["id"]
    shown = said(capsys, "rollouts", "show", tmp_path, newest[:10])
    assert "evil" in shown
    assert "[bold]markup[/bold]" in shown, "no markup, either"
    assert PEER.peer_id in shown.replace("\n", "")
    as_json = said(capsys, "rollouts", "show", tmp_path, newest, "--json")
    for text in (shown, as_json, said(capsys, "rollouts", "list", tmp_path)):
        assert all(char.isprintable() or char == "\n" for char in text)
    assert lines(as_json)[0]["text"] == HOSTILE


async def test_exports_have_a_record_for_each_rollout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Journal.open(tmp_path / "journal.db", 1000) as journal:
        await filled(tmp_path, journal)
        written = tmp_path / "all.jsonl"
        assert "9 rollouts" in said(capsys, "rollouts", "export", tmp_path, written, "--tokens")
        records = lines(written.read_text())
        table = tmp_path / "all.parquet"
        assert "9 rollouts" in said(capsys, "rollouts", "export", tmp_path, table, "--tokens")
        printed = lines(said(capsys, "rollouts", "export", tmp_path, "-", "--min-reward", "1"))
    assert parquet.read_table(table).to_pylist() == [
        replaced | {"logprobs": pytest.approx(replaced["logprobs"])} for replaced in records
    ]
    assert [(r["reward"], r["text"]) for r in printed] == [(1.0, "1"), (1.0, "0")]
    first = records[-2]
    assert (first["ids"], first["byte_lengths"], first["finish"], first["tokens"]) == ([48, 256], [1, 0], "stop", 2)
    assert first["logprob"] == pytest.approx(-1.0)


async def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollouts", "list", str(tmp_path)]) == 74
    assert f"there is no journal at {tmp_path / 'journal.db'}" in capsys.readouterr().err
    async with Journal.open(tmp_path / "journal.db", 1000) as journal:
        await filled(tmp_path, journal)
    there = tmp_path / "there.jsonl"
    there.touch()
    for words, code, sentence in (
        (("export", tmp_path, there), 2, "is there already"),
        (("export", tmp_path, tmp_path / "x.csv"), 2, "must end with .jsonl or .parquet"),
        (("export", tmp_path, tmp_path / "nowhere" / "x.jsonl"), 74, "cannot be written"),
        (("show", tmp_path, "ffffffffffffff"), 74, "no group in"),
    ):
        assert main(["rollouts", *map(str, words)]) == code
        assert sentence in capsys.readouterr().err


def saved(store: CheckpointStore, step: int, value: float | None, metric: str = "own_reward") -> None:
    score = None if value is None else Score.model_validate({"metric": metric, "value": value, "step": step})
    store.save(step, lambda directory: None, {}, {"step": step}, score)


def steps(store: CheckpointStore) -> list[int]:
    return [entry.step for entry in store.entries()]


def test_the_newest_the_best_and_the_pinned_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2, keep_best=1)
    for step, value in ((10, 0.5), (20, 0.9), (30, 0.6), (40, 0.7)):
        saved(store, step, value)
    assert steps(store) == [20, 30, 40]
    assert "30" in said(capsys, "checkpoints", tmp_path, "--pin", 30)
    saved(store, 50, 0.1, "held_out")
    saved(store, 60, 0.8)
    assert steps(store) == [30, 50, 60], "what was evaluated is worth more than what was rewarded"
    saved(store, 70, 0.2, "held_out")
    saved(store, 80, None)
    assert steps(store) == [30, 70, 80]
    best, newest = store.best(), store.latest()
    assert best is not None
    assert newest is not None
    assert (best.step, newest.step) == (70, 80)
    entries = lines(said(capsys, "checkpoints", tmp_path, "--unpin", 30, "--json"))
    assert [(entry["step"], entry["pinned"]) for entry in entries] == [(30, False), (70, False), (80, False)]
    saved(store, 90, None)
    assert steps(store) == [70, 80, 90]
    (store.directory / "step-00000070" / "state.json").write_text("{}")
    best = store.best()
    assert best is not None
    assert best.step == 90, "the best is damaged, no other has a score: the newest"


def test_a_checkpoint_that_is_not_there_cannot_be_pinned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(tmp_path), "--pin", "7"]) == 74
    assert "there is no checkpoint of step 7" in capsys.readouterr().err
