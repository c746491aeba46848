"""Adapters: beside a model, on disk as peft has them, merged, and refused where they do not belong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from node.commands.evaluate_policy import evaluate_policy
from node.config import Lora, NoAdapter, NodeConfig, PolicyConfig, TransformersEngine
from node.engine import lora
from node.engine.base import Weights
from node.engine.policy import Policy, load_plain, load_policy
from node.engine.text import load_codec
from node.engine.transformers import TransformersGenerator
from swarm.errors import CrashLoop, PolicyError
from swarm.types import PolicyVersion, SamplingParams
from tests.policies import save_tiny_policy

IDS = torch.arange(24)[None]
EVERY_LINEAR_LAYER = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("base"))


def load(model: str | Path, adapter: Lora | NoAdapter, resume_from: Path | None = None) -> Policy:
    return load_policy(PolicyConfig(model=str(model), adapter=adapter, device="cpu"), resume_from)


def trained(policy: Policy, seed: int = 1) -> dict[str, torch.Tensor]:
    """What a learner might have made of the adapter."""
    rng = torch.Generator().manual_seed(seed)
    named = [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]
    return {name: torch.randn(p.shape, generator=rng) / 4 for name, p in named}


def put(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def saved(policy: Policy, directory: Path) -> Path:
    directory.mkdir()
    policy.save(directory, trained(policy))
    return directory


def rewrite(directory: Path, **changes: object) -> None:
    """Of the adapter's config."""
    path = directory / lora.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Beside a model -------------------------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(base: Path):
    plain, policy = load(base, NoAdapter()), load(base, Lora(rank=4))
    assert torch.equal(logits(policy.model), logits(plain.model))
    assert policy.fingerprint == plain.fingerprint
    of_adapter = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert of_adapter == {name for name, _ in policy.model.named_parameters() if ".lora_" in name}
    assert {p.dtype for p in policy.model.parameters() if p.requires_grad} == {torch.float32}
    assert len(of_adapter) == 2 * len(EVERY_LINEAR_LAYER)
    assert plain.adapter is None
    assert policy.adapter is not None
    assert policy.adapter.lora == Lora(rank=4, targets=EVERY_LINEAR_LAYER)


def test_the_same_config_begins_with_the_same_adapter_and_leaves_chance_alone(base: Path):
    before = torch.get_rng_state()
    first, second = load(base, Lora(rank=4)), load(base, Lora(rank=4))
    assert torch.equal(torch.get_rng_state(), before)
    for (name, one), (_, other) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_model_is_still_one_of_transformers(base: Path):
    model = load(base, Lora(rank=4)).model
    assert isinstance(model, PreTrainedModel)
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        hidden = model.base_model(IDS).last_hidden_state
        assert torch.equal(head(hidden), logits(model))


def test_targets_are_named(base: Path):
    policy = load(base, Lora(rank=2, targets=("v_proj", "q_proj")))
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in trained(policy)}
    assert layers == {"q_proj", "v_proj"}


@pytest.mark.parametrize("target", ["qproj", "lm_head", "embed_tokens"])
def test_a_target_that_is_no_linear_layer_is_named(base: Path, target: str):
    with pytest.raises(PolicyError, match=rf"^policy\.adapter\.targets: '{target}' .* expected down_proj, gate_proj"):
        load(base, Lora(targets=("q_proj", target)))


def test_the_scale_is_alpha_over_rank(base: Path):
    """Twice the alpha is twice the product: the same as B doubled."""
    once, twice = (load(base, Lora(rank=4, alpha=alpha)) for alpha in (8.0, 16.0))
    tensors = trained(once)
    put(twice.model, tensors)
    put(once.model, {name: tensor * (2 if ".lora_B." in name else 1) for name, tensor in tensors.items()})
    torch.testing.assert_close(logits(once.model), logits(twice.model), atol=1e-6, rtol=0)


def test_what_is_sampled_with_has_the_adapter_too(base: Path):
    policy = load(base, Lora(rank=4))
    put(policy.model, trained(policy))
    copy = policy.sampling_copy("float32")
    assert torch.equal(logits(copy), logits(policy.model))
    assert {p.dtype for p in policy.sampling_copy("bfloat16").parameters()} == {torch.bfloat16}


