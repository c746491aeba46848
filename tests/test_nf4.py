"""A base in NF4: half a byte a weight, the same numbers for whoever computes, and an adapter that learns beside it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from node import cli
from node.algorithms import LearnerConfig
from node.checkpoint import CheckpointStore
from node.config import Lora, NoAdapter, PolicyConfig, TransformersEngine
from node.engine import nf4
from node.engine.base import Weights
from node.engine.flops import useful_flops
from node.engine.policy import Policy, describe, load_plain, load_policy
from node.engine.transformers import TransformersGenerator
from node.rl.batch import pack
from swarm.errors import PolicyError
from swarm.types import PolicyVersion, SamplingParams
from tests.policies import hide, needs_bitsandbytes, save_tiny_policy
from tests.test_batch import make_row
from tests.test_trainer import experience, trainer_of

NF4 = Lora(rank=4, base="nf4")
IDS = torch.arange(24)[None]
#: QLoRA (arXiv 2305.14314), appendix E.
LEVELS = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("base"))


def load(model: Path, adapter: Lora | NoAdapter = NF4, resume_from: Path | None = None, **changes: Any) -> Policy:
    return load_policy(PolicyConfig(model=str(model), adapter=adapter, device="cpu"), resume_from, **changes)


def trained(policy: Policy) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in policy.model.named_parameters() if p.requires_grad}


def learned(policy: Policy) -> Policy:
    """With what a learner might have made of the adapter."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(policy).values():
            parameter.normal_(std=0.25, generator=rng)
    return policy


def beside_rounded(base: Path) -> Policy:
    """In float32, with the base's linear weights as NF4 has them; the adapter is that of `learned`."""
    policy, of = load(base, Lora(rank=4)), load(base)
    with torch.no_grad():
        for name, layer in nf4.layers(of.model):
            policy.model.get_parameter(f"{name}.weight").copy_(layer.weight())
    return learned(policy)


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


def codes(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: layer.codes.clone() for name, layer in nf4.layers(model)}


# A layer --------------------------------------------------------------------------------------------------------------


