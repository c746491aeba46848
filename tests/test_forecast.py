"""Whether a policy fits is known from its description, before any of its weights are loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from node.algorithms import LearnerConfig
from node.config import Lora, NodeConfig, PolicyConfig, TransformersEngine, VllmEngine
from node.daemon import open_node
from node.engine.fits import answer
from node.engine.forecast import Memories, forecast, memories
from node.engine.memory import Device, Machine, ram
from node.engine.opening import choose, foresee
from node.engine.policy import describe, load_policy
from node.engine.room import OWN_BYTES, Demand, plan
from node.engine.size import GIB, ModelSize, PolicyBytes, batch_bytes, learner_bytes, policy_bytes, ram_bytes
from swarm.errors import EngineError, PolicyError
from tests.policies import save_tiny_policy
from tests.test_room import QWEN_1B, TINY

CPU = torch.device("cpu")
WITH_ADAPTER = replace(TINY, trainable=10_000)


def config_of(**tables: Mapping[str, Any]) -> NodeConfig:
    plain = {"type": "plugin", "factory": "tests.plain_tasks:Plain", "name": "plain"}
    learner = {"tokens_per_micro_batch": 500, "logit_chunk": 10}
    sampler = {"max_prompt_tokens": 40, "max_new_tokens": 10}
    defaults = {"tasks": [plain], "learner": learner, "sampler": sampler, "exchange": {"type": "none"}}
    return NodeConfig.model_validate(defaults | tables)


def memory(free: int, name: str = "RAM", *, learner: bool = True) -> Device:
    return Device(name=name, total=100 * GIB, free=free, learner=learner)


def on_the_cpu(free: int = 64 * GIB, *, vllm: bool = False) -> Memories:
    return Memories(ram=memory(free), learner=(), engine=Machine(kind="cpu", devices=(memory(free),)) if vllm else None)


def on_gpus(learner: int, engine: tuple[int, ...], free: int = 64 * GIB) -> Memories:
    """The learner's are the first ones."""
    cards = [memory(free, f"cuda:{number}", learner=number < learner) for number in range(8)]
    return Memories(
        ram=memory(free, learner=False),
        learner=tuple(cards[:learner]),
        engine=Machine(kind="cuda", devices=tuple(cards[number] for number in engine)),
    )


# What is taken --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "on_cpu", "expected"),
    [
        ({}, True, (4, 4, 0, 0)),
        ({}, False, (4, 0, 4, 4)),
        ({"weights": "bfloat16"}, True, (8, 6, 0, 0)),
        ({"weights": "bfloat16"}, False, (4, 0, 8, 6)),
        ({"offload_optimizer": True}, True, (8, 8, 0, 0)),
        ({"offload_optimizer": True}, False, (4, 4, 4, 4)),
        ({"weights": "bfloat16", "offload_optimizer": True}, False, (4, 4, 4, 2)),
        ({"devices": 2}, True, (12, 8, 0, 0)),
        ({"devices": 2}, False, (8, 4, 0, 2)),
        ({"devices": 2, "weights": "bfloat16"}, False, (8, 4, 0, 3)),
    ],
)
def test_bytes_of_a_parameter_of_the_policy(
    changes: dict[str, Any], on_cpu: bool, expected: tuple[int, int, int, int]
) -> None:
    loading, ram, converting, device = (each * TINY.parameters for each in expected)
    assert policy_bytes(TINY, LearnerConfig.model_validate(changes), on_cpu) == PolicyBytes(
        loading=loading, ram=ram, converting=converting, device=device
    )


def test_an_adapter_needs_float32_copies_of_itself_only() -> None:
    made = policy_bytes(WITH_ADAPTER, LearnerConfig(weights="bfloat16"), on_cpu=True)
    assert (made.loading, made.ram) == (4_040_000, 2_040_000)