async def test_a_generator_takes_over_what_is_trained_and_knows_no_other_name(base: Path):
    policy = load(base, Lora(rank=4))
    copy, tensors = policy.sampling_copy("float32"), trained(policy)
    put(policy.model, tensors)
    rng, params = torch.Generator().manual_seed(0), SamplingParams(max_new_tokens=4)
    prompt = IDS[0].numpy().astype(np.int32)
    generator = TransformersGenerator(copy, policy.codec, TransformersEngine(), PolicyVersion(0), rng)
    async with generator:
        await generator.load(Weights(version=PolicyVersion(1), tensors=tensors))
        (completion,) = await generator.sample(prompt, 1, params)
        assert completion.versions[0].version == 1
        assert torch.equal(logits(copy), logits(policy.model))
        await generator.load(Weights(version=PolicyVersion(2), tensors={"lm_heat.weight": torch.zeros(1)}))
        with pytest.raises(CrashLoop, match=r"KeyError: 'lm_heat\.weight'"):
            await generator.sample(prompt, 1, params)


# On disk --------------------------------------------------------------------------------------------------------------


def test_peft_loads_it_beside_the_untouched_base(base: Path, tmp_path: Path):
    policy = load(base, Lora(rank=4))
    directory = saved(policy, tmp_path / "adapter")
    assert not (directory / "config.json").exists()
    assert not (directory / "model.safetensors").exists()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    beside = peft.PeftModel.from_pretrained(plain, str(directory))
    put(policy.model, trained(policy))
    torch.testing.assert_close(logits(beside), logits(policy.model), atol=1e-6, rtol=0)


def test_it_is_written_as_peft_writes_it(base: Path, tmp_path: Path):
    directory = saved(load(base, Lora(rank=4, targets=("q_proj", "up_proj"))), tmp_path / "ours")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.PeftModel.from_pretrained(plain, str(directory)).save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = (load_file(tmp_path / who / lora.TENSORS) for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((directory / lora.CONFIG).read_text())["base_model_name_or_path"] == str(base)
    # ... and read as such
    read, again = lora.read_adapter(tmp_path / "ours"), lora.read_adapter(tmp_path / "theirs")
    assert read.lora == again.lora == Lora(rank=4, targets=("q_proj", "up_proj"))


def test_what_is_saved_is_what_is_given_and_comes_back(base: Path, tmp_path: Path):
    policy = load(base, Lora(rank=4))
    before = logits(policy.model)
    directory = saved(policy, tmp_path / "adapter")
    assert torch.equal(logits(policy.model), before)
    again = load(base, Lora(rank=4), directory)
    tensors = trained(policy)
    assert all(torch.equal(p, tensors[name]) for name, p in again.model.named_parameters() if p.requires_grad)
    assert again.fingerprint == policy.fingerprint
    assert again.codec.fingerprint == policy.codec.fingerprint
    assert again.adapter == policy.adapter


def test_a_base_may_move_and_may_not_change(base: Path, tmp_path: Path):
    directory = saved(load(base, Lora(rank=4)), tmp_path / "adapter")
    moved, other = save_tiny_policy(tmp_path / "moved"), save_tiny_policy(tmp_path / "other", seed=1)
    assert load(moved, Lora(rank=4), directory).adapter
    with pytest.raises(PolicyError, match=rf"^policy\.model: .*{other}.* adapter in {directory} .*{base}"):
        load(other, Lora(rank=4), directory)


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        (Lora(rank=8), r"^policy\.adapter\.rank is 8: the adapter in .* has 4$"),
        (Lora(rank=4, alpha=8.0), r"^policy\.adapter\.alpha is 8\.0: the adapter in .* has 32\.0$"),
        (
            Lora(rank=4, targets=("q_proj",)),
            r"^policy\.adapter\.targets is q_proj: .* has down_proj, gate_proj",
        ),
        (NoAdapter(), r'^policy\.adapter\.type = "none": the checkpoint in .* holds an adapter; .*`swarm-node export`'),
    ],
    ids=lambda value: value.type if isinstance(value, NoAdapter) else "",
)
def test_another_kind_than_is_configured_is_refused(
    base: Path, tmp_path: Path, adapter: Lora | NoAdapter, sentence: str
):
    directory = saved(load(base, Lora(rank=4)), tmp_path / "adapter")
    with pytest.raises(PolicyError, match=sentence):
        load(base, adapter, directory)


def test_a_whole_model_where_an_adapter_is_configured_is_refused(base: Path):
    with pytest.raises(PolicyError, match=r'^policy\.adapter\.type = "lora": the checkpoint in .* holds a whole model'):
        load(base, Lora(rank=4), base)