@needs_bitsandbytes
def test_a_weight_takes_half_a_byte() -> None:
    layer = nf4.Nf4Linear(torch.nn.Linear(512, 1024, bias=False))
    number, scales = 512 * 1024, layer.scales
    assert (layer.codes.dtype, layer.codes.nbytes) == (torch.uint8, number // 2)
    assert (scales.absmax.dtype, scales.absmax.nbytes) == (torch.uint8, number // 64)
    assert scales.state2.absmax.nbytes == 4 * number // (64 * 256)
    assert list(layer.parameters()) == []
    assert dict(layer.named_buffers()).keys() == {"codes"}


@needs_bitsandbytes
@pytest.mark.parametrize("shape", [(64, 256), (48, 32), (7, 33), (6, 5)])
def test_a_weight_is_the_nearest_of_16_levels_of_its_block(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(shape[1], shape[0], bias=False)
    blocks = torch.nn.functional.pad(linear.weight.detach().flatten(), (0, -linear.weight.numel() % 64)).view(-1, 64)
    rounded = nf4.Nf4Linear(linear).weight()
    assert rounded.shape == shape
    there = torch.nn.functional.pad(rounded.flatten(), (0, -rounded.numel() % 64)).view(-1, 64)
    scales = there.abs().amax(-1, keepdim=True)  # of every block, one weight is its scale
    torch.testing.assert_close(scales, blocks.abs().amax(-1, keepdim=True), atol=0, rtol=0.1)  # in a byte
    near = (blocks / blocks.abs().amax(-1, keepdim=True))[..., None] - LEVELS
    torch.testing.assert_close(there / scales, LEVELS[near.abs().argmin(-1)], atol=1e-6, rtol=0)


@needs_bitsandbytes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_with_them_and_passes_the_gradient_on(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 32, bias=bias).requires_grad_(False)
    layer = nf4.Nf4Linear(linear).to(dtype)
    linear.weight.copy_(layer.weight())
    linear.to(dtype)
    x = torch.randn(3, 5, 48, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(each) for module, each in zip((layer, linear), inputs, strict=True)]
    assert outputs[0].dtype == dtype
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert torch.equal(inputs[0].grad, inputs[1].grad)


@needs_bitsandbytes
def test_nothing_is_kept_for_the_backward_pass_but_codes() -> None:
    layer, kept = nf4.Nf4Linear(torch.nn.Linear(64, 64)), list[torch.Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(2, 64, requires_grad=True))
    assert [tensor.data_ptr() for tensor in kept] == [layer.codes.data_ptr()]


@needs_bitsandbytes
def test_no_cast_and_no_copy_changes_what_a_weight_is_rounded_to() -> None:
    layer = nf4.Nf4Linear(torch.nn.Linear(64, 96))
    before = layer.weight()
    again = copy.deepcopy(layer).to(torch.bfloat16)
    assert torch.equal(again.weight(), before)
    assert again.codes.data_ptr() != layer.codes.data_ptr()
    assert again.bias is not None
    assert again.bias.dtype == torch.bfloat16


# A policy -------------------------------------------------------------------------------------------------------------


@needs_bitsandbytes
def test_linear_layers_are_in_nf4_and_nothing_else(base: Path) -> None:
    plain, policy = load(base, Lora(rank=4)), load(base)
    head = policy.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    assert len(codes(policy.model)) == 7
    kept = {name for name, p in policy.model.named_parameters() if not p.requires_grad}
    linear = {f"{name}.weight" for name in codes(policy.model)}
    assert kept == {name for name, p in plain.model.named_parameters() if not p.requires_grad} - linear
    assert all(torch.equal(p, plain.model.get_parameter(name)) for name, p in policy.model.named_parameters())
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    assert policy.size.parameters == plain.size.parameters == plain.model.num_parameters()
    assert describe(PolicyConfig(model=str(base), adapter=NF4)) == policy.size
    assert policy.size.quantised == 4 * 32 * 32 + 3 * 32 * 64
    assert nf4.weights_in(policy.model) == 4 * 32 * 32 + 3 * 32 * 64
    assert nf4.weights_in(plain.model) == 0
    batch = pack([make_row([1, 2, 3], [4, 5])], 100)
    assert useful_flops(policy.model, batch) == useful_flops(plain.model, batch)


@needs_bitsandbytes
def test_peers_see_the_model_that_it_was(base: Path) -> None:
    policy = load(base)
    assert policy.fingerprint == load(base, NoAdapter()).fingerprint
    assert policy.adapter is not None
    assert policy.adapter.base_digest == load(base, Lora(rank=4)).adapter.base_digest  # type: ignore[union-attr]


@needs_bitsandbytes
def test_it_computes_what_a_float32_model_with_the_rounded_weights_does(base: Path) -> None:
    policy, plain = learned(load(base)), beside_rounded(base)
    outputs = [logits(each.model) for each in (policy, plain)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    full = logits(learned(load(base, Lora(rank=4))).model)
    assert float((outputs[0] - full).detach().abs().max()) > 1e-3  # it is rounded
    for output in outputs:
        torch.log_softmax(output, -1)[..., 3].sum().backward()
    gradients = [{name: p.grad for name, p in each.model.named_parameters()} for each in (policy, plain)]
    assert {name for name, gradient in gradients[0].items() if gradient is not None} == trained(policy).keys()
    for name in trained(policy):
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-5, rtol=1e-5)


@needs_bitsandbytes
def test_layers_with_a_bias_too(tmp_path: Path) -> None:
    save_tiny_policy(tmp_path / "policy")
    config = Qwen2Config(
        vocab_size=json.loads((tmp_path / "policy" / "config.json").read_text())["vocab_size"],
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        intermediate_size=80,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "policy")
    policy, plain = learned(load(tmp_path / "policy")), beside_rounded(tmp_path / "policy")
    assert "model.layers.1.self_attn.q_proj.base_layer.bias" in dict(policy.model.named_parameters())
    torch.testing.assert_close(logits(policy.model), logits(plain.model), atol=1e-5, rtol=0)


@needs_bitsandbytes
async def test_what_samples_computes_what_the_learner_does(base: Path) -> None:
    """Its log-probabilities of what it sampled, one token at a time, are those of the learner's one pass."""
    policy = learned(load(base))
    sampling = policy.sampling_copy("float32")
    assert torch.equal(logits(sampling), logits(policy.model))
    tensors = {name: p.detach().clone() for name, p in trained(policy).items()}
    generator = TransformersGenerator(
        sampling, policy.codec, TransformersEngine(), PolicyVersion(0), torch.Generator().manual_seed(0)
    )
    prompt = IDS[0].numpy().astype(np.int32)
    async with generator:
        await generator.load(Weights(version=PolicyVersion(1), tensors=tensors))
        completions = await generator.sample(prompt, 4, SamplingParams(max_new_tokens=12))
    for completion in completions:
        probe = np.concatenate([prompt, completion.ids]).astype(np.int32)
        async with trainer_of(policy, probe=probe) as trainer:
            probed = (await trainer.weights()).probe
        assert probed is not None
        np.testing.assert_allclose(completion.logprobs, probed[len(prompt) - 1 :], atol=1e-5)


@needs_bitsandbytes
def test_in_16_bit_the_same_codes_sample(base: Path) -> None:
    policy = learned(load(base))
    sampling = policy.sampling_copy("bfloat16")
    assert {p.dtype for p in sampling.parameters()} == {torch.bfloat16}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = logits(policy.model)
    torch.testing.assert_close(logits(sampling).float(), expected.float(), atol=0.05, rtol=0)
    for (_, one), (_, other) in zip(nf4.layers(sampling), nf4.layers(policy.model), strict=True):
        assert torch.equal(one.weight(), other.weight())


# Learning -------------------------------------------------------------------------------------------------------------


async def stepped(base: Path, adapter: Lora = NF4, rounded: bool = False, **changes: Any) -> dict[str, torch.Tensor]:
    """The adapter after two steps of a learner with `changes`."""
    policy = beside_rounded(base) if rounded else learned(load(base, adapter))
    batch = [experience(learned(load(base)), [1.0, 0.0, 1.0, 0.0])]
    before, frozen = codes(policy.model), {n: p.clone() for n, p in policy.model.named_parameters()}
    dtype = torch.bfloat16 if changes.get("weights") == "bfloat16" else torch.float32
    async with trainer_of(policy, LearnerConfig(lr=1e-3, warmup_steps=0, **changes), dtype=dtype) as trainer:
        for _ in range(2):
            await trainer.step(batch)
        assert trainer.version == 2
        handed, (kept, _) = (await trainer.weights()).tensors, await trainer.snapshot()
    assert handed.keys() == kept.keys() == trained(policy).keys()
    after = codes(policy.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = {n for n, p in policy.model.named_parameters() if not torch.equal(p.to(torch.float32), frozen[n])}
    if dtype is torch.float32:
        assert moved == trained(policy).keys()
    return kept


@needs_bitsandbytes
async def test_a_step_moves_the_adapter_alone_and_as_beside_a_float32_base(base: Path) -> None:
    kept, exact = await stepped(base), await stepped(base, rounded=True)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, exact[name], atol=1e-5, rtol=0)


@needs_bitsandbytes
@pytest.mark.parametrize(
    "changes", [{"recompute_activations": True}, {"offload_optimizer": True}, {"deterministic": True}], ids=str
)
async def test_the_same_update_by_other_means(base: Path, changes: dict[str, Any]) -> None:
    plain, other = await stepped(base), await stepped(base, **changes)
    assert all(torch.equal(plain[name], tensor) for name, tensor in other.items())


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
async def test_compiled_it_learns_the_same(base: Path) -> None:
    plain, other = await stepped(base), await stepped(base, compile=True)
    for name, tensor in plain.items():
        torch.testing.assert_close(other[name], tensor, atol=2e-5, rtol=0)


@needs_bitsandbytes
async def test_weights_in_16_bit_are_those_of_the_adapter(base: Path) -> None:
    plain, other = await stepped(base), await stepped(base, weights="bfloat16")
    for name, tensor in plain.items():
        assert other[name].dtype == torch.float32
        torch.testing.assert_close(other[name], tensor, atol=4e-3, rtol=0)  # two updates of 1e-3, in any direction


# On disk --------------------------------------------------------------------------------------------------------------


def saved(policy: Policy, data_dir: Path) -> Path:
    """A checkpoint of it, where a node in `data_dir` has its."""
    store = CheckpointStore(data_dir / "checkpoints")
    tensors = {name: p.detach() for name, p in trained(policy).items()}
    return store.save(1, lambda directory: policy.save(directory, tensors), {}, {}) / "model"


@needs_bitsandbytes
def test_it_comes_back_as_it_was(base: Path, tmp_path: Path) -> None:
    policy = learned(load(base))
    directory = saved(policy, tmp_path / "node")
    again = load(base, resume_from=directory)
    assert torch.equal(logits(again.model), logits(policy.model))
    assert (again.adapter, again.fingerprint) == (policy.adapter, policy.fingerprint)


@needs_bitsandbytes
def test_what_an_adapter_was_trained_beside_is_not_changed_unnoticed(base: Path, tmp_path: Path) -> None:
    full, rounded = (saved(learned(load(base, each)), tmp_path / each.base) for each in (Lora(rank=4), NF4))
    with pytest.raises(PolicyError, match=r"^policy\.adapter\.base is full: the adapter in .* has nf4$"):
        load(base, Lora(rank=4), rounded)
    with pytest.raises(PolicyError, match=r"^policy\.adapter\.base is nf4: the adapter in .* has full$"):
        load(base, NF4, full)


@needs_bitsandbytes
def test_another_programs_adapter_is_trained_beside_either(base: Path, tmp_path: Path) -> None:
    policy = learned(load(base, Lora(rank=4)))
    assert policy.adapter is not None
    foreign = replace(policy, adapter=replace(policy.adapter, base_digest=""))
    directory = saved(foreign, tmp_path / "node")
    for adapter in (NF4, Lora(rank=4)):
        assert load(directory, adapter).adapter is not None


@needs_bitsandbytes
def test_merged_it_is_part_of_the_bases_own_weights(base: Path, tmp_path: Path) -> None:
    """Not of the rounded ones, that is what `Lora(base="full")` computes."""
    saved(learned(load(base)), tmp_path / "node")
    assert cli.main(["export", str(tmp_path / "node"), str(tmp_path / "out"), "--merge"]) == cli.OK
    expected = logits(learned(load(base, Lora(rank=4))).model)
    torch.testing.assert_close(logits(load_plain(str(tmp_path / "out"))), expected, atol=1e-5, rtol=0)


@needs_bitsandbytes
@pytest.mark.parametrize("tied", [True, False])
def test_for_an_engine_without_nf4_the_rounded_base_is_a_plain_model(tmp_path: Path, tied: bool) -> None:
    base = save_tiny_policy(tmp_path / "base", tied=tied)
    policy, out = load(base), tmp_path / "rounded"  # a new adapter changes nothing
    policy.save_base(out, "float32")
    assert load_file(out / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    torch.testing.assert_close(logits(load_plain(str(out))), logits(policy.model), atol=1e-5, rtol=0)
    policy.save_base(tmp_path / "small", "bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "small" / "model.safetensors").values()} == {torch.bfloat16}


# Refused --------------------------------------------------------------------------------------------------------------


def test_a_learner_on_several_devices_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "require", lambda: None)
    sentence = r'^policy\.adapter\.base = "nf4": a learner on several devices \(learner\.devices\) has "full" only$'
    with pytest.raises(PolicyError, match=sentence):
        load(Path("nowhere"), devices=(torch.device("cpu"),) * 2)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "bitsandbytes")
    monkeypatch.setattr(nf4, "_library", nf4._library.__wrapped__)  # not remembered from another test
    with pytest.raises(PolicyError, match=r'^policy\.adapter\.base = "nf4" needs bitsandbytes.*\[bitsandbytes\]'):
        load(Path("nowhere"))


def test_who_needs_no_bitsandbytes_does_not_wait_for_it() -> None:
    command = "import sys, node.engine.policy; sys.exit('bitsandbytes.functional' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], timeout=100, check=True)


def test_no_code_is_fetched_from_the_hub(tmp_path: Path) -> None:
    """bitsandbytes and transformers do, with a package that is not ours."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels was imported')")
    command = "import node.engine.lora; import kernels"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: import of kernels halted")
