"""What `swarm-node export` writes: from a node's directory, a checkpoint or a model; as it is, or merged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from node import cli, exit_codes
from node.checkpoint import CheckpointStore, Score
from node.commands import export
from node.config import Lora, PolicyConfig
from node.engine.policy import Policy, load_policy
from node.engine.text import load_codec
from tests.policies import save_tiny_policy

ROOT = Path(__file__).parents[1]
IDS = torch.arange(24)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("base"))


@pytest.fixture
def with_adapter(base: Path) -> Policy:
    return adapted(str(base))


def adapted(base: str) -> Policy:
    """One whose adapter has learned something."""
    policy = load_policy(PolicyConfig(model=base, adapter=Lora(rank=4), device="cpu"))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.25, generator=rng)
    return policy


def trained(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in policy.model.named_parameters() if p.requires_grad}


def save(policy: Policy, data_dir: Path, step: int, keep: int = 2, reward: float | None = None) -> Path:
    """A checkpoint, where a node in `data_dir` has its."""
    store = CheckpointStore(data_dir / "checkpoints", keep)
    score = None if reward is None else Score(metric="own_reward", value=reward, step=step)
    return store.save(step, lambda directory: policy.save(directory, trained(policy)), {}, {}, score)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def loaded(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory)


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def run(*words: object) -> int:
    return cli.main(["export", *map(str, words)])


def test_the_newest_checkpoint_is_copied(with_adapter: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data_dir, out = tmp_path / "node", tmp_path / "out" / "model"
    save(with_adapter, data_dir, 1)
    with torch.no_grad():
        next(p for p in with_adapter.model.parameters() if p.requires_grad).zero_()
    newest = save(with_adapter, data_dir, 2)
    assert run(data_dir, out) == cli.OK
    assert capsys.readouterr().out == f"{out}: an adapter, from {newest / 'model'}\n"
    assert files(out) == files(newest / "model")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files(out).keys()
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_the_best_checkpoint_is_copied_where_that_is_asked_for(with_adapter: Policy, tmp_path: Path):
    data_dir = tmp_path / "node"
    paths = [save(with_adapter, data_dir, step, reward=reward) for step, reward in ((1, 0.75), (2, 0.5), (3, 0.25))]
    for out, words, expected in (("newest", [], paths[2]), ("best", ["--best"], paths[0])):
        assert run(data_dir, tmp_path / out, *words) == cli.OK
        assert files(tmp_path / out) == files(expected / "model")


def test_without_scores_the_newest_is_the_best(
    with_adapter: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save(with_adapter, tmp_path / "node", 1)
    newest = save(with_adapter, tmp_path / "node", 2)
    assert run(tmp_path / "node", tmp_path / "out", "--best") == cli.OK
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: an adapter, from {newest / 'model'}\n"


def test_a_checkpoint_and_a_model_are_sources_too(with_adapter: Policy, base: Path, tmp_path: Path):
    older = save(with_adapter, tmp_path / "node", 1)
    save(with_adapter, tmp_path / "node", 2)
    for number, (source, model) in enumerate(
        [(older, older / "model"), (older / "model", older / "model"), (base, base)]
    ):
        out = tmp_path / f"out-{number}"
        out.mkdir()  # an empty one will do
        assert run(source, out) == cli.OK
        assert files(out) == files(model)


def test_merged_it_is_a_plain_model(with_adapter: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint, out = save(with_adapter, tmp_path / "node", 1), tmp_path / "out"
    assert run(tmp_path / "node", out, "--merge") == cli.OK
    assert capsys.readouterr().out == f"{out}: a plain model, from {checkpoint / 'model'}\n"
    assert not (out / "adapter_config.json").exists()
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}
    torch.testing.assert_close(logits(loaded(out)), logits(with_adapter.model), atol=1e-5, rtol=0)
    assert load_codec(out).fingerprint == with_adapter.codec.fingerprint
    assert (out / "chat_template.jinja").read_bytes() == (checkpoint / "model" / "chat_template.jinja").read_bytes()


def test_merged_in_another_dtype(with_adapter: Policy, base: Path, tmp_path: Path):
    save(with_adapter, tmp_path / "node", 1)
    for source, out in ((tmp_path / "node", tmp_path / "of-adapter"), (base, tmp_path / "of-plain")):
        assert run(source, out, "--merge", "--dtype", "bfloat16") == cli.OK
        assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    torch.testing.assert_close(logits(loaded(tmp_path / "of-adapter")), logits(with_adapter.model), atol=0.1, rtol=0)


def test_a_plain_model_has_nothing_to_merge(base: Path, tmp_path: Path):
    assert run(base, tmp_path / "out", "--merge") == cli.OK
    assert files(tmp_path / "out") == files(base)


@pytest.mark.slow
def test_an_adapter_of_the_seed_model_finds_it_again(tmp_path: Path):
    policy = adapted("seed")
    checkpoint = save(policy, tmp_path / "node", 1)
    assert json.loads((checkpoint / "model" / "adapter_config.json").read_text())["base_model_name_or_path"] == "seed"
    assert run(checkpoint, tmp_path / "out", "--merge") == cli.OK
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), logits(policy.model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_running_node_may_replace_its_checkpoints_meanwhile(
    with_adapter: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
):
    """It finds one, the node removes that one before it is copied, and it takes a newer one."""
    data_dir, out = tmp_path / "node", tmp_path / "out"
    save(with_adapter, data_dir, 1)
    original: Callable[[Path, Path], Path] = export._copy_checkpoint
    asked = []

    def overtaken(checkpoint: Path, to: Path) -> Path:
        asked.append(checkpoint.name)
        if len(asked) == 1:
            for step in range(2, 2 + keep):
                save(with_adapter, data_dir, step, keep)
        return original(checkpoint, to)

    monkeypatch.setattr(export, "_copy_checkpoint", overtaken)
    assert run(data_dir, out) == cli.OK
    assert asked == ["step-00000001", f"step-{1 + keep:08d}"]
    assert files(out) == files(data_dir / "checkpoints" / asked[1] / "model")


def test_of_a_checkpoint_that_is_being_removed_no_part_is_taken(
    with_adapter: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = save(with_adapter, tmp_path / "node", 1)
    (checkpoint / "model" / "tokenizer.json").unlink()
    assert run(checkpoint, tmp_path / "out") == cli.FAILED
    assert "tokenizer.json" in capsys.readouterr().err
    assert run(tmp_path / "node", tmp_path / "out") == exit_codes.STORAGE
    assert "no data_dir with a whole checkpoint" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"node"}


def test_a_base_that_is_gone_is_said_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = save_tiny_policy(tmp_path / "base")
    policy = load_policy(PolicyConfig(model=str(base), adapter=Lora(rank=4), device="cpu"))
    save(policy, tmp_path / "node", 1)
    shutil.rmtree(base)
    assert run(tmp_path / "node", tmp_path / "out", "--merge") == cli.FAILED
    assert f"is an adapter of '{base}', and there is no such directory" in capsys.readouterr().err
    assert run(tmp_path / "node", tmp_path / "out") == cli.OK  # which needs no base
    assert {path.name for path in tmp_path.iterdir()} == {"node", "out"}


def test_wrong_arguments(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    for words, sentence in [
        ([tmp_path / "nowhere", tmp_path / "out"], f"SOURCE = {tmp_path / 'nowhere'}: there is no such directory"),
        ([base, full], f"OUT = {full} is there already: expected a directory that is new or empty"),
        ([base, full / "mine"], f"OUT = {full / 'mine'} is there already: expected a directory that is new or empty"),
        ([base, tmp_path / "out", "--dtype", "bfloat16"], "--dtype bfloat16 needs --merge: without it, files are"),
    ]:
        assert run(*words) == cli.USAGE
        assert capsys.readouterr().err.startswith(f"swarm-node: {sentence}")
    assert [path.name for path in full.iterdir()] == ["mine"]
    assert run(full, tmp_path / "out") == exit_codes.STORAGE
    assert capsys.readouterr().err.startswith(f"swarm-node: SOURCE = {full} is no model, no checkpoint and no data_dir")


def test_as_a_process(with_adapter: Policy, tmp_path: Path):
    checkpoint, out = save(with_adapter, tmp_path / "node", 1), tmp_path / "out"
    command = [sys.executable, "-m", "node.cli", "export", str(tmp_path / "node"), str(out), "--merge"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: a plain model, from {checkpoint / 'model'}\n"
    torch.testing.assert_close(logits(loaded(out)), logits(with_adapter.model), atol=1e-5, rtol=0)
