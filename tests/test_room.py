from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from node.algorithms import LearnerConfig
from node.config import VllmEngine
from node.engine.memory import Device, Machine, engine_devices, machine
from node.engine.room import OWN_BYTES, Plan, plan
from node.engine.size import GIB, Dtype, ModelSize, learner_bytes
from node.settings import load_config
from swarm.errors import EngineError

ROOT = Path(__file__).parents[1]
#: Qwen2.5-1.5B, Qwen3-0.6B, and one that is small enough to follow by hand.
QWEN_1B = ModelSize(
    parameters=1_543_714_304,
    trainable=1_543_714_304,
    layers=28,
    hidden=1536,
    intermediate=8960,
    heads=12,
    kv_heads=2,
    head_dim=128,
    vocabulary=151_936,
    positions=32_768,
)
QWEN_06B = ModelSize(
    parameters=596_049_920,
    trainable=596_049_920,
    layers=28,
    hidden=1024,
    intermediate=3072,
    heads=16,
    kv_heads=8,
    head_dim=128,
    vocabulary=151_936,
    positions=32_768,
)
TINY = ModelSize(
    parameters=1_000_000,
    trainable=1_000_000,
    layers=2,
    hidden=100,
    intermediate=300,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=1000,
)
MICRO = LearnerConfig(tokens_per_micro_batch=4096, logit_chunk=2048)


def card(total_gib: float, free_gib: float, *, learner: bool = True, index: int = 0) -> Device:
    return Device(name=f"cuda:{index}", total=int(total_gib * GIB), free=int(free_gib * GIB), learner=learner)


def gpus(*devices: Device) -> Machine:
    return Machine(kind="cuda", devices=devices)


def ram(free: int, *, learner: bool = True) -> Machine:
    return Machine(kind="cpu", devices=(Device(name="RAM", total=16 * GIB, free=free, learner=learner),))


def planned(
    size: ModelSize,
    where: Machine,
    engine: VllmEngine | None = None,
    *,
    dtype: Dtype = "bfloat16",
    max_length: int = 2048,
    learner: LearnerConfig = MICRO,
) -> Plan:
    return plan(size, dtype, max_length, learner, engine or VllmEngine(), where)


def refusal(size: ModelSize, where: Machine, engine: VllmEngine | None = None, **changes: Any) -> str:
    with pytest.raises(EngineError) as caught:
        planned(size, where, engine, **changes)
    return str(caught.value)


# What a model is ------------------------------------------------------------------------------------------------------


def test_sizes_of_models() -> None:
    qwen = Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(qwen).parameters())
    assert ModelSize.of(qwen, parameters, parameters) == QWEN_1B


def test_a_size_where_heads_have_a_width_of_their_own() -> None:
    config = Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
    )
    assert ModelSize.of(config, 596_049_920, 596_049_920) == QWEN_06B


def test_a_size_from_an_old_config_and_from_one_of_several_modalities() -> None:
    old = ModelSize.of(GPT2Config(n_embd=64, n_head=4, n_layer=3, vocab_size=99), 10, 5)
    assert old == ModelSize(
        parameters=10,
        trainable=5,
        layers=3,
        hidden=64,
        intermediate=256,
        heads=4,
        kv_heads=4,
        head_dim=16,
        vocabulary=99,
        positions=1024,
    )
    text = Gemma3TextConfig(hidden_size=32, num_hidden_layers=7, vocab_size=50)
    assert ModelSize.of(Gemma3Config(text_config=text.to_dict()), 10, 10) == ModelSize.of(text, 10, 10)


# What the learner takes -----------------------------------------------------------------------------------------------


def test_the_learner_of_a_tiny_model_in_float32() -> None:
    learner = LearnerConfig(tokens_per_micro_batch=50, logit_chunk=10)
    need = learner_bytes(TINY, "float32", 50, learner, VllmEngine())
    assert need.standing == 16_000_000
    # per token and layer 24*100 + 16*300 + 24*64 + 8*32 = 8992; logits of 10 tokens, and the head's gradient
    assert need.passing == max(50 * 2 * 8992 + 40_000 + 400_000, 4_000_000) == 4_000_000
    learner = LearnerConfig(tokens_per_micro_batch=500, logit_chunk=10)
    assert learner_bytes(TINY, "float32", 50, learner, VllmEngine()).passing == 500 * 2 * 8992 + 40_000 + 400_000