@pytest.mark.parametrize(
    ("changes", "on_cpu", "standing", "passing"),
    [
        ({}, False, 12, 0),
        ({}, True, 12 + 16, 4),
        ({"offload_optimizer": True}, False, 12 + 8, 8),
        ({"offload_optimizer": True}, True, 12 + 8 + 8, 8),
        ({"devices": 2}, False, 12 + 4, 0),
        ({"devices": 2}, True, 12 + 4 + 12, 4),
    ],
)
def test_bytes_of_a_parameter_that_a_learner_takes_of_ram(
    changes: dict[str, Any], on_cpu: bool, standing: int, passing: int
) -> None:
    """Of a step only the update, whose temporaries are more than what a single token leaves."""
    learner = LearnerConfig.model_validate({"tokens_per_micro_batch": 1, "logit_chunk": 1} | changes)
    made = ram_bytes(TINY, "float32", 1, learner, TransformersEngine(), on_cpu)
    assert made.standing == standing * TINY.trainable
    if learner.num_devices == 1:
        assert made.passing == passing * TINY.trainable
    else:  # each of them puts layers together
        each = learner_bytes(TINY, "float32", 1, learner, TransformersEngine()).passing
        assert made.passing == (2 * each if on_cpu else 0)


def test_a_batch_of_the_transformers_engine() -> None:
    # 8 responses of 10 tokens and a prompt of 40, of 2 * 2 layers * 2 heads * 16 * 4 bytes; logits of 1000 tokens
    assert batch_bytes(TINY, "float32", 50, 10, 8) == (8 * 10 + 40) * 512 + 8 * 5 * 4000


# Whether it fits ------------------------------------------------------------------------------------------------------


def test_everything_in_ram_beside_the_transformers_engine() -> None:
    config = config_of()
    (made,) = forecast(TINY, config, TransformersEngine(batch_size=8), 50, on_the_cpu())
    step = 500 * 2 * 8992 + 40_000 + 400_000  # as in tests/test_room.py
    needed = 4_000_000 + 4_000_000 + (120 * 512 + 160_000) + (16 + 12) * 1_000_000 + step
    assert (made.device.name, made.needed, made.fits) == ("RAM", needed, True)
    assert str(made) == (
        "0.04 GiB are needed on RAM (policy 0.00 GiB, engine's copy 0.00 GiB, its batch at least 0.00 GiB, learner "
        "0.03 GiB and in a step 0.01 GiB more), and 60.80 GiB may be used (0.95 of 64.00 GiB free; 100.00 GiB in all)"
    )


