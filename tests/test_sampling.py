"""Batched sampling: the recorded log-probabilities are those of the distribution that was drawn from."""

from __future__ import annotations

import asyncio
import sys
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from node.config import TransformersEngine
from node.engine.base import Weights
from node.engine.logprobs import action_logprobs
from node.engine.sampling import draw, sample
from node.engine.text import HfTextCodec
from node.engine.transformers import TransformersGenerator
from node.supervision import Part, SupervisionConfig
from swarm.errors import CrashLoop
from swarm.types import FinishReason, PolicyVersion, SamplingParams, VersionSpan

EOS = 1
TINY: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 128}


def qwen(seed: int = 0, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**TINY, **SHAPE, head_dim=8, tie_word_embeddings=tied)).eval()


def llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**TINY, **SHAPE)).eval()


def letters() -> HfTextCodec:
    """Of the models' 40 tokens, id 1 is end-of-sequence; the others are a letter each, but id 2, which is "no"."""
    pieces = ["a", "<eos>", "no", *"bcdefghijklmnopqrstuvwxyzABCDEFGHIJKL"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("n", "o")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    return HfTextCodec(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))


CODEC = letters()


def prompts(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, 40, size=rng.integers(1, 12)).astype(np.int32) for _ in range(n)]


def learner_logprobs(model: PreTrainedModel, prompt: np.ndarray, ids: np.ndarray, temperature: float) -> np.ndarray:
    """By one full forward pass, as the learner does it, in chunks of 3."""
    whole = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))[None]
    index = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
    positions = torch.arange(whole.shape[1])[None]
    targets = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        return action_logprobs(
            model, whole, torch.ones_like(whole), positions, index, targets, temperature, chunk=3
        ).numpy()


@pytest.mark.parametrize("model", [qwen(), llama()], ids=["qwen3", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_equal_the_learners(model: PreTrainedModel, temperature: float):
    params = SamplingParams(temperature=temperature, max_new_tokens=12)
    asked = prompts(5)
    groups = sample(model, asked, [3, 1, 4, 2, 3], params, EOS, torch.Generator().manual_seed(0))
    assert [len(rows) for rows in groups] == [3, 1, 4, 2, 3]
    for prompt, rows in zip(asked, groups, strict=True):
        for row in rows:
            expected = learner_logprobs(model, prompt, row.ids, temperature)
            np.testing.assert_allclose(row.logprobs, expected, atol=2e-6)


def test_rows_end_with_eos_or_at_the_limit():
    model = qwen()
    params = SamplingParams(max_new_tokens=60)
    rows = [
        row
        for rows in sample(model, prompts(8), [8] * 8, params, EOS, torch.Generator().manual_seed(1))
        for row in rows
    ]
    stopped = [row for row in rows if row.finish is FinishReason.STOP]
    cut = [row for row in rows if row.finish is FinishReason.LENGTH]
    assert stopped
    assert cut
    assert all(row.ids[-1] == EOS and EOS not in row.ids[:-1] for row in stopped)
    assert all(len(row.ids) == 60 and EOS not in row.ids for row in cut)


def test_the_same_seed_samples_the_same():
    once, again = (
        sample(qwen(), prompts(3), [2] * 3, SamplingParams(), EOS, torch.Generator().manual_seed(5)) for _ in range(2)
    )
    for a, b in zip(chain(*once), chain(*again), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)


def test_draw_follows_the_tempered_distribution():
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4])).repeat(40_000, 1)
    token, logprob = draw(logits, SamplingParams(temperature=0.5), torch.Generator().manual_seed(0))
    expected = torch.tensor([0.01, 0.04, 0.09, 0.16]) / 0.30
    np.testing.assert_allclose(torch.bincount(token, minlength=4) / 40_000, expected, atol=0.01)
    np.testing.assert_allclose(logprob, expected.log()[token], atol=1e-6)


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_renormalises():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(2000, 1)
    token, logprob = draw(logits, SamplingParams(top_p=0.7), torch.Generator().manual_seed(0))
    assert set(token.tolist()) == {0, 1}
    np.testing.assert_allclose(logprob.exp(), torch.tensor([0.625, 0.375])[token], atol=1e-6)


def generator_of(
    model: PreTrainedModel, batch_size: int = 16, linger_ms: float = 20.0, part: Part | None = None
) -> TransformersGenerator:
    engine = TransformersEngine(batch_size=batch_size, linger_ms=linger_ms)
    return TransformersGenerator(model, CODEC, engine, PolicyVersion(0), torch.Generator().manual_seed(0), part)


OUT_OF_VOCABULARY = np.array([4000], dtype=np.int32)


async def test_concurrent_requests_are_all_answered():
    params = SamplingParams(max_new_tokens=8)
    async with generator_of(qwen(), batch_size=6) as generator:
        groups = await asyncio.gather(
            *(generator.sample(p, n, params) for p, n in zip(prompts(9), range(1, 10), strict=True))
        )
    assert [len(group) for group in groups] == list(range(1, 10))
    assert all(c.versions[0].length == len(c.ids) == len(c.logprobs) for group in groups for c in group)


async def test_requests_with_other_parameters_are_not_mixed():
    async with generator_of(qwen()) as generator:
        short, long = await asyncio.gather(
            generator.sample(prompts(1)[0], 4, SamplingParams(max_new_tokens=2)),
            generator.sample(prompts(1)[0], 4, SamplingParams(max_new_tokens=50)),
        )
    assert max(len(c.ids) for c in short) <= 2
    assert max(len(c.ids) for c in long) > 2


