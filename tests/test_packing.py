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

from node.engine.attention import Dense, Ragged, layout
from node.engine.head import Head
from node.engine.logprobs import TokenScores, token_scores
from node.engine.packing import share_rows
from node.rl.batch import pack
from node.rl.packing import sequences
from node.rl.samples import TokenRow
from node.rl.segments import Segments, buckets
from tests.test_batch import make_row

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
    other = make_row([3], [4])
    (micro,) = pack([other, first, second], 100, share=True)
    assert micro.input_ids.tolist() == [[7, 8, 5, 6, 1, 9, 1, 3, 4]]
    assert micro.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1]]
    assert micro.attention_mask.tolist() == [[1] * 9]
    assert micro.action_index.tolist() == [1, 2, 3, 1, 5, 7]
    assert micro.targets.tolist() == [5, 6, 1, 9, 1, 4]
    assert micro.sample.tolist() == [0] * 3 + [1] * 2 + [2]
    assert micro.advantage.tolist() == [1.0, -1.0, 1.0]
    assert micro.rows == (first, second, other)
    segments = micro.segments
    assert segments is not None
    assert segments.lengths.tolist() == [2, 3, 2, 1, 1]
    assert segments.before.tolist() == [0, 2, 2, 0, 1]
    assert segments.prompt.tolist() == [0, 0, 0, 7, 7]
    assert [segments.key_index(i).tolist() for i in range(5)] == [[0, 1], [0, 1, 2, 3, 4], [0, 1, 5, 6], [7], [7, 8]]
    assert segments.pairs() == 3 + (3 + 4 + 5) + (3 + 4) + 1 + 2


def test_prompts_are_shared_as_long_as_there_is_room():
    rows = [make_row([1] * 4, [2] * 20) for _ in range(5)]
    assert [len(s.rows) for s in sequences(rows, 1000)] == [5]
    assert [len(s.rows) for s in sequences(rows, 44)] == [2, 2, 1]
    assert [len(s.rows) for s in sequences(rows, 43)] == [1] * 5
    assert [m.input_ids.shape[1] for m in pack(rows, 44, share=True)] == [44, 44, 24]


def test_short_sequences_fill_a_micro_batch_up():
    rows = [make_row([n], [n] * (length - 1)) for n, length in enumerate((60, 50, 40, 30, 20))]
    assert [[len(row) for row in m.rows] for m in pack(rows, 100, share=True)] == [[60, 40], [50, 30, 20]]


def in_a_row(lengths: list[list[int]]) -> Segments:
    """Of prompts, each with its continuations: `lengths` begin with the prompt's."""
    rows = [
        make_row([number] * prompt, [1] * length)
        for number, (prompt, *others) in enumerate(lengths)
        for length in others
    ]
    (micro,) = pack(rows, 10_000, share=True)
    assert micro.segments is not None
    return micro.segments


def test_what_a_bucket_sees():
    made = buckets(in_a_row([[2, 3, 1]]), call=100)
    assert [bucket.queries.tolist() for bucket in made] == [[[2, 3, 4], [5, 0, 0]], [[0, 1]]]
    assert [bucket.keys.tolist() for bucket in made] == [[[0, 1, 2, 3, 4], [0, 1, 5, 0, 0]], [[0, 1]]]
    assert [bucket.causal for bucket in made] == [False, True]
    assert made[0].sees(None).astype(int).tolist() == [
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]],
    ]
    assert made[0].sees(2).astype(int).tolist() == [
        [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
        [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0]],
    ]


def test_segments_share_a_call_as_long_as_padding_costs_less_than_one():
    segments = in_a_row([[10, 10, 9, 2]])
    assert [len(bucket.lengths) for bucket in buckets(segments, call=0)] == [1, 1, 1, 1]
    assert [len(bucket.lengths) for bucket in buckets(segments, call=20 * 10 - 19 * 9)] == [2, 1, 1]
    assert [len(bucket.lengths) for bucket in buckets(segments, call=20 * 10 - 12 * 2)] == [3, 1]


def test_ragged_segments_are_their_keys_one_after_the_other():
    ragged = Ragged.of(in_a_row([[2, 3, 1], [1, 1]]), torch.device("cpu"))
    assert ragged.keys.tolist() == [0, 1, *[0, 1, 2, 3, 4], *[0, 1, 5], 6, *[6, 7]]
    assert ragged.query_starts.tolist() == [0, 2, 5, 6, 7, 8]
    assert ragged.key_starts.tolist() == [0, 2, 7, 10, 11, 13]
    assert (ragged.max_queries, ragged.max_keys) == (3, 5)
    assert ragged.key_starts.dtype == torch.int32


def test_flash_attention_is_for_gpus_in_16_bit():
    segments = in_a_row([[2, 3]])
    assert isinstance(layout(segments, torch.device("cpu"), torch.bfloat16), Dense)
    assert isinstance(layout(segments, torch.device("cpu"), torch.float32), Dense)


