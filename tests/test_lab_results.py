from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import ArrowInvalid, parquet

from node.lab import records
from node.lab.experiment import Arm, Comparison, Experiment, Metric
from node.lab.experiments import EXPERIMENTS, load
from node.lab.plan import Choice, plan
from node.lab.records import check_available, records_path, write_records
from node.lab.results import Found, Outcome, Result, ResultStore, RunKey, digest, file_name
from swarm.errors import ConfigError
from tests.fake_experiment import EXPERIMENT, outcome

ROOT = Path(__file__).parents[1]
KEY = RunKey("fake", "a/b", 3)
DIGEST = digest({"lr": 1e-3})
OUTCOME = Outcome(
    summary={"pass": 0.123456789, "never": math.nan, "tokens": 123456.0},
    curves={"pass": [(0.0, 1 / 3), (123456.0, math.nan)], "empty": []},
)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_is_canonical_small_and_has_a_line_for_everything(store: ResultStore) -> None:
    path = store.put(KEY, DIGEST, OUTCOME, wall_s=1.26)
    assert path == store.root / "fake/a%2Fb/seed-3.json"
    versions = json.dumps(json.loads(path.read_text())["versions"], indent=2).replace("\n}", "\n }")
    assert path.read_text() == (
        '{\n "arm": "a/b",\n "curves": {\n  "empty": [],\n  "pass": [[0,0.33333],[123460,null]]\n },\n'
        f' "digest": "{DIGEST}",\n "experiment": "fake",\n "schema": 1,\n "seed": 3,\n'
        ' "summary": {\n  "never": null,\n  "pass": 0.123456789,\n  "tokens": 123456\n },\n'
        f' "versions": {versions},\n "wall_s": 1.3\n}}\n'
    )
    assert [file.name for file in path.parent.iterdir()] == ["seed-3.json"]


def test_what_was_put_is_read_back(store: ResultStore) -> None:
    store.put(KEY, DIGEST, OUTCOME, wall_s=1.26)
    result = store.get(KEY, DIGEST)
    assert result is not None
    assert (result.summary["pass"], result.summary["tokens"], result.wall_s) == (0.123456789, 123456.0, 1.3)
    assert math.isnan(result.summary["never"])
    assert result.curves["empty"] == []
    assert result.curves["pass"][0] == (0.0, 0.33333)
    assert {"swarm-node", "torch"} == result.versions.keys()


def test_a_result_of_other_settings_is_reported_not_used_and_replaced(store: ResultStore) -> None:
    assert store.find(KEY, DIGEST) == Found(None, "")
    store.put(KEY, DIGEST, OUTCOME, wall_s=1.0)
    other = digest({"lr": 2e-3})
    assert store.get(KEY, other) is None
    assert store.find(KEY, other) == Found(None, "made with other settings")
    store.put(KEY, other, Outcome({"pass": 1.0}, {}), wall_s=1.0)
    assert store.get(KEY, DIGEST) is None
    result = store.get(KEY, other)
    assert isinstance(result, Result)
    assert result.summary == {"pass": 1.0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a result: JSONDecodeError"),
        ("[]", "not a result: TypeError"),
        ('{"schema": 2}', "schema 2, not 1"),
        (f'{{"schema": 1, "digest": "{DIGEST}"}}', "not a result: KeyError('summary')"),
        (
            f'{{"schema": 1, "digest": "{DIGEST}", "summary": {{}}, "curves": {{"x": [[1]]}}}}',
            "not a result: ValueError",
        ),
    ],
)
def test_a_file_that_is_no_result_is_reported_and_not_used(store: ResultStore, text: str, why: str) -> None:
    store.path(KEY).parent.mkdir(parents=True)
    store.path(KEY).write_text(text)
    assert store.get(KEY, DIGEST) is None
    assert store.find(KEY, DIGEST).outdated.startswith(why)


@pytest.mark.parametrize("bad", [Outcome({"x": math.inf}, {}), Outcome({}, {"x": [(0.0, -math.inf)]})])
def test_an_infinite_number_is_refused_and_nothing_is_written(store: ResultStore, bad: Outcome) -> None:
    with pytest.raises(ValueError, match=r"(summary|curves)\.x = -?inf: expected a finite number"):
        store.put(KEY, DIGEST, bad, wall_s=1.0)
    assert not store.path(KEY).exists()


