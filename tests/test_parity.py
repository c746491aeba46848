"""Whether two sides hold the same weights, and which parameter it is that differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch

from node.engine.parity import MAX_TOKENS, deviation, differing_parameters, probe_ids, probe_vector

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def learner() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "embed.weight": torch.randn(10, 4),
        "layers.0.norm.weight": torch.randn(4),
        "layers.0.attn.q_proj.weight": torch.randn(6, 4),
        "layers.0.attn.q_proj.bias": torch.randn(6),
        "layers.0.attn.k_proj.weight": torch.randn(2, 4),
        "layers.0.attn.k_proj.bias": torch.randn(2),
        "layers.0.attn.v_proj.weight": torch.randn(2, 4),
        "layers.0.attn.v_proj.bias": torch.randn(2),
        "layers.0.attn.o_proj.weight": torch.randn(4, 6),
        "lm_head.weight": torch.randn(10, 4),
    }


def engine(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """What an engine says that has fused three layers into one and made its vocabulary 16."""
    outputs = {
        name: (tensor @ probe_vector(tensor.shape[-1]) if tensor.ndim > 1 else tensor)
        for name, tensor in tensors.items()
    }
    said = {name: output.tolist() for name, output in outputs.items() if "_proj" not in name or "o_proj" in name}
    for kind in ("weight", "bias"):
        parts = [outputs[f"layers.0.attn.{part}.{kind}"] for part in FUSED["qkv_proj"]]
        said[f"layers.0.attn.qkv_proj.{kind}"] = torch.cat(parts).tolist()
    for name in ("embed.weight", "lm_head.weight"):
        said[name] += [0.0] * 6
    return said


def differing(
    layers: Mapping[str, Sequence[float]], tensors: Mapping[str, torch.Tensor], tolerance: float = 1e-4
) -> list[str]:
    return differing_parameters(layers, FUSED, tensors, tolerance)


def test_equal_weights_do_not_differ() -> None:
    assert differing(engine(learner()), learner()) == []


@pytest.mark.parametrize("name", learner())
@pytest.mark.parametrize("wrong", [torch.zeros_like, lambda tensor: tensor + 1e-2, lambda tensor: tensor * torch.nan])
def test_exactly_the_parameter_that_differs_is_named(name: str, wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
    theirs = learner()
    theirs[name] = wrong(theirs[name])
    assert differing(engine(theirs), learner()) == [name]


def test_several_are_named_even_of_one_layer() -> None:
    theirs = learner()
    names = ["layers.0.attn.q_proj.bias", "layers.0.attn.q_proj.weight", "layers.0.attn.v_proj.weight"]
    for name in names:
        theirs[name] = -theirs[name]
    assert sorted(differing(engine(theirs), learner())) == names


def test_a_single_entry_is_enough() -> None:
    theirs = learner()
    theirs["layers.0.attn.o_proj.weight"][3, 5] += 0.01
    assert differing(engine(theirs), learner()) == ["layers.0.attn.o_proj.weight"]


def test_what_is_within_the_tolerance_does_not_differ() -> None:
    """Of a layer's output, relative to its largest value."""
    theirs = learner()
    norm = theirs["layers.0.norm.weight"]
    largest = float(norm.abs().max())
    norm[0] += 0.01 * largest
    assert differing(engine(theirs), learner(), tolerance=0.011) == []
    assert differing(engine(theirs), learner(), tolerance=0.009) == ["layers.0.norm.weight"]


def test_names_that_only_one_side_knows_are_left_out() -> None:
    ours, theirs = learner(), engine(learner())
    del ours["layers.0.attn.k_proj.bias"], theirs["lm_head.weight"]
    theirs |= {"rotary.weight": [1.0], "layers.0.mlp.gate_up_proj.weight": [1.0, 2.0]}
    theirs["layers.0.norm.weight"] = [0.0]  # shorter than ours: it is something else
    assert differing(theirs, ours) == []


def test_a_model_may_be_a_single_layer() -> None:
    layer = {"o_proj.weight": torch.ones(2, 3)}
    assert differing({"o_proj.weight": [0.0, 0.0]}, layer) == ["o_proj.weight"]


@pytest.mark.parametrize(
    ("theirs", "difference"),
    [
        ([-1.0, -2.0], 0.0),
        ([-1.5, -1.75], 0.5),
        ([-1.0, np.nan], np.inf),
        ([-1.0, -np.inf], np.inf),
        ([-1.0], np.inf),
        ([], np.inf),
    ],
)
def test_the_largest_difference_counts(theirs: list[float], difference: float) -> None:
    ours = np.array([-1.0, -2.0], np.float32)
    assert deviation(np.array(theirs, np.float32), ours) == difference
    assert deviation(ours, np.array(theirs, np.float32)) == difference


def test_the_probe_leaves_room_for_the_token_that_is_sampled_after_it() -> None:
    encoded = np.arange(100, dtype=np.int32)
    assert [len(probe_ids(encoded, room)) for room in (1000, MAX_TOKENS + 1, MAX_TOKENS, 11, 3)] == [
        MAX_TOKENS,
        MAX_TOKENS,
        MAX_TOKENS - 1,
        10,
        2,
    ]
    assert probe_ids(encoded, 11).tolist() == list(range(10))


def test_the_probes_vector_is_the_same_everywhere() -> None:
    torch.manual_seed(7)
    first = probe_vector(3)
    torch.manual_seed(8)
    assert torch.equal(first, probe_vector(3))
    assert first.dtype == torch.float32
    np.testing.assert_allclose(first, [0.803276062, 0.174833387, 0.088978097])