shapes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)), max_size=20)


@settings(deadline=None)
@given(shapes, st.integers(1, 120), st.sampled_from([0, 50, 1000]))
def test_every_rollout_once_within_the_budget_and_in_its_place(
    drawn: list[tuple[int, int, int]], budget: int, call: int
):
    rng = np.random.default_rng(0)
    rows = [make_row([prompt] * p, rng.integers(9, size=n).tolist()) for prompt, p, n in drawn]
    micros = pack(rows, budget, share=True)
    assert sorted(id(row) for micro in micros for row in micro.rows) == sorted(map(id, rows))
    for micro in micros:
        assert micro.input_ids.numel() <= budget or len(micro.rows) == 1
        assert micro.targets.tolist() == [t for row in micro.rows for t in row.response_ids.tolist()]
        positions = micro.position_ids.flatten()[micro.action_index]
        expected = [len(row.prompt_ids) - 1 + i for row in micro.rows for i in range(len(row.response_ids))]
        assert positions.tolist() == expected
        assert micro.segments is not None
        assert int(micro.segments.lengths.sum()) == micro.input_ids.numel()
        assert sorted(attended(micro.segments, call)) == sorted(allowed(micro.segments))


def attended(segments: Segments, call: int) -> list[tuple[int, int]]:
    """(query, key) pairs of all buckets, in places of the row."""
    pairs = []
    for bucket in buckets(segments, call):
        sees = bucket.sees(None)
        for b, length in enumerate(bucket.lengths):
            pairs += [
                (int(bucket.queries[b, q]), int(bucket.keys[b, k]))
                for q in range(length)
                for k in np.flatnonzero(sees[b, q])
            ]
    return pairs


def allowed(segments: Segments) -> list[tuple[int, int]]:
    pairs = []
    for start, length, before, prompt in zip(
        segments.starts, segments.lengths, segments.before, segments.prompt, strict=True
    ):
        for query in range(start, start + length):
            pairs += [(query, int(prompt) + key) for key in range(before)]
            pairs += [(query, key) for key in range(int(start), query + 1)]
    return pairs


def scored(model: PreTrainedModel, rows: list[TokenRow], *, share: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all actions, in the order of `rows`, and the gradient of their sum times the advantages."""
    model.zero_grad()
    found: dict[int, torch.Tensor] = {}
    for micro in pack(rows, 150, share=share):
        inputs = micro.input_ids, micro.attention_mask, micro.position_ids, micro.action_index, micro.targets
        logp = token_scores(model, *inputs, Head(temperature=0.7, chunk=16), micro.segments).logp
        (logp * micro.advantage[micro.sample]).sum().backward()
        found |= {id(row): logp[micro.sample == i].detach() for i, row in enumerate(micro.rows)}
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return torch.cat([found[id(row)] for row in rows]), gradient


@pytest.mark.parametrize("name", MODELS)
def test_packed_and_separate_rollouts_have_equal_log_probabilities_and_gradients(name: str):
    model = model_of(name)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, 32, size=n).tolist() for n in (9, 4, 3)]
    rows = [  # some longer than Gemma's window
        make_row(prompts[i % 3], rng.integers(1, 32, size=n).tolist(), advantage=float(i))
        for i, n in enumerate((3, 5, 7, 2, 6, 4, 1, 8, 20))
    ]
    apart, apart_gradient = scored(model, rows, share=False)
    assert share_rows(TokenScores(model))
    assert any(len(micro.rows) > 1 for micro in pack(rows, 150, share=True))
    together, gradient = scored(model, rows, share=True)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, apart_gradient, atol=1e-5, rtol=1e-4)
    alone, _ = scored(model, rows, share=False)  # with the attention that knows of segments, and has none
    assert torch.equal(alone, apart)


def test_a_model_whose_layers_see_more_than_their_mask_is_left_alone():
    class Leaky(Qwen3ForCausalLM):
        """Every position has a share of the one before it, whatever the mask says."""

        def __init__(self) -> None:
            super().__init__(Qwen3Config(**SMALL))
            for layer in self.model.layers:
                layer.register_forward_hook(lambda _module, _args, out: out + out.roll(1, dims=1))

    torch.manual_seed(0)
    model = Leaky().eval()
    assert not share_rows(TokenScores(model))
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_attention_of_its_own_is_left_alone():
    model = model_of("llama")
    model.set_attn_implementation("eager")
    assert not share_rows(TokenScores(model))
    assert model.config._attn_implementation == "eager"


def test_layers_that_do_not_say_what_they_see_are_left_alone():
    model = model_of("llama")
    model.config.layer_types = ["chunked_attention", "full_attention"]
    assert not share_rows(TokenScores(model))
    del model.config.layer_types  # pyright: ignore[reportAttributeAccessIssue]
    model.config.sliding_window = 4  # which Llama's attention does not hand on
    assert not share_rows(TokenScores(model))
