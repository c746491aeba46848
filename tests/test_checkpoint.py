from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from node.checkpoint import CheckpointStore
from node.engine.optimizer_state import optimizer_tensors, restore_optimizer
from swarm.errors import CheckpointError

SIZE = 50_000


def put(store: CheckpointStore, step: int) -> Path:
    """A checkpoint whose every part says which step it is of."""

    def write_model(directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps({"step": step}))
        (directory / "shards").mkdir()
        save_file({"weight": torch.full((SIZE,), float(step))}, directory / "shards" / "model.safetensors")

    return store.save(step, write_model, {"moment": torch.full((SIZE,), float(step))}, {"step": step})


def check(store: CheckpointStore, step: int) -> None:
    """The newest checkpoint is of this step, in all its parts."""
    newest = store.latest()
    assert newest is not None
    assert newest.step == step
    assert newest.state == {"step": step}
    assert json.loads((newest.model_dir / "config.json").read_text()) == {"step": step}
    weights = load_file(newest.model_dir / "shards" / "model.safetensors")
    for tensor in (newest.tensors()["moment"], weights["weight"]):
        assert torch.equal(tensor, torch.full((SIZE,), float(step)))


def names(store: CheckpointStore) -> list[str]:
    return sorted(os.listdir(store.directory))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


# Writing and reading --------------------------------------------------------------------------------------------------


def test_there_is_none_at_first(store: CheckpointStore) -> None:
    assert store.latest() is None
    assert not store.directory.exists()


def test_reads_what_was_written_bit_for_bit(store: CheckpointStore) -> None:
    tensors = {
        "bf16": torch.randn(3, 4).bfloat16(),
        "transposed": torch.randn(3, 5).T,
        "scalar": torch.tensor(7.0),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "rng": torch.get_rng_state(),
    }
    state = {"tracker": {"a/b": [0.1, 1 / 3, 5e-324]}, "cursor": 2**63, "name": "ünï", "none": None}
    path = store.save(123, lambda directory: None, tensors, state)
    assert path.name == "step-00000123"
    newest = store.latest()
    assert newest is not None
    assert newest.path == path
    assert newest.state == state
    read = newest.tensors()
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (read[name], tensor))), name


def test_nothing_but_state_is_a_checkpoint_too(store: CheckpointStore) -> None:
    store.save(0, lambda directory: None, {}, {})
    newest = store.latest()
    assert newest is not None
    assert (newest.step, newest.tensors(), newest.state) == (0, {}, {})


def test_keeps_the_newest(store: CheckpointStore) -> None:
    for step in (5, 99_999_999, 100_000_000, 100_000_001):
        put(store, step)
        check(store, step)
    assert names(store) == ["step-100000000", "step-100000001"]


def test_keeps_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep = 0"):
        CheckpointStore(tmp_path, keep=0)


def test_a_step_can_be_saved_again(store: CheckpointStore) -> None:
    for value in (1, 2):
        store.save(50, lambda directory: None, {}, {"value": value})
    newest = store.latest()
    assert newest is not None
    assert newest.state == {"value": 2}
    assert names(store) == ["step-00000050"]


def test_foreign_files_do_no_harm(store: CheckpointStore) -> None:
    put(store, 1)
    (store.directory / "notes.txt").touch()
    (store.directory / "step-x").mkdir()
    check(store, 1)


# Failing --------------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_ones(store: CheckpointStore) -> None:
    put(store, 1)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))  # a quarter of one tensor
    try:
        with pytest.raises(CheckpointError, match=r"step-00000002 cannot be written: .*File too large"):
            put(store, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(store) == ["step-00000001"]
    check(store, 1)


def test_a_model_that_cannot_be_written_leaves_nothing(store: CheckpointStore) -> None:
    def no_space(directory: Path) -> None:
        (directory / "config.json").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    def bug(directory: Path) -> None:
        raise KeyError("weight")

    with pytest.raises(CheckpointError, match=r"step-00000001 cannot be written: .*No space left on device"):
        store.save(1, no_space, {}, {})
    with pytest.raises(KeyError):
        store.save(1, bug, {}, {})
    assert names(store) == []


@pytest.mark.parametrize("state", [{"loss": float("nan")}, {"rng": object()}])
def test_state_that_is_not_json_is_refused(store: CheckpointStore, state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="state of step 3 cannot be written as JSON"):
        store.save(3, lambda directory: None, {}, state)
    assert names(store) == []


# Damage ---------------------------------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize(
    "file",
    ["model/config.json", "model/shards/model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"],
)
def test_a_damaged_one_is_skipped(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], None]
) -> None:
    put(store, 1)
    newest = put(store, 2)
    damage(newest / file)
    check(store, 1)
    assert f"{newest} is skipped" in caplog.text


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"format": 1, "step": 2, "files": {}}'])
def test_a_manifest_must_be_one(store: CheckpointStore, manifest: str) -> None:
    put(store, 1)
    (put(store, 2) / "manifest.json").write_text(manifest)
    check(store, 1)