def test_a_byte_too_few_is_too_few() -> None:
    config, engine = config_of(), TransformersEngine(batch_size=8)
    (made,) = forecast(TINY, config, engine, 50, on_the_cpu())
    enough = -(-made.needed // 19) * 20  # of which 0.95 is a whole number
    assert forecast(TINY, config, engine, 50, on_the_cpu(enough))[0].fits
    with pytest.raises(EngineError, match="does not fit"):
        forecast(TINY, config, engine, 50, on_the_cpu(enough - 40))


def test_weights_that_become_bfloat16_on_a_gpu_are_float32_there_first() -> None:
    small = {"tokens_per_micro_batch": 1, "logit_chunk": 1, "weights": "bfloat16"}
    config, size = config_of(policy={"dtype": "bfloat16"}, learner=small), replace(QWEN_1B, trainable=1_000_000)
    _, card, _ = forecast(size, config, VllmEngine(), 50, on_gpus(1, (1,)))
    assert (card.needed, card.parts) == (
        4 * QWEN_1B.parameters + 4_000_000,
        "policy before it is bfloat16 5.75 GiB",
    )


def test_what_is_loaded_goes_through_ram_on_its_way_to_a_gpu() -> None:
    ram, card = forecast(QWEN_1B, config_of(), VllmEngine(), 50, on_gpus(1, (0,)))
    assert ram.needed == 12 * QWEN_1B.trainable  # a checkpoint's copy is more than the 4 bytes of loading
    learner = learner_bytes(QWEN_1B, "float32", 50, config_of().learner, VllmEngine())
    kv_cache = (4 + 1) * 16 * 57_344  # a sequence of 50 tokens, and the block that vLLM keeps
    assert card.needed == 2 * 4 * QWEN_1B.parameters + OWN_BYTES + kv_cache + learner.whole
    adapter = replace(QWEN_1B, trainable=1_000_000)
    ram, _ = forecast(adapter, config_of(), VllmEngine(), 50, on_gpus(1, (0,)))
    assert (ram.needed, ram.parts) == (4 * QWEN_1B.parameters, "policy while it is loaded 5.75 GiB")


def test_gpus_of_the_learner_and_of_the_engine_are_all_looked_at() -> None:
    config = config_of(learner={"devices": 2, "tokens_per_micro_batch": 500, "logit_chunk": 10})
    made = forecast(QWEN_1B, config, VllmEngine(), 50, on_gpus(2, (2,)))
    assert [each.device.name for each in made] == ["RAM", "cuda:0", "cuda:1", "cuda:2"]
    learner = learner_bytes(QWEN_1B, "float32", 50, config.learner, VllmEngine())
    assert made[0].needed == (4 + 12 + 4) * QWEN_1B.parameters
    assert made[1].needed == made[2].needed == 2 * QWEN_1B.parameters + learner.whole
    assert made[3].needed == 4 * QWEN_1B.parameters + OWN_BYTES + 5 * 16 * 57_344


@pytest.mark.parametrize("sleep", [False, True])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_what_fits_by_its_description_fits_when_it_is_loaded(kind: str, sleep: bool) -> None:
    """In exactly as much memory as the forecast wants."""
    engine, config = VllmEngine(sleep=sleep), config_of()

    def where(free: int) -> Memories:
        return on_the_cpu(free, vllm=True) if kind == "cpu" else on_gpus(1, (0,), free)

    demand = forecast(QWEN_1B, config, engine, 50, where(4096 * GIB))[-1]
    free = -(-demand.needed * 20 // 19)
    forecast(QWEN_1B, config, engine, 50, where(free))
    there = where(free - 4 * QWEN_1B.parameters).engine
    assert there is not None
    assert plan(QWEN_1B, "float32", 50, config.learner, engine, there).max_in_flight >= 1


@pytest.mark.parametrize(
    ("where", "engine", "keys"),
    [
        (
            on_the_cpu(GIB),
            TransformersEngine(),
            "Lower learner.tokens_per_micro_batch (500), learner.logit_chunk (10), engine.batch_size (128); or set "
            'policy.dtype = "bfloat16", learner.recompute_activations = true, learner.optimizer = "adamw_8bit", '
            'policy.adapter.type = "lora", policy.model to a smaller one',
        ),
        (
            replace(on_gpus(1, (0,)), ram=memory(GIB, learner=False)),
            VllmEngine(),
            'set policy.adapter.type = "lora", policy.model to a smaller one',
        ),
        (
            on_gpus(1, (1,), 40 * GIB),
            VllmEngine(),
            "Lower learner.tokens_per_micro_batch (500), learner.logit_chunk (10); or set "
            'policy.dtype = "bfloat16", learner.recompute_activations = true, learner.optimizer = "adamw_8bit", '
            'learner.offload_optimizer = true, policy.adapter.type = "lora", learner.devices to more GPUs, '
            "policy.model to a smaller one",
        ),
    ],
    ids=["RAM", "RAM beside a GPU", "the learner's own GPU"],
)
def test_what_does_not_fit_is_told_which_keys_to_change(
    where: Memories, engine: VllmEngine | TransformersEngine, keys: str
) -> None:
    size = QWEN_1B if where.learner == () or where.ram.free == GIB else replace(QWEN_1B, parameters=3 * 10**9)
    size = replace(size, trainable=size.parameters)
    with pytest.raises(EngineError) as caught:
        forecast(size, config_of(), engine, 50, where)
    first, _, said = str(caught.value).partition(" in all). ")
    assert first.startswith("the policy does not fit: ")
    assert said == keys


# From a description ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def far_too_large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama's 70 B, without its weights."""
    directory = tmp_path_factory.mktemp("large")
    LlamaConfig(
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128_256,
        tie_word_embeddings=False,
    ).save_pretrained(directory)
    return directory


def test_a_description_is_as_large_as_what_is_loaded(directory: Path, tmp_path: Path) -> None:
    """A model, an adapter's base, a checkpoint's adapter, and an adapter as the model."""
    plain = PolicyConfig(model=str(directory), device="cpu")
    assert describe(plain) == describe(plain, directory) == load_policy(plain).size
    adapted = plain.model_copy(update={"adapter": Lora(rank=3)})
    policy = load_policy(adapted)
    assert describe(adapted) == policy.size
    assert 0 < policy.size.trainable < policy.size.parameters == describe(plain).parameters + policy.size.trainable
    policy.save(tmp_path, {name: p for name, p in policy.model.named_parameters() if p.requires_grad})
    assert describe(adapted, tmp_path) == policy.size
    assert describe(PolicyConfig(model=str(tmp_path), device="cpu")) == describe(plain)


def test_what_cannot_be_described_says_why(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"policy\.model = .*nowhere.*: cannot be loaded: there is no such directory"):
        describe(PolicyConfig(model=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PolicyError, match=r"policy\.model = .*empty.*: cannot be loaded: (?!there is no such)"):
        describe(PolicyConfig(model=str(tmp_path / "empty")))
    with pytest.raises(PolicyError, match=r"the checkpoint in .* holds a whole model"):
        describe(PolicyConfig(model=str(directory), adapter=Lora()), directory)


def test_a_description_reads_no_weights(far_too_large: Path) -> None:
    assert list(far_too_large.iterdir()) == [far_too_large / "config.json"]
    assert describe(PolicyConfig(model=str(far_too_large))) == ModelSize(
        parameters=70_553_706_496,
        trainable=70_553_706_496,
        layers=80,
        hidden=8192,
        intermediate=28_672,
        heads=64,
        kv_heads=8,
        head_dim=128,
        vocabulary=128_256,
        positions=2048,
    )


async def test_a_node_refuses_what_does_not_fit_before_it_loads_anything(far_too_large: Path, tmp_path: Path) -> None:
    config = config_of(policy={"model": str(far_too_large), "device": "cpu"}, engine={"type": "transformers"})
    config = config.model_copy(update={"data_dir": tmp_path})
    with pytest.raises(EngineError) as caught:
        async with AsyncExitStack() as stack:
            await open_node(config, stack, asyncio.Event())
    said = str(caught.value)
    assert said.startswith("the policy does not fit: ")
    # 4 bytes of 70.55 billion parameters, once for the learner and once for the engine; 16 for the learner and 12 for
    # its checkpoint
    assert "GiB are needed on RAM (policy 262.83 GiB, engine's copy 262.83 GiB, its batch at least " in said
    assert "learner 1839.83 GiB and in a step " in said
    assert "learner.tokens_per_micro_batch (500)" in said
    assert 'policy.adapter.type = "lora"' in said


def test_the_answer_for_who_only_asks(directory: Path, far_too_large: Path) -> None:
    tiny = config_of(policy={"model": str(directory), "device": "cpu"}, engine={"type": "transformers"})
    chosen, demands = foresee(tiny, [CPU])
    assert chosen == choose(tiny, describe(tiny.policy), [CPU])
    assert [each.device.name for each in demands] == ["RAM"]
    assert isinstance(demands[0], Demand)
    assert answer(tiny).fits
    large = answer(tiny.model_copy(update={"policy": PolicyConfig(model=str(far_too_large), device="cpu")}))
    assert not large.fits
    assert "the policy does not fit: " in large.found


# What there is --------------------------------------------------------------------------------------------------------


def test_memories_of_a_learner_on_the_cpu() -> None:
    found = memories(TransformersEngine(), [CPU])
    assert (found.ram.name, found.ram.learner, found.learner, found.engine) == ("RAM", True, (), None)


def test_a_container_has_no_more_than_it_may(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    800 kB\n")
    assert ram(meminfo, tmp_path) == (1000 * 1024, 800 * 1024)
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\ninactive_file 50000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert ram(meminfo, tmp_path) == (1000 * 1024, 800 * 1024)
    (tmp_path / "memory.max").write_text("700000\n")
    assert ram(meminfo, tmp_path) == (700_000, 450_000)
    (tmp_path / "memory.current").write_text("800000\n")
    assert ram(meminfo, tmp_path)[1] == 0


def test_where_nothing_says_what_is_free_it_is_all_of_it(tmp_path: Path) -> None:
    total, free = ram(tmp_path / "meminfo", tmp_path)
    assert total == free > 2**28