def test_the_learner_under_autocast_casts_the_weights() -> None:
    learner = LearnerConfig(tokens_per_micro_batch=500, logit_chunk=10)
    need = learner_bytes(TINY, "bfloat16", 50, learner, VllmEngine())
    assert need.standing == 14_000_000
    assert need.passing == 500 * 2 * (26 * 100 + 8 * 300 + 14 * 64 + 6 * 32) + 60_000 + 400_000 + 2_000_000


def test_a_row_longer_than_a_micro_batch_is_one() -> None:
    learner = LearnerConfig(tokens_per_micro_batch=100, logit_chunk=10_000)
    assert learner_bytes(TINY, "float32", 700, learner, VllmEngine()).passing == 700 * 2 * 8992 + 700 * 4000 + 400_000


def test_an_adapter_needs_little_besides_activations() -> None:
    full, lora = (
        learner_bytes(replace(TINY, trainable=trainable), "bfloat16", 50, MICRO, VllmEngine())
        for trainable in (1_000_000, 1000)
    )
    assert lora.standing == 14_000
    assert lora.passing == full.passing - 4 * 1000 * 100  # of the head


def test_a_base_in_nf4_is_cast_a_layer_at_a_time() -> None:
    lora = replace(TINY, trainable=1000)
    cases: tuple[tuple[Dtype, int, int], ...] = (("float32", 0, 4), ("bfloat16", 2, 6))
    for dtype, cast, layer in cases:
        full, rounded = (
            learner_bytes(size, dtype, 50, MICRO, VllmEngine()) for size in (lora, replace(lora, quantised=900_000))
        )
        assert rounded.standing == full.standing
        assert rounded.passing == full.passing - cast * 900_000 + layer * 100 * 300


def test_layers_that_are_computed_again_keep_their_input() -> None:
    learner = LearnerConfig(tokens_per_micro_batch=2000, logit_chunk=10, recompute_activations=True)
    need = learner_bytes(TINY, "float32", 50, learner, VllmEngine())
    assert need.passing == 2000 * 8992 + 2 * 2000 * 400 + 440_000


@pytest.mark.parametrize(
    ("changes", "standing", "update"),
    [
        ({}, 4 + 8 + 2, 4),
        ({"optimizer": "adamw_8bit"}, 4 + 2 + 2, 4),
        ({"offload_optimizer": True}, 4 + 2, 0),
        ({"weights": "bfloat16"}, 2 + 8 + 2, 4),
        ({"weights": "bfloat16", "offload_optimizer": True}, 2 + 2, 0),
    ],
)
def test_bytes_of_a_parameter(changes: dict[str, Any], standing: int, update: int) -> None:
    learner = LearnerConfig(tokens_per_micro_batch=1, logit_chunk=1, **changes)
    need = learner_bytes(replace(TINY, layers=0), "bfloat16", 1, learner, VllmEngine())
    assert need.standing == standing * TINY.trainable
    cast = 0 if "weights" in changes else 2_000_000
    assert need.passing == max(6 * 1000 + 400_000 + cast, update * TINY.trainable)


@pytest.mark.parametrize(("gib", "standing"), [(1.0, 16_000_000), (0.001, int(0.001 * GIB))])
def test_a_learner_of_configured_size(gib: float, standing: int) -> None:
    need = learner_bytes(TINY, "float32", 50, MICRO, VllmEngine(learner_gib=gib))
    assert (need.standing, need.standing + need.passing) == (standing, int(gib * GIB))


