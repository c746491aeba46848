"""The output head in chunks: values and gradients against plain autograd, and never more logits than a chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from node.engine.head import Head, Scores, head_scores
from node.engine.logprobs import token_scores

N, H, V = 23, 8, 37

HEADS = {
    "plain": Head(temperature=1.0, chunk=5),
    "one chunk": Head(temperature=0.7, chunk=N),
    "larger chunk": Head(temperature=0.7, chunk=100),
    "tempered": Head(temperature=0.7, chunk=5),
    "capped": Head(temperature=0.7, chunk=5, softcap=3.0),
    "scaled": Head(temperature=0.7, chunk=5, scale=0.25),
    "all": Head(temperature=1.3, chunk=4, softcap=2.0, scale=1.5),
}


Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def inputs(*, bias: bool, dtype: torch.dtype = torch.float32) -> Inputs:
    """Hidden states, weight and bias; the same numbers in every dtype."""
    rng = torch.Generator().manual_seed(0)
    hidden, weight, added = (
        torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((N, H), (V, H), (V,))
    )
    return hidden, weight, added if bias else None


TARGETS = torch.arange(N) % V
WEIGHTS = torch.linspace(-2, 2, N, dtype=torch.float64)


def plainly(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head: Head) -> Scores:
    logits = head.scale * (hidden @ weight.T + (0 if bias is None else bias))
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logp = torch.log_softmax(logits / head.temperature, -1)
    return Scores(logp.gather(-1, TARGETS[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1))


def gradients(tensors: Inputs, scores: Scores) -> list[torch.Tensor]:
    return list(torch.autograd.grad((scores.logp * WEIGHTS).sum(), [t for t in tensors if t is not None]))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_all_logits_at_once(head: Head, bias: bool) -> None:
    exact, tensors = inputs(bias=bias, dtype=torch.float64), inputs(bias=bias)
    plain, scores = plainly(*exact, head), head_scores(*tensors, TARGETS, head)
    torch.testing.assert_close(scores.logp, plain.logp.float(), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(scores.entropy, plain.entropy.float(), atol=2e-6, rtol=1e-5)
    assert not scores.entropy.requires_grad
    for mine, theirs in zip(gradients(tensors, scores), gradients(exact, plain), strict=True):
        torch.testing.assert_close(mine, theirs.float(), atol=5e-6, rtol=1e-5)


def test_a_second_backward_pass_gives_the_same() -> None:
    hidden, weight, _ = inputs(bias=False)
    scores = head_scores(hidden, weight, None, TARGETS, HEADS["tempered"])
    once, again = (torch.autograd.grad(scores.logp.sum(), (hidden, weight), retain_graph=True) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)


def test_a_frozen_head_has_no_gradient() -> None:
    hidden, weight, _ = inputs(bias=False)
    head_scores(hidden, weight.detach(), None, TARGETS, HEADS["tempered"]).logp.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


class Largest(TorchDispatchMode):
    """Rows of the largest tensor of V columns that any operation returns, forward or backward."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.shape[-1] == V:
                self.rows = max(self.rows, tensor.numel() // V)
        return out


@pytest.mark.parametrize("chunk", [4, 11])
def test_no_more_than_a_chunk_of_logits_exists_forward_or_backward(chunk: int) -> None:
    hidden, weight = (tensor.detach()[:, :3].requires_grad_() for tensor in inputs(bias=False)[:2])
    with Largest() as largest:
        head_scores(hidden, weight, None, TARGETS, Head(temperature=1.0, chunk=chunk)).logp.sum().backward()
    assert largest.rows == chunk


def test_a_head_in_float32_changes_nothing_in_float32() -> None:
    results = []
    for fp32 in (False, True):
        tensors = inputs(bias=False)
        scores = head_scores(*tensors, TARGETS, Head(temperature=0.7, chunk=5, fp32=fp32))
        results.append([scores.logp, scores.entropy, *gradients(tensors, scores)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_head_in_float32_is_nearer_to_the_truth_under_autocast() -> None:
    """Of the weights in float32 and hidden states in bfloat16, as under autocast."""
    hidden, weight, _ = inputs(bias=False)
    hidden = hidden.detach().bfloat16()
    exact: Inputs = (hidden.double().requires_grad_(), weight.detach().double().requires_grad_(), None)
    truth = plainly(*exact, Head(temperature=0.7, chunk=5))
    wanted = [truth.logp.detach(), truth.entropy.detach(), *gradients(exact, truth)]
    errors = {}
    for fp32 in (False, True):
        tensors: Inputs = (hidden.clone().requires_grad_(), weight, None)
        with torch.autocast("cpu", torch.bfloat16):
            scores = head_scores(*tensors, TARGETS, Head(temperature=0.7, chunk=5, fp32=fp32))
        slopes = gradients(tensors, scores)
        assert [tensor.dtype for tensor in slopes] == [torch.bfloat16, torch.float32]
        found = [scores.logp.detach(), scores.entropy, *slopes]
        errors[fp32] = [float((a.double() - b).abs().max()) for a, b in zip(found, wanted, strict=True)]
    assert errors[True][0] < 1e-5
    assert errors[True][0] < errors[False][0] / 100
    assert errors[True][1] < errors[False][1] / 100
    assert errors[True][3] < errors[False][3] / 10


SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODELS = {
    "a cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5, pad_token_id=0)),
    "a factor": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=3.0, pad_token_id=0)),
    "a divisor": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=0.125, pad_token_id=0)),
    "another architecture": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_models_do_to_their_logits(make: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.arange(10)[None]
    positions = torch.arange(10)[None]
    with torch.no_grad():
        scores = token_scores(
            model, ids, torch.ones_like(ids), positions, positions[0, :-1], ids[0, 1:], Head(temperature=0.7, chunk=4)
        )
        wanted = torch.log_softmax(model(ids).logits[0, :-1] / 0.7, -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    torch.testing.assert_close(scores.logp, wanted, atol=1e-5, rtol=1e-5)