def test_names_become_different_file_names_that_stay_inside() -> None:
    names = ["a/b", "a%2Fb", "..", "%2E.", "J=4", "a b", "A+b,c", "é"]
    encoded = [file_name(name) for name in names]
    assert encoded[2] == "%2E."
    assert encoded[4] == "J=4"
    assert len(set(encoded)) == len(names)
    assert all("/" not in name and not name.startswith(".") for name in encoded)


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2.5]}) == digest({"b": (2.5,), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError):
        digest({"a": math.nan})
    with pytest.raises(TypeError):
        digest({"a": Path("x")})


# Claims ---------------------------------------------------------------------------------------------------------------


def test_one_claims_a_run_at_a_time_and_leaves_no_lock(store: ResultStore) -> None:
    with store.claim(KEY) as first, store.claim(KEY) as second, store.claim(RunKey("fake", "a/b", 4)) as other:
        assert (first, second, other) == (True, False, True)
        assert store.path(KEY).with_suffix(".lock").exists()
    assert list(store.path(KEY).parent.iterdir()) == []
    with store.claim(KEY) as again:
        assert again


def test_the_claim_of_a_dead_process_does_not_count(store: ResultStore) -> None:
    program = (
        "import os, sys; from pathlib import Path; from node.lab.results import *\n"
        "with ResultStore(Path(sys.argv[1])).claim(RunKey('fake', 'a/b', 3)) as ours:\n"
        "    print(ours, flush=True); sys.stdin.read(1); os._exit(9)"
    )
    command = [sys.executable, "-c", program, str(store.root)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with store.claim(KEY) as while_it_lives:
            assert not while_it_lives
    assert process.returncode == 9
    assert store.path(KEY).with_suffix(".lock").exists()
    with store.claim(KEY) as after:
        assert after


# Records --------------------------------------------------------------------------------------------------------------


def test_records_are_a_parquet_file_with_a_column_for_every_name(tmp_path: Path) -> None:
    path = records_path(tmp_path, KEY)
    assert path == tmp_path / "fake/a%2Fb/seed-3.parquet"
    write_records(path, [{"step": 1, "loss": 1}, {"step": 2, "loss": 0.5, "node": "alder"}])
    table = parquet.read_table(path)
    assert table.to_pydict() == {"step": [1, 2], "loss": [1.0, 0.5], "node": [None, "alder"]}
    assert parquet.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_records_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "seed-1.parquet"
    write_records(path, [{"step": 1}])
    with pytest.raises(ArrowInvalid):
        write_records(path, [{"step": 1}, {"step": "two"}])
    assert parquet.read_table(path).to_pydict() == {"step": [1]}
    assert list(tmp_path.iterdir()) == [path]


def test_without_pyarrow_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    check_available()
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--records needs pyarrow.*pip install 'swarm-node\[bench\]'"):
        check_available()


# Experiments ----------------------------------------------------------------------------------------------------------


def experiment(**changes: object) -> Experiment:
    values: dict[str, object] = {
        "name": "e",
        "version": 1,
        "question": "?",
        "setting": "",
        "arms": [Arm("a", {"x": 1}, lambda seed: outcome(0, seed)), Arm("b", {"x": 2}, lambda seed: outcome(0, seed))],
        "metrics": {"pass": Metric("pass")},
    }
    return Experiment(**{**values, **changes})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": ""}, "name = '': expected a plain file name"),
        ({"name": "a/b"}, "name = 'a/b': expected a plain file name"),
        ({"arms": [Arm("a", {"x": {1}}, lambda seed: outcome(0, seed))]}, "e: settings of a: Object of type set"),
        ({"arms": []}, "arms: expected at least one"),
        ({"arms": [Arm("", {}, lambda seed: outcome(0, seed))]}, "arms: expected at least one, each with a name"),
        ({"arms": [*EXPERIMENT.arms, EXPERIMENT.arms[0]]}, "e: arms has plain more than once"),
        ({"seeds": [1, 2, 1]}, "e: seeds has 1 more than once"),
        ({"arms": [Arm("a", {}, lambda seed: outcome(0, seed), (1, 6))]}, "e: a has seeds 6, beside 1, 2, 3, 4, 5"),
        ({"metrics": {}}, "metrics: expected at least one"),
        ({"metrics": {"pass": Metric("p", ".1q")}}, r"e: metrics\.pass\.format = '\.1q' formats no number"),
        ({"comparisons": [Comparison("a", "c")]}, "e: comparisons name c; arms are a, b"),
        ({"panels": [["a"], ["b", "c"]]}, "e: panels name c; arms are a, b"),
    ],
)
def test_an_experiment_whose_parts_do_not_fit_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        experiment(**changes)