def test_a_renamed_one_is_not_believed(store: CheckpointStore) -> None:
    put(store, 1)
    put(store, 2).rename(store.directory / "step-00000009")
    check(store, 1)


def test_all_damaged_is_none(store: CheckpointStore) -> None:
    for step in (1, 2):
        truncate(put(store, step) / "state.json")
    assert store.latest() is None


def test_another_format_is_an_error_and_not_skipped(store: CheckpointStore) -> None:
    put(store, 1)
    manifest = put(store, 2) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2, "new": "field"}))
    with pytest.raises(CheckpointError, match=r"step-00000002 has format 2, this program knows 1"):
        store.latest()


def test_going_on_from_before_a_damaged_one_sets_it_aside(store: CheckpointStore) -> None:
    put(store, 100)
    for step in (200, 300):
        flip(put(store, step) / "state.json")
    put(store, 110)
    check(store, 110)
    assert names(store) == ["step-00000110", "step-00000200.damaged", "step-00000300.damaged"]
    put(store, 120)
    check(store, 120)
    flip(put(store, 200) / "state.json")
    put(store, 130)
    assert names(store) == [
        "step-00000120",
        "step-00000130",
        "step-00000200.damaged",
        "step-00000300.damaged",
    ]


# Crashes --------------------------------------------------------------------------------------------------------------


def test_a_crash_between_the_two_renames_loses_nothing(store: CheckpointStore) -> None:
    path = put(store, 7)
    path.rename(path.with_name(f"{path.name}.superseded"))
    check(store, 7)
    put(store, 8)
    check(store, 8)
    put(store, 9)
    assert names(store) == ["step-00000008", "step-00000009"]


def test_leftovers_of_a_crash_are_removed(store: CheckpointStore) -> None:
    path = put(store, 7)
    path.rename(path.with_name(f".saving-{path.name}"))
    assert store.latest() is None
    put(store, 8)
    assert names(store) == ["step-00000008"]


# Imports once, then forks a saver for each round, because importing torch takes longer than all rounds together.
FORKING_SAVER = """
import os, sys
from pathlib import Path
import torch
from node.checkpoint import CheckpointStore
from test_checkpoint import put

def say(word, number):
    # In one call: unbuffered, print makes several, and a kill in between would tear the line.
    os.write(1, f"{word} {number}\\n".encode())

class Telling(CheckpointStore):
    def save(self, step, write_model, tensors, state):
        def write(directory):
            write_model(directory)
            say("writing", step)
        return super().save(step, write, tensors, state)

torch.set_num_threads(1)
store = Telling(Path(sys.argv[1]), keep=2)
while line := sys.stdin.readline():
    if (pid := os.fork()) == 0:
        say("pid", os.getpid())
        for step in range(int(line), 10**8):
            put(store, step)
            say("saved", step)
    _, status = os.waitpid(pid, 0)
    say("dead", os.waitstatus_to_exitcode(status))
"""


