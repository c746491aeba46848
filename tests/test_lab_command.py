from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest

from node import cli
from node.lab.results import ResultStore
from tests.fake_experiment import EXPERIMENT

FAKE = "tests.fake_experiment"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A directory with one result, of arm plain."""
    arm = EXPERIMENT.arm("plain")
    root = tmp_path / "docs/results"
    ResultStore(root).put(EXPERIMENT.key(arm, 2), EXPERIMENT.digest(arm), arm.run(2), wall_s=1.0)
    return root


def test_bench_lists_what_there_is(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "learn", FAKE, "--list", "--results", str(results), "--arms", "[pg]*"]) == cli.OK
    assert capsys.readouterr().out == "fake  Does gain help?\n    1/3  plain\n    0/3  gain=0.2\n"
    assert (
        cli.main(["bench", "learn", FAKE, "--list", "--results", str(results), "--arms", "plain", "--screen"]) == cli.OK
    )
    assert capsys.readouterr().out == "fake  Does gain help?\n    0/1  plain\n"
    words = ["bench", "learn", FAKE, "--list", "--results", str(results), "--arms", "plain", "--seeds"]
    for seeds, counted in (("1", "0/1"), ("2-3", "1/2"), ("3-3", "0/1")):
        assert cli.main([*words, seeds]) == cli.OK
        assert capsys.readouterr().out == f"fake  Does gain help?\n    {counted}  plain\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nonsense"], "swarm-node: there is no experiment 'nonsense'"),
        ([FAKE, "--arms", "x*"], "swarm-node: --arms x*: no arm is called so; there are plain, gain=0.2, raises,"),
        ([FAKE, "--results", "/dev/null/x"], "swarm-node: /dev/null/x cannot be used for results: Not a directory"),
    ],
)
def test_bench_with_a_wrong_argument(words: Sequence[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "learn", *words]) == cli.USAGE
    assert capsys.readouterr().err.startswith(complaint)


@pytest.mark.parametrize(
    ("seeds", "complaint"),
    [
        ("3-2", "there is no seed from 3 to 2"),
        ("0", "it must be a whole number from 1 on"),
        ("2-", "it must be a whole"),
    ],
)
def test_seeds_that_there_cannot_be(seeds: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "learn", FAKE, "--list", "--seeds", seeds])
    assert complaint in capsys.readouterr().err


def test_bench_runs_what_is_missing_reports_it_and_writes_the_page(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "learn", FAKE, "--arms", "[pg]*", "--seeds", "2", "--results", str(results), "--write-docs"]
    assert cli.main([*words, "--processes", "2"]) == cli.OK
    printed = capsys.readouterr().out
    assert sorted(" ".join(line.split()[1:4]) for line in printed.splitlines()[:3]) == [
        "fake/gain=0.2 seed 1", "fake/gain=0.2 seed 2", "fake/plain seed 1"
    ]  # fmt: skip
    assert "gain=0.2 against plain" in printed
    page = results.parent / "fake.md"
    block = page.read_text()
    assert "| gain=0.2 | 2 | 71.5 ± 0.7 % [n/a] | 1.29 ± 0.01 [n/a] |" in block
    assert "| dies | 0 | n/a | n/a |" in block
    assert "![held-out pass@1 of every arm](fake.png)\n\n![differences, one dot per seed, mean and interval](" in block
    assert (results.parent / "fake.png").stat().st_size > 10_000
    assert (results.parent / "fake-differences.png").stat().st_size > 5_000
    assert cli.main([*words, "--report"]) == cli.OK
    assert page.read_text() == block
    assert capsys.readouterr().out == printed[printed.index("\nfake: Does") :]


def test_bench_says_which_files_do_not_count(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "fake/plain/seed-2.json").write_text("torn")
    assert cli.main(["bench", "learn", FAKE, "--report", "--arms", "plain", "--results", str(results)]) == cli.OK
    printed = capsys.readouterr().out
    assert f"{results}/fake/plain/seed-2.json does not count: not a result: JSONDecodeError" in printed


def test_bench_fails_when_a_run_does(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "learn", FAKE, "--arms", "raises", "--screen", "--results", str(results)]
    assert cli.main(words) == cli.FAILED
    printed = capsys.readouterr().out
    assert printed.startswith("1/1 fake/raises seed 101 failed after")
    assert "ZeroDivisionError: nothing divides by seed 101 - 1" in printed


def test_bench_without_pyarrow_keeps_no_records(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = ["bench", "learn", FAKE, "--arms", "plain", "--results", str(results), "--records", str(results)]
    assert cli.main(words) == cli.USAGE
    assert capsys.readouterr().err.startswith("swarm-node: --records needs pyarrow")