def test_a_result_counts_until_settings_or_version_change() -> None:
    old = experiment()
    a, b = old.arms
    assert old.digest(a) == experiment(question="other", seeds=(9,)).digest(a)
    assert len({old.digest(a), old.digest(b), experiment(version=2).digest(a), experiment(name="f").digest(a)}) == 4


def test_what_the_tables_and_plots_would_miss_is_named() -> None:
    EXPERIMENT.check(outcome(0, 1))
    with pytest.raises(ValueError, match="fake: summary of a run lacks loss; it has pass"):
        EXPERIMENT.check(Outcome({"pass": 1.0}, {"pass": []}))
    with pytest.raises(ValueError, match="fake: curves of a run lacks pass; it has nothing"):
        EXPERIMENT.check(Outcome({"pass": 1.0, "loss": 1.0}, {}))


def test_an_experiment_is_found_by_its_module() -> None:
    assert load("tests.fake_experiment") is EXPERIMENT
    for reference, complaint in (
        ("tests.nowhere", "tests.nowhere cannot be imported"),
        ("tests.builders", "has no attribute 'EXPERIMENT'"),
        ("nonsense", "there is no experiment 'nonsense'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            load(reference)


def test_registered_experiments_bear_the_names_that_they_are_registered_by() -> None:
    assert [load(name).name for name in EXPERIMENTS] == list(EXPERIMENTS)


def test_the_nearest_names_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "node.lab.experiments.EXPERIMENTS", {"lag": "a.b", "swarm_size": "a.c", "fake": "tests.fake_experiment"}
    )
    with pytest.raises(ConfigError, match=r"there is no experiment 'swarmsize'; nearest are swarm_size$"):
        load("swarmsize")
    with pytest.raises(ConfigError, match=r"there is no experiment 'q'; there are fake, lag, swarm_size$"):
        load("q")
    assert load("fake") is EXPERIMENT


def test_the_plan_gives_every_arm_a_seed_before_any_gets_the_next(store: ResultStore) -> None:
    arms = EXPERIMENT.arms[:2]
    done, old = EXPERIMENT.key(arms[1], 1), EXPERIMENT.key(arms[0], 2)
    store.put(done, EXPERIMENT.digest(arms[1]), outcome(0.2, 1), wall_s=2.0)
    store.put(old, "other", outcome(0.0, 2), wall_s=3.0)
    todo = plan([Choice("tests.fake_experiment", EXPERIMENT, arms, (1, 2, 3))], store)
    assert [(run.key.arm, run.key.seed) for run in todo.missing] == [
        ("plain", 1), ("plain", 2), ("gain=0.2", 2), ("plain", 3), ("gain=0.2", 3)
    ]  # fmt: skip
    assert todo.past == {done: 2.0}
    assert todo.outdated == {old: "made with other settings"}


def test_an_arm_that_fewer_seeds_settle_is_made_with_those(store: ResultStore) -> None:
    first, second = experiment().arms
    settled = experiment(arms=[first, replace(second, seeds=(1, 2))])
    todo = plan([Choice("e", settled, settled.arms, range(2, 4))], store)
    assert [(run.key.arm, run.key.seed) for run in todo.missing] == [("a", 2), ("b", 2), ("a", 3)]
    assert list(settled.seeds_of(settled.arms[1], settled.screening_seeds)) == [101, 102]
    assert settled.digest(settled.arms[1]) == experiment().digest(second)