def test_several_devices_share_what_is_standing_and_hold_two_layers_whole() -> None:
    one = learner_bytes(TINY, "float32", 50, MICRO, VllmEngine())
    two = learner_bytes(TINY, "float32", 50, MICRO.model_copy(update={"devices": 2}), VllmEngine())
    assert one.standing == (12 + 4) * TINY.trainable
    assert two.standing == 12 * TINY.trainable // 2
    outside = min(2 * TINY.vocabulary * TINY.hidden, TINY.parameters)
    assert two.passing == one.passing + 8 * (outside + 2 * (TINY.parameters - outside) // TINY.layers)
    assert learner_bytes(TINY, "float32", 50, MICRO.model_copy(update={"devices": (0, 3)}), VllmEngine()) == two


def saved_bytes(config: PreTrainedConfig, autocast: bool) -> int:
    """What a forward pass over 150 tokens keeps for the backward pass, the weights' own copies included."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by storage; alive, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(3, 50, dtype=torch.int64)
    mask[0, :5] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model.base_model(input_ids=torch.zeros_like(mask), attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_what_models_keep(kind: Callable[..., PreTrainedConfig], dtype: Dtype) -> None:
    """Of two layers, so that what is outside of them does not count; for two shapes of model."""
    for hidden, intermediate, heads, kv_heads in ((256, 704, 4, 2), (128, 768, 2, 2)):
        configs = [
            kind(
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                head_dim=64,
                vocab_size=32,
            )
            for layers in (1, 3)
        ]
        counted = [saved_bytes(config, dtype == "bfloat16") for config in configs]
        learner = LearnerConfig(tokens_per_micro_batch=150, logit_chunk=1)
        parameters = [
            sum(p.numel() for p in AutoModelForCausalLM.from_config(config).base_model.layers.parameters())
            for config in configs
        ]
        estimates = [
            learner_bytes(ModelSize.of(config, number, 0), dtype, 50, learner, VllmEngine()).passing
            for config, number in zip(configs, parameters, strict=True)
        ]
        assert 0.98 < (estimates[1] - estimates[0]) / (counted[1] - counted[0]) < 1.2


# Plans ----------------------------------------------------------------------------------------------------------------


def test_1_5_b_parameters_on_80_gib() -> None:
    made = planned(QWEN_1B, gpus(card(80, 72)))
    saved = 4096 * 28 * (26 * 1536 + 8 * 8960 + 14 * 1536 + 6 * 256)
    head = 6 * 2048 * 151_936 + 4 * 151_936 * 1536
    learner = 14 * 1_543_714_304 + saved + head + 2 * 1_543_714_304
    assert learner == 42_943_340_544
    kv_cache = int(0.95 * 72 * GIB) - GIB - 3_087_428_608 - learner
    assert made == Plan(
        kv_cache_bytes=kv_cache,
        memory_fraction=(3_087_428_608 + GIB + kv_cache) / (80 * GIB),
        max_in_flight=256,  # (26,339,429,785 // 458,752 - 1) // 128 = 448
        learner_bytes=learner,
        engine_weights_bytes=3_087_428_608,
        kv_bytes_per_token=28_672,
    )
    assert kv_cache == 26_339_429_785
    assert str(made) == (
        "KV cache 24.53 GiB (28,672 bytes per token) for 256 sequences in flight; weights 2.88 GiB, engine 1.00 GiB, "
        "learner 39.99 GiB"
    )


def test_1_5_b_parameters_do_not_fit_into_24_gib() -> None:
    assert refusal(QWEN_1B, gpus(card(24, 17.5)), learner=LearnerConfig()) == (
        "the policy does not fit: 88.81 GiB are needed on cuda:0 (engine 1.00 GiB, its weights 2.88 GiB, its KV cache "
        "at least 0.06 GiB, learner 20.13 GiB and in a step 64.75 GiB more), and 16.62 GiB may be used (0.95 of "
        "17.50 GiB free; 24.00 GiB in all). Lower engine.max_length (2048), learner.tokens_per_micro_batch (16384), "
        'learner.logit_chunk (4096); or set learner.recompute_activations = true, learner.optimizer = "adamw_8bit", '
        'learner.offload_optimizer = true, policy.adapter.type = "lora", learner.devices to more GPUs, '
        "engine.sleep = true, engine.devices and engine.tensor_parallel_size to other or more GPUs"
    )


def test_an_adapter_of_1_5_b_parameters_fits_into_24_gib() -> None:
    size = replace(QWEN_1B, trainable=18_464_768)
    learner = LearnerConfig(tokens_per_micro_batch=2048, logit_chunk=512)
    made = planned(size, gpus(card(24, 17.5)), learner=learner)
    passing = 2048 * 28 * 134_656 + 6 * 512 * 151_936 + 2 * 1_543_714_304
    assert made.learner_bytes == 14 * 18_464_768 + passing
    assert made.kv_cache_bytes == int(0.95 * 17.5 * GIB) - GIB - 3_087_428_608 - made.learner_bytes
    assert made.max_in_flight == (made.kv_cache_bytes // (16 * 28_672) - 1) // 128 == 36


def test_a_base_in_nf4_is_advised_where_there_is_a_frozen_one() -> None:
    size = replace(QWEN_1B, trainable=18_464_768)
    key = 'policy.adapter.base = "nf4"'
    assert key in refusal(size, gpus(card(8, 2)))
    assert key not in refusal(QWEN_1B, gpus(card(8, 2)))
    assert key not in refusal(replace(size, quantised=1_310_000_000), gpus(card(8, 2)))
    assert key not in refusal(size, gpus(card(8, 2)), learner=LearnerConfig(devices=2))


def test_an_engine_on_a_gpu_of_its_own_leaves_nothing_to_a_learner() -> None:
    made = planned(QWEN_1B, gpus(card(24, 23.5, learner=False)))
    assert made.learner_bytes == 0
    assert made.kv_cache_bytes == int(0.95 * 23.5 * GIB) - GIB - 3_087_428_608


def test_an_engine_that_sleeps_takes_turns_with_a_step() -> None:
    awake, asleep = (planned(QWEN_1B, gpus(card(80, 72)), VllmEngine(sleep=sleep)) for sleep in (False, True))
    passing = awake.learner_bytes - 14 * QWEN_1B.trainable
    assert asleep.kv_cache_bytes == awake.kv_cache_bytes + passing
    assert asleep.learner_bytes == awake.learner_bytes


def test_a_step_that_does_not_fit_even_while_the_engine_sleeps() -> None:
    said = refusal(QWEN_1B, gpus(card(80, 72)), VllmEngine(sleep=True), learner=LearnerConfig())
    assert "85.88 GiB are needed" in said  # 1.00 + 20.13 + 64.75: the engine's share is smaller than the step's
    assert "in a step 64.75 GiB more, while the engine sleeps)" in said
    assert "engine.sleep" not in said


def test_a_configured_kv_cache_is_taken_as_it_is() -> None:
    made = planned(QWEN_1B, gpus(card(80, 72)), VllmEngine(kv_cache_gib=0.5))
    assert made.kv_cache_bytes == GIB // 2
    assert made.memory_fraction == (3_087_428_608 + OWN_BYTES + GIB // 2) / (80 * GIB)
    assert made.max_in_flight == (GIB // 2 // (16 * 28_672) - 1) // 128 == 9


def test_a_configured_kv_cache_that_does_not_fit() -> None:
    said = refusal(QWEN_1B, gpus(card(80, 72)), VllmEngine(kv_cache_gib=30, learner_gib=41))
    assert "74.88 GiB are needed" in said  # 1.00 + 2.88 + 30 + 41
    assert "Lower engine.max_length (2048), engine.kv_cache_gib (30), engine.learner_gib (41); or set" in said
    assert "learner.tokens_per_micro_batch" not in said


def test_a_configured_kv_cache_without_room_for_one_sequence() -> None:
    # 128 blocks and the one that vLLM keeps, of 16 tokens: 59,179,008 bytes
    assert refusal(QWEN_1B, gpus(card(80, 72)), VllmEngine(kv_cache_gib=0.05)) == (
        "engine.kv_cache_gib = 0.05 is not allowed; it must be at least 0.056, for one sequence of engine.max_length "
        "(2,048 tokens)"
    )
    exactly = VllmEngine(kv_cache_gib=59_179_008 / GIB)
    assert planned(QWEN_1B, gpus(card(80, 72)), exactly).max_in_flight == 1


@pytest.mark.parametrize("max_in_flight", [1, 3000])
def test_a_configured_number_in_flight_is_taken_as_it_is(max_in_flight: int) -> None:
    made = planned(QWEN_1B, gpus(card(80, 72)), VllmEngine(max_in_flight=max_in_flight))
    assert made.max_in_flight == max_in_flight
    assert made.kv_cache_bytes == 26_339_429_785


def test_room_for_exactly_one_sequence_and_for_one_byte_less() -> None:
    engine, one = VllmEngine(learner_gib=1), 59_179_008
    # 0.95 * free is a whole number for free = 20 * n
    enough = -(-(2 * GIB + 3_087_428_608 + one) // 19) * 20
    device = Device(name="cuda:0", total=24 * GIB, free=enough, learner=True)
    assert planned(QWEN_1B, gpus(device), engine).max_in_flight == 1
    assert "does not fit" in refusal(QWEN_1B, gpus(replace(device, free=enough - 40)), engine)


def test_two_devices_share_weights_and_heads_and_the_tighter_one_counts() -> None:
    engine = VllmEngine(tensor_parallel_size=2, learner_gib=4)
    made = planned(QWEN_1B, gpus(card(24, 16), card(48, 13, learner=False, index=1)), engine)
    assert made.engine_weights_bytes == 1_543_714_304
    assert made.kv_bytes_per_token == 14_336
    assert made.kv_cache_bytes == int(0.95 * 16 * GIB) - 5 * GIB - 1_543_714_304
    assert made.memory_fraction == (1_543_714_304 + GIB + made.kv_cache_bytes) / (48 * GIB)
    made = planned(QWEN_1B, gpus(card(24, 16), card(48, 11, learner=False, index=1)), engine)
    assert made.kv_cache_bytes == int(0.95 * 11 * GIB) - GIB - 1_543_714_304


def test_more_devices_than_heads_have_one_each() -> None:
    cards = [card(24, 20, learner=False, index=index) for index in range(4)]
    assert planned(QWEN_1B, gpus(*cards), VllmEngine(tensor_parallel_size=4)).kv_bytes_per_token == 2 * 28 * 128 * 2


def test_the_device_that_is_too_small_is_named() -> None:
    cards = [card(24, 20, learner=False, index=3), card(24, 2, learner=False, index=5)]
    said = refusal(QWEN_1B, gpus(*cards), VllmEngine(tensor_parallel_size=2))
    assert "needed on cuda:5 (engine 1.00 GiB, its weights 1.44 GiB, its KV cache at least 0.03 GiB), and" in said
    assert said.endswith(
        "Lower engine.max_length (2048); or set engine.devices and engine.tensor_parallel_size to other or more GPUs"
    )


@pytest.mark.parametrize("where", [gpus(card(80, 72)), ram(8 * GIB)], ids=["cuda", "cpu"])
def test_devices_and_tensor_parallel_size_must_agree(where: Machine) -> None:
    assert refusal(QWEN_1B, where, VllmEngine(tensor_parallel_size=2)) == (
        "engine.tensor_parallel_size = 2 is not allowed; it must be the number of the engine's devices, 1 "
        f"({where.devices[0].name})"
    )


# In RAM ---------------------------------------------------------------------------------------------------------------


def test_a_tiny_model_in_ram_gets_what_256_sequences_need() -> None:
    made = planned(TINY, ram(8 * GIB), dtype="float32", max_length=200)
    assert made.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4 == 512
    assert made.kv_cache_bytes == (256 * 2 + 1) * 128 * 512  # two blocks of 128 tokens each, and vLLM's own
    assert made.max_in_flight == 256
    assert made.engine_weights_bytes == 4_000_000


def test_a_few_sequences_in_ram_need_little() -> None:
    made = planned(TINY, ram(8 * GIB), VllmEngine(max_in_flight=3), dtype="float32", max_length=128)
    assert (made.kv_cache_bytes, made.max_in_flight) == (4 * 128 * 512, 3)


def test_a_kv_cache_in_ram_is_a_quarter_of_it_at_most() -> None:
    size = replace(TINY, layers=28, kv_heads=8, head_dim=128)
    made = planned(size, ram(16 * GIB), dtype="float32", learner=LearnerConfig(tokens_per_micro_batch=2048))
    assert made.kv_bytes_per_token == 229_376
    assert made.kv_cache_bytes == 4 * GIB
    assert made.max_in_flight == (4 * GIB // (128 * 229_376) - 1) // 16 == 9


def test_in_ram_one_sequence_may_be_more_than_a_quarter_of_it() -> None:
    size = replace(TINY, layers=28, kv_heads=8, head_dim=128)
    made = planned(size, ram(8 * GIB, learner=False), dtype="float32", max_length=10_240)
    assert made.kv_cache_bytes == 81 * 128 * 229_376 > 2 * GIB
    assert (made.max_in_flight, made.learner_bytes) == (1, 0)


def test_a_policy_that_does_not_fit_into_ram() -> None:
    engine = VllmEngine(sleep=True, learner_gib=1)
    said = refusal(QWEN_06B, ram(2 * GIB), engine)
    assert said == (
        "the policy does not fit: 3.34 GiB are needed on RAM (engine 1.00 GiB, its weights 1.11 GiB, its KV cache at "
        "least 0.23 GiB, learner 1.00 GiB and in a step 0.00 GiB more), and 1.90 GiB may be used (0.95 of 2.00 GiB "
        "free; 16.00 GiB in all). Lower engine.max_length (2048), engine.learner_gib (1)"
    )
    assert 'set policy.dtype = "bfloat16"' in refusal(QWEN_06B, ram(2 * GIB), engine, dtype="float32")


# Machines -------------------------------------------------------------------------------------------------------------


def test_which_devices_an_engine_has() -> None:
    assert engine_devices(VllmEngine(), [torch.device("cuda")]) == (0,)
    assert engine_devices(VllmEngine(tensor_parallel_size=2), [torch.device("cuda", 1)]) == (1, 2)
    assert engine_devices(VllmEngine(devices=(3, 1)), [torch.device("cuda")]) == (3, 1)
    assert engine_devices(VllmEngine(), [torch.device("cpu")]) == ()
    assert engine_devices(VllmEngine(devices=(0,)), [torch.device("cpu")]) == (0,)
    several = [torch.device("cuda", 2), torch.device("cuda", 0)]
    assert engine_devices(VllmEngine(tensor_parallel_size=2), several) == (3, 4)
    assert engine_devices(VllmEngine(devices=(0,)), several) == (0,)


def test_the_memory_of_this_machine() -> None:
    (memory,) = machine((), [torch.device("cpu")]).devices
    assert (memory.name, memory.learner) == ("RAM", True)
    assert GIB // 4 < memory.free < memory.total < 2**50
    assert not machine((), [torch.device("cuda")]).devices[0].learner


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(EngineError) as caught:
        machine((0, 4096), [torch.device("cuda")])
    assert str(caught.value).startswith("engine.devices = [0, 4096] is not allowed; this machine has ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_memory_of_a_gpu() -> None:
    found = machine((0,), [torch.device("cuda")])
    assert (found.kind, found.devices[0].name, found.devices[0].learner) == ("cuda", "cuda:0", True)
    assert 0 < found.devices[0].free < found.devices[0].total


@pytest.mark.parametrize(
    ("total", "sleep", "changes", "in_flight"),
    [
        (24, "false", [], 27),
        (24, "true", [], 46),
        (48, "false", ["learner.recompute_activations=false"], 54),
        (80, "false", ["learner.recompute_activations=false", "learner.tokens_per_micro_batch=16384"], 109),
    ],
)
def test_the_gpu_config_fits_as_it_says(total: int, sleep: str, changes: list[str], in_flight: int) -> None:
    config = load_config(ROOT / "configs/gpu.toml", [f"engine.sleep={sleep}", *changes])
    assert isinstance(config.engine, VllmEngine)
    max_length = config.sampler.max_prompt_tokens + config.sampler.max_new_tokens
    where = gpus(card(total, total - 3))  # the policy's float32 weights, and a context
    made = plan(QWEN_06B, config.policy.dtype, max_length, config.learner, config.engine, where)
    assert made.max_in_flight == in_flight