async def test_new_weights_are_taken_over_between_batches_and_stamped_on_every_token():
    old, new = qwen(0), qwen(1)
    tensors = {name: p.detach().clone() for name, p in new.named_parameters()}
    prompt, params = prompts(1)[0], SamplingParams(max_new_tokens=8)
    async with generator_of(old) as generator:
        before = await generator.sample(prompt, 2, params)
        await generator.load(Weights(version=PolicyVersion(3), tensors=tensors))
        await generator.load(Weights(version=PolicyVersion(2), tensors={}))  # overtaken: never touched
        after = await generator.sample(prompt, 2, params)
    assert {span.version for c in before for span in c.versions} == {0}
    assert {span.version for c in after for span in c.versions} == {3}
    for completion in after:
        np.testing.assert_allclose(completion.logprobs, learner_logprobs(new, prompt, completion.ids, 1.0), atol=2e-6)


async def test_a_cancelled_request_does_not_hold_up_the_others():
    async with generator_of(qwen(), batch_size=1, linger_ms=0) as generator:
        waiting = [asyncio.create_task(generator.sample(prompts(1)[0], 1, SamplingParams())) for _ in range(4)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        waiting[2].cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in done] == [False, True, True, False]


async def test_an_error_in_the_engine_costs_those_who_asked_and_no_one_else():
    part = Part("engine", SupervisionConfig(max_restarts=1, first_pause_s=0.0))
    async with generator_of(qwen(), part=part) as generator:
        (failed,) = await generator.sample(OUT_OF_VOCABULARY, 1, SamplingParams())
        assert (failed.finish, len(failed.ids)) == (FinishReason.ERROR, 0)
        assert len(await generator.sample(prompts(1)[0], 2, SamplingParams(max_new_tokens=2))) == 2
        assert (part.restarts, part.state) == (1, "up")
        assert part.last_error.startswith("IndexError: ")


async def test_an_engine_that_is_given_up_tells_everybody_who_asks_or_waits():
    async with generator_of(qwen(), batch_size=1) as generator:
        asked = [generator.sample(OUT_OF_VOCABULARY, 1, SamplingParams()) for _ in range(3)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in told] == 3 * [CrashLoop]
        with pytest.raises(CrashLoop, match=r"^the engine failed 1 times .*IndexError: "):
            await generator.sample(prompts(1)[0], 1, SamplingParams())


async def test_weights_that_an_engine_failed_on_are_taken_over_anew():
    new = qwen(1)
    tensors = {name: p.detach().clone() for name, p in new.named_parameters()}
    prompt, params = prompts(1)[0], SamplingParams(max_new_tokens=8)
    async with generator_of(qwen(0), part=Part("engine", SupervisionConfig(first_pause_s=0.0))) as generator:
        await generator.load(Weights(version=PolicyVersion(1), tensors=tensors))
        await generator.sample(OUT_OF_VOCABULARY, 1, SamplingParams())
        (after,) = await generator.sample(prompt, 1, params)
    np.testing.assert_allclose(after.logprobs, learner_logprobs(new, prompt, after.ids, 1.0), atol=2e-6)


async def test_a_completion_ends_with_the_token_that_completes_a_stop_string():
    """It is the beginning of what would have been sampled without."""
    prompt = prompts(1)[0]
    async with generator_of(qwen(), batch_size=64) as generator:
        whole = await generator.sample(prompt, 64, SamplingParams(max_new_tokens=40))
    texts = [CODEC.decode(completion.ids)[0] for completion in whole]
    two_tokens = next(text[3:5] for text in texts if len(text) > 5 and "n" not in text)
    stop = ("n", two_tokens)
    async with generator_of(qwen(), batch_size=64) as generator:
        cut = await generator.sample(prompt, 64, SamplingParams(max_new_tokens=40, stop=stop))
    for before, after in zip(whole, cut, strict=True):
        length = len(after.ids)
        np.testing.assert_array_equal(after.ids, before.ids[:length])
        np.testing.assert_array_equal(after.logprobs, before.logprobs[:length])
        assert after.versions == (VersionSpan(version=PolicyVersion(0), length=length),)
        last_two = (CODEC.decode(after.ids[:end])[0] for end in (length - 1, length))
        completed = [any(piece in text for piece in stop) for text in last_two]
        stopped = after.finish is FinishReason.STOP_STRING
        assert completed == [False, stopped]
        assert stopped or (length, after.finish) == (len(before.ids), before.finish)
    assert {completion.finish for completion in cut} == set(FinishReason) - {FinishReason.ERROR}
    assert {"no", two_tokens} <= {CODEC.decode(completion.ids)[0][-2:] for completion in cut}


async def test_a_request_without_room_for_its_response_is_refused_and_the_others_are_not():
    prompt = np.full(120, 5, dtype=np.int32)
    async with generator_of(qwen()) as generator:
        assert generator.max_length == 128
        fits, refused = await asyncio.gather(
            *(generator.sample(prompt, 3, SamplingParams(max_new_tokens=limit)) for limit in (8, 9))
        )
    assert all(len(completion.ids) >= 1 for completion in fits)
    assert [c.finish for c in refused] == [FinishReason.ERROR] * 3
    assert all((len(c.ids), len(c.logprobs), c.versions) == (0, 0, ()) for c in refused)


def test_a_model_without_a_limit_of_positions_has_room_for_anything():
    alibi = BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2))
    assert generator_of(alibi).max_length == sys.maxsize


async def test_gauges_count_what_waits():
    async with generator_of(qwen(), batch_size=3) as generator:
        assert (generator.in_flight, generator.gauges()["engine_waiting"]) == (3, 0)
        waiting = [asyncio.create_task(generator.sample(prompts(1)[0], 3, SamplingParams())) for _ in range(4)]
        await asyncio.sleep(0)
        assert generator.gauges()["engine_waiting"] == 4
        async with generator.make_room():
            await asyncio.gather(*waiting)
        assert generator.gauges()["engine_waiting"] == 0