def test_what_plain_lora_has_not_is_refused(base: Path, tmp_path: Path):
    directory = saved(load(base, Lora(rank=4)), tmp_path / "adapter")
    rewrite(directory, use_dora=True, rank_pattern={"q_proj": 2})
    with pytest.raises(PolicyError, match=r"sets rank_pattern, use_dora: expected r, lora_alpha, target_modules only"):
        load_plain(str(directory))
    peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]).save_pretrained(str(directory))
    with pytest.raises(PolicyError, match=r"of type .*IA3: expected LORA"):
        load_plain(str(directory))


def test_a_torn_adapter_is_refused(base: Path, tmp_path: Path):
    directory = saved(load(base, Lora(rank=4)), tmp_path / "adapter")
    tensors = load_file(directory / lora.TENSORS)
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    save_file(tensors, directory / lora.TENSORS)
    with pytest.raises(PolicyError, match=r"has no tensor for .*q_proj\.lora_A\.weight: expected \[4, 32\]"):
        load_plain(str(directory))
    (directory / lora.TENSORS).write_bytes(b"torn")
    with pytest.raises(PolicyError, match=r"cannot be read"):
        load_plain(str(directory))
    (directory / lora.TENSORS).rename(directory / "adapter_model.bin")
    with pytest.raises(PolicyError, match=r"has no adapter_model\.safetensors: nothing but safetensors is loaded"):
        load_plain(str(directory))


# As a model -----------------------------------------------------------------------------------------------------------


def test_merged_it_is_a_plain_model_that_computes_the_same(base: Path):
    policy = load(base, Lora(rank=4))
    put(policy.model, trained(policy))
    before = logits(policy.model)
    assert float((before - logits(load(base, NoAdapter()).model)).abs().max()) > 0.05
    plain = lora.merged(policy.model)
    torch.testing.assert_close(logits(plain), before, atol=1e-5, rtol=0)
    untouched = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in untouched.named_parameters()]
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert not any("lora" in type(module).__module__ for module in plain.modules())


def test_an_adapters_directory_is_a_policy_of_either_kind(base: Path, tmp_path: Path):
    policy = load(base, Lora(rank=4))
    directory = saved(policy, tmp_path / "adapter")
    put(policy.model, trained(policy))
    plain, further = load(directory, NoAdapter()), load(directory, Lora(rank=4))
    torch.testing.assert_close(logits(plain.model), logits(policy.model), atol=1e-5, rtol=0)
    assert plain.adapter is None
    assert torch.equal(logits(further.model), logits(policy.model))
    assert further.adapter == policy.adapter
    assert further.fingerprint == policy.fingerprint
    assert plain.fingerprint != policy.fingerprint  # its base is what was merged


async def test_an_adapters_directory_can_be_evaluated_whatever_the_config_trains(base: Path, tmp_path: Path):
    directory = saved(load(base, Lora(rank=4)), tmp_path / "adapter")
    plain = {"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}
    policy = {"adapter": {"type": "lora", "rank": 2}, "device": "cpu"}
    config = NodeConfig.model_validate({"tasks": [plain], "policy": policy, "sampler": {"max_new_tokens": 2}})
    report = await evaluate_policy(str(directory), config, tasks=2, samples=1)
    assert report.families["plain"].tasks == 2


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(base: Path, tmp_path: Path):
    directory = saved(load(base, Lora(rank=4)), tmp_path / "adapter")
    for path in directory.iterdir():
        if path.name not in (lora.CONFIG, lora.TENSORS):
            path.unlink()
    assert load(directory, NoAdapter()).codec.fingerprint == load_codec(base).fingerprint


def test_a_base_that_is_gone_is_said(tmp_path: Path):
    base = save_tiny_policy(tmp_path / "base")
    directory = saved(load(base, Lora(rank=4)), tmp_path / "adapter")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(PolicyError, match=rf"{directory} is an adapter of '{base}', and there is no .* export --merge"):
        load(directory, NoAdapter())
    rewrite(directory, base_model_name_or_path=None)
    with pytest.raises(PolicyError, match=r" is an adapter of '', and there is no such directory"):
        load(directory, NoAdapter())


def test_an_adapter_of_an_adapter_is_refused(base: Path, tmp_path: Path):
    directory = saved(load(base, Lora(rank=4)), tmp_path / "adapter")
    second = saved(load(base, Lora(rank=4)), tmp_path / "second")
    rewrite(second, base_model_name_or_path=str(directory))
    with pytest.raises(PolicyError, match=r"an adapter is loaded from a local directory, beside a model"):
        load_plain(str(second))
