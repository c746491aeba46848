"""Several rollouts in one row: the layout exactly, the arithmetic against separate rows."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from node.engine.logprobs import action_logprobs
from node.engine.packing import packing_for
from node.rl.batch import MicroBatch, pack
from node.rl.packing import Packing, sequences
from tests.test_batch import make_row

FREE = Packing(quadratic=0.0)
SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
WINDOW = 12
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], pad_token_id=0
        )
    ),
}


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def test_two_continuations_of_a_prompt_in_one_row():
    first, second = make_row([7, 8], [5, 6, 1]), make_row([7, 8], [9, 1], advantage=-1.0)
    longer = make_row([1, 2, 3, 4], [5, 6, 7, 8])
    (micro,) = pack([first, second, longer], 100, FREE)
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [7, 8, 5, 6, 1, 9, 1, 0]]
    assert micro.position_ids[1].tolist() == [0, 1, 2, 3, 4, 2, 3, 7]
    assert micro.action_index.tolist() == [3, 4, 5, 6, 9, 10, 11, 9, 13]
    assert micro.targets.tolist() == [5, 6, 7, 8, 5, 6, 1, 9, 1]
    assert micro.sample.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    assert micro.rows == (longer, first, second)
    sees = micro.attention_mask[1, 0].int().tolist()
    assert sees == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_short_sequences_fill_a_row_up_and_do_not_see_each_other():
    rows = [make_row([1, 2, 3], [4, 5, 6]), make_row([7], [8, 9]), make_row([2], [3, 4])]
    (micro,) = pack(rows, 100, FREE)
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 2, 3, 4]]
    assert micro.position_ids[1].tolist() == [0, 1, 2, 0, 1, 2]
    assert micro.action_index.tolist() == [2, 3, 4, 6, 7, 9, 10]
    assert not micro.attention_mask[1, 0, 3:, :3].any()


def test_rows_of_one_rollout_need_no_mask_of_their_own():
    (micro,) = pack([make_row([1, 2], [3, 4]), make_row([5, 6], [7, 8])], 100, FREE)
    assert micro.attention_mask.tolist() == [[1] * 4] * 2


def test_a_continuation_joins_where_that_costs_less():
    """P = 4, L = 2: the third token of T = 6 joins if 2 + q (64 - 36) < 6 + q 36, always; with L = 20 after T = 24 if
    20 + q (44^2 - 24^2) < 24 + q 24^2, which is q < 1 / 196."""
    short = [make_row([1] * 4, [2] * 2) for _ in range(2)]
    assert [len(s.rows) for s in sequences(short, 100, Packing(quadratic=10.0))] == [2]
    long = [make_row([1] * 4, [2] * 20) for _ in range(2)]
    assert [len(s.rows) for s in sequences(long, 100, Packing(quadratic=1 / 197))] == [2]
    assert [len(s.rows) for s in sequences(long, 100, Packing(quadratic=1 / 195))] == [1, 1]
    assert [len(s.rows) for s in sequences(long, 43, Packing(quadratic=0.0))] == [1, 1]


def test_a_much_shorter_sequence_waits_for_a_narrower_micro_batch_where_attention_is_dear():
    rows = [make_row([1] * 50, [2] * 50), *(make_row([n], [n] * 9) for n in range(1, 4))]
    assert [m.input_ids.shape for m in pack(rows, 1000, Packing(quadratic=0.1))] == [(1, 100), (3, 10)]
    (cheap,) = pack([*rows, make_row([5] * 60, [6] * 30)], 1000, Packing(quadratic=0.001))
    assert cheap.input_ids.shape == (3, 100)


shapes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)), max_size=20)


@settings(deadline=None)
@given(shapes, st.integers(1, 120), st.floats(0, 1), st.none() | st.integers(1, 30))
def test_every_rollout_once_within_the_budget_and_in_its_place(
    drawn: list[tuple[int, int, int]], budget: int, quadratic: float, window: int | None
):
    rng = np.random.default_rng(0)
    rows = [make_row([prompt] * p, rng.integers(9, size=n).tolist()) for prompt, p, n in drawn]
    micros = pack(rows, budget, Packing(quadratic=quadratic, window=window))
    assert sorted(id(row) for micro in micros for row in micro.rows) == sorted(map(id, rows))
    for micro in micros:
        assert micro.input_ids.numel() <= budget or len(micro.input_ids) == 1
        assert micro.targets.tolist() == [t for row in micro.rows for t in row.response_ids.tolist()]
        positions = micro.position_ids.flatten()[micro.action_index]
        expected = [len(row.prompt_ids) - 1 + i for row in micro.rows for i in range(len(row.response_ids))]
        assert positions.tolist() == expected
        if micro.attention_mask.dim() == 4 and window is not None:
            assert max(map(len, micro.rows)) <= window


def logprobs(model: PreTrainedModel, micro: MicroBatch) -> torch.Tensor:
    return action_logprobs(
        model,
        micro.input_ids,
        micro.attention_mask,
        micro.position_ids,
        micro.action_index,
        micro.targets,
        temperature=0.7,
        chunk=64,
    )


@pytest.mark.parametrize("name", MODELS)
def test_packed_and_separate_rollouts_have_equal_log_probabilities_and_gradients(name: str):
    model = model_of(name)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, 32, size=n).tolist() for n in (9, 4, 3)]
    rows = [
        make_row(prompts[i % 3], rng.integers(1, 32, size=n).tolist(), advantage=float(i))
        for i, n in enumerate((3, 5, 7, 2, 6, 4, 1, 8, 20))
    ]
    packing = packing_for(model)
    assert packing is not None
    results = []
    for how in (None, packing):
        model.zero_grad()
        found: dict[int, torch.Tensor] = {}
        for micro in pack(rows, 120, how):
            logp = logprobs(model, micro)
            (logp * micro.advantage[micro.sample]).sum().backward()
            found |= {id(row): logp[micro.sample == i].detach() for i, row in enumerate(micro.rows)}
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((torch.cat([found[id(row)] for row in rows]), gradient))
    (apart, apart_gradient), (together, gradient) = results
    assert any(micro.attention_mask.dim() == 4 for micro in pack(rows, 120, packing))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, apart_gradient, atol=1e-5, rtol=1e-4)


def test_attention_is_counted_in_multiplications():
    """Queries 16 wide in 2 layers, 2 norms of 16 and 2 of 8 each: 4 * 16 * 2 against 2 parameters each."""
    model = model_of("qwen3")
    others = sum(p.numel() for p in model.model.parameters()) - 32 * 16
    assert packing_for(model) == Packing(quadratic=4 * 16 * 2 / (2 * others))


def test_a_sliding_window_is_heeded():
    packing = packing_for(model_of("gemma3"))
    assert packing is not None
    assert packing.window == WINDOW
    long = [make_row([1] * 8, [2] * 5) for _ in range(2)]
    assert [m.attention_mask.dim() for m in pack(long, 100, packing)] == [2]


def test_a_model_whose_layers_see_more_than_their_mask_is_left_alone():
    class Leaky(Qwen3ForCausalLM):
        """Every position has a share of the one before it, whatever the mask says."""

        def __init__(self) -> None:
            super().__init__(Qwen3Config(**SMALL))
            for layer in self.model.layers:
                layer.register_forward_hook(lambda _module, _args, out: out + out.roll(1, dims=1))

    torch.manual_seed(0)
    assert packing_for(Leaky().eval()) is None


def test_a_model_that_takes_no_mask_is_left_alone():
    model = model_of("llama")

    def refuses(*args: object, **kwargs: object) -> None:
        raise ValueError("this kernel takes no mask")

    model.model.forward = refuses  # type: ignore[method-assign]
    assert packing_for(model) is None
