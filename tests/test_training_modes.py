"""What may be asked of a learner beside its algorithm: less memory, compiled layers, the same bits twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from node.algorithms import DppoTv, LearnerConfig, NoGate, ReceiverBaseline
from node.config import PolicyConfig
from node.engine.flops import peak_flops, useful_flops
from node.engine.layers import Recomputed, compile_layers, deterministic, layers_of
from node.engine.logprobs import TokenScores
from node.engine.packing import share_rows
from node.engine.policy import Policy, load_policy
from node.engine.updates import Rules, Updates
from node.rl.batch import pack
from node.rl.samples import TokenRow
from swarm.errors import PolicyError
from tests.policies import save_tiny_policy
from tests.test_batch import make_row
from tests.test_packing import model_of, scored
from tests.test_trainer import experience, trainer_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def loaded(directory: Path) -> Policy:
    return load_policy(PolicyConfig(model=str(directory), device="cpu"))


async def stepped(directory: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and the optimiser's state after two steps of a learner with `changes`."""
    policy = loaded(directory)
    batch = [experience(policy, [1.0, 0.0, 1.0, 0.0])]
    async with trainer_of(policy, LearnerConfig(lr=1e-3, warmup_steps=0, **changes)) as trainer:
        for _ in range(2):
            await trainer.step(batch)
        return await trainer.snapshot()


@pytest.mark.parametrize(
    "changes", [{"recompute_activations": True}, {"offload_optimizer": True}, {"deterministic": True}], ids=str
)
async def test_the_same_update_by_other_means(directory: Path, changes: dict[str, Any]) -> None:
    plain, moments = await stepped(directory)
    other, other_moments = await stepped(directory, **changes)
    assert all(torch.equal(plain[name], tensor) for name, tensor in other.items())
    assert other_moments.keys() == moments.keys()
    assert all(torch.equal(moments[name], tensor) for name, tensor in other_moments.items())


async def test_weights_in_16_bit_have_float32_ones_behind_them(directory: Path) -> None:
    policy = loaded(directory)
    learner = LearnerConfig(lr=1e-5, warmup_steps=0, weights="bfloat16")
    start = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    async with trainer_of(policy, learner, dtype=torch.bfloat16) as trainer:
        await trainer.step([experience(loaded(directory), [1.0, 0.0])])
        kept, _ = await trainer.snapshot()
        handed = (await trainer.weights()).tensors
    moved = [name for name in kept if not torch.equal(kept[name], start[name])]
    assert moved
    for name, parameter in policy.model.named_parameters():
        assert (parameter.dtype, kept[name].dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(parameter, kept[name].to(torch.bfloat16))
        assert torch.equal(parameter, handed[name])
    assert {buffer.dtype for buffer in policy.model.buffers()} == {torch.float32}
    sampled = loaded(directory).sampling_copy("bfloat16")
    assert {parameter.dtype for parameter in sampled.parameters()} == {torch.bfloat16}
    for name, buffer in sampled.named_buffers():  # of rotary positions
        assert torch.equal(buffer, dict(policy.model.named_buffers())[name])


async def test_the_same_batch_gives_the_same_bits(directory: Path) -> None:
    (first, moments), (second, same) = [await stepped(directory, deterministic=True) for _ in range(2)]
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert all(torch.equal(moments[name], tensor) for name, tensor in same.items())
    assert not torch.are_deterministic_algorithms_enabled()


def test_determinism_ends_where_it_began() -> None:
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        with deterministic(False):
            assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def rows_of(lengths: list[int]) -> list[TokenRow]:
    rng = np.random.default_rng(0)
    return [make_row([1, 2, 3, 4], rng.integers(1, 32, size=n).tolist()) for n in lengths]


def kept_bytes(rows: list[TokenRow], recomputed: bool) -> int:
    """For the backward pass, the weights excepted."""
    model = model_of("llama")
    share_rows(TokenScores(model))
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    (micro,) = pack(rows, 1000, share=True)
    again = Recomputed(model) if recomputed else None
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inputs = {"input_ids": micro.input_ids, "position_ids": micro.position_ids, "use_cache": False}
        if again is None:
            model.base_model(**inputs)
        else:
            with again.forward():
                assert all(layer.training for layer in layers_of(model))
                assert not any(m.training for layer in layers_of(model) for m in layer.children())
                model.base_model(**inputs)
            assert not any(module.training for module in model.modules())
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)


def test_layers_that_are_computed_again_keep_little() -> None:
    rows = rows_of([30, 40, 50])
    assert kept_bytes(rows, recomputed=True) < 0.35 * kept_bytes(rows, recomputed=False)


def test_a_model_without_such_layers_is_refused() -> None:
    model = model_of("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(PolicyError, match=r"learner\.recompute_activations = true: LlamaForCausalLM"):
        Recomputed(model)
    with pytest.raises(PolicyError, match=r"learner\.compile = true: LlamaForCausalLM"):
        compile_layers(model)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_layers_compute_the_same_and_any_length_compiles_nothing_more() -> None:
    plain, compiled = model_of("qwen3"), model_of("qwen3")
    for model in (plain, compiled):
        share_rows(TokenScores(model))
    compile_layers(compiled)
    seen = []
    for lengths in ([3, 9], [5, 14, 2], [8, 21], [1, 30, 4, 17]):
        rows = rows_of(lengths)
        (logp, gradient), (same, slope) = (scored(model, rows, share=True) for model in (plain, compiled))
        torch.testing.assert_close(same, logp, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(slope, gradient, atol=1e-5, rtol=1e-4)
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] > 0
    assert seen[-1] == seen[1]


def test_useful_operations_are_counted() -> None:
    """Linear maps of 2 layers: queries and outputs 16 x 16, keys and values 16 x 8, an MLP of 3 times 16 x 32; head
    32 x 16. A prompt of 4 with continuations of 3 and 2 is 9 tokens."""
    model = model_of("qwen3")
    rows = [make_row([1, 2, 3, 4], [5, 6, 7]), make_row([1, 2, 3, 4], [8, 9])]
    linear = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32)
    pairs = (1 + 2 + 3 + 4) + (5 + 6 + 7) + (5 + 6)
    packed = 3 * (2 * 9 * linear + 4 * 16 * 2 * pairs + 2 * 32 * 16 * 5)
    assert useful_flops(model, pack(rows, 100, share=True)) == packed
    apart = 3 * (2 * 13 * linear + 4 * 16 * 2 * (28 + 21) + 2 * 32 * 16 * 5)
    assert useful_flops(model, pack(rows, 100)) == apart
    model.base_model.requires_grad_(False)
    frozen = 2 * 2 * 9 * linear + 3 * (4 * 16 * 2 * pairs + 2 * 32 * 16 * 5)
    assert useful_flops(model, pack(rows, 100, share=True)) == frozen


def test_a_cpu_has_no_peak_that_is_known() -> None:
    assert peak_flops(torch.device("cpu")) is None


class Two:
    def all(self, values: np.ndarray) -> list[np.ndarray]:
        return [values, values]


@pytest.mark.parametrize("changes", [{"optimizer": "adamw_8bit"}, {"offload_optimizer": True}])
def test_what_one_device_can_only(directory: Path, changes: dict[str, Any]) -> None:
    ((key, _),) = changes.items()
    rules = Rules(
        objective=DppoTv(),
        foreign=ReceiverBaseline(),
        foreign_gate=NoGate(),
        learner=LearnerConfig(**changes),
        temperature=1.0,
        autocast=False,
    )
    with pytest.raises(PolicyError, match=rf"learner\.{key} = .*: a learner on several devices has"):
        Updates(loaded(directory).model, rules, Two())