@contextmanager
def forking_saver(directory: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", FORKING_SAVER, str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parent) as process:
        yield process  # leaving closes its stdin, which ends it
    assert process.returncode == 0


def save_until_killed(server: subprocess.Popen[str], first: int, lines: int, delay_s: float) -> int:
    """Kills the saver so long after so many lines of its report; returns the last step that it reported as saved."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{first}\n")
    server.stdin.flush()
    pid, saved = 0, 0
    for number, line in enumerate(server.stdout):
        word, value = line.split()
        if word == "pid":
            pid = int(value)
        elif word == "saved":
            saved = int(value)
        elif word == "dead":
            assert int(value) == -signal.SIGKILL
            break
        if number == lines:
            due = time.perf_counter() + delay_s
            while time.perf_counter() < due:  # where in the save it strikes must not depend on a scheduler's tick
                pass
            os.kill(pid, signal.SIGKILL)
    return saved


def test_sigkill_at_any_moment_leaves_a_loadable_one(store: CheckpointStore) -> None:
    rng = random.Random(3)
    put(store, 1)
    newest = 1
    with forking_saver(store.directory) as server:
        for _ in range(15):
            saved = save_until_killed(server, newest + 1, rng.randrange(1, 6), rng.uniform(0, 0.01))
            found = store.latest()
            assert found is not None
            assert max(newest, saved) <= found.step <= max(newest, saved) + 1, "what was reported as saved is there"
            newest = found.step
            check(store, newest)
    put(store, newest + 1)
    check(store, newest + 1)
    assert names(store) == [f"step-{newest:08d}", f"step-{newest + 1:08d}"]


# Optimisers and random numbers ----------------------------------------------------------------------------------------


class Run:
    """A little training run with dropout, so that its random numbers matter."""

    def __init__(self, **options: bool) -> None:
        torch.manual_seed(1)
        layers = torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1), torch.nn.Linear(2, 2)
        self.model = torch.nn.ModuleList(layers)
        decayed = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), **options)
        named = list(self.model.named_parameters())
        self.names = [name for name, p in named if p.ndim == 2] + [name for name, p in named if p.ndim != 2]

    def train(self, steps: int) -> None:
        for _ in range(steps):
            hidden = torch.randn(4, 8)
            for layer in list(self.model)[:3]:  # the fourth never gets a gradient
                hidden = layer(hidden)
            self.optimizer.zero_grad()
            hidden.square().mean().backward()
            self.optimizer.step()

    def save(self, store: CheckpointStore, step: int) -> None:
        tensors = optimizer_tensors(self.optimizer, self.names) | {"rng": torch.get_rng_state()}
        weights = dict(self.model.state_dict())
        store.save(step, lambda directory: save_file(weights, directory / "model.safetensors"), tensors, {})

    def resume(self, store: CheckpointStore) -> None:
        newest = store.latest()
        assert newest is not None
        tensors = newest.tensors()
        self.model.load_state_dict(load_file(newest.model_dir / "model.safetensors"))
        torch.set_rng_state(tensors.pop("rng"))
        restore_optimizer(self.optimizer, self.names, tensors)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}])
def test_a_resumed_run_equals_an_uninterrupted_one(store: CheckpointStore, options: dict[str, bool]) -> None:
    whole = Run(**options)
    whole.train(5)
    whole.save(store, 5)
    whole.train(5)
    resumed = Run(**options)
    resumed.train(2)  # what it had before must not matter
    resumed.resume(store)
    resumed.train(5)
    expected, found = (optimizer_tensors(run.optimizer, run.names) for run in (whole, resumed))
    assert expected.keys() == found.keys()
    assert "0.weight/exp_avg_sq" in found
    assert not any(name.startswith("3.") for name in found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for mine, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_restored_state_keeps_its_own_precision_and_memory() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([parameter])
    tensors = {"p/step": torch.tensor(3.0), "p/exp_avg": torch.tensor([1 / 3, 2 / 3]), "p/exp_avg_sq": torch.ones(2)}
    restore_optimizer(optimizer, ["p"], tensors)
    state = optimizer.state[parameter]
    assert state["exp_avg"].dtype == torch.float32
    assert torch.equal(state["exp_avg"], tensors["p/exp_avg"])
    tensors["p/exp_avg"].zero_()
    assert state["exp_avg"][0] == torch.tensor(1 / 3)


def test_state_of_another_policy_is_refused() -> None:
    run = Run()
    run.train(1)
    tensors = optimizer_tensors(run.optimizer, run.names)
    fresh = Run()
    with pytest.raises(CheckpointError, match="'other/step' belongs to no parameter"):
        restore_optimizer(fresh.optimizer, fresh.names, tensors | {"other/step": torch.tensor(1.0)})
    with pytest.raises(CheckpointError, match=r"0\.bias/exp_avg has shape \[2\], its parameter has \[16\]"):
        restore_optimizer(fresh.optimizer, fresh.names, tensors | {"0.bias/exp_avg": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="5 names for the 6 parameters"):
        restore_optimizer(fresh.optimizer, fresh.names[1:], tensors)
    assert not fresh.optimizer.state


def test_nothing_of_the_earlier_state_is_left() -> None:
    run = Run()
    run.train(1)
    restore_optimizer(run.optimizer, run.names, {})
    assert not run.optimizer.state


# Going back -----------------------------------------------------------------------------------------------------------


def test_what_is_spared_stays_beside_the_newest(store: CheckpointStore) -> None:
    for step in (1, 2, 3, 4):
        store.save(step, lambda directory: None, {}, {}, spare=(1,))
    assert names(store) == ["step-00000001", "step-00000003", "step-00000004"]
    store.save(5, lambda directory: None, {}, {})
    assert names(store) == ["step-00000004", "step-00000005"]


def test_one_is_found_by_its_step_if_it_is_whole(store: CheckpointStore) -> None:
    for step in (1, 2):
        put(store, step)
    found = store.at(1)
    assert found is not None
    assert (found.step, found.state) == (1, {"step": 1})
    assert store.at(3) is None
    (found.path / "state.json").write_text("{}")
    assert store.at(1) is None


def test_what_was_given_up_is_dropped(store: CheckpointStore) -> None:
    for step in (1, 2):
        put(store, step)
    store.drop(range(2, 10))
    assert names(store) == ["step-00000001"]
