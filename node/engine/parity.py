"""Whether the engine that samples holds the learner's weights. Pure.

After every update both compute the log-probabilities of one fixed text. An engine fuses, splits and packs weights, and
a copy that an update missed shows in nothing else: no error, slightly wrong probabilities, and a correction that then
corrects for what never happened. When the two differ, every layer is asked what it really computes, to name the
parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

#: Largest difference of a log-probability, by dtype. float32: the same sums in another order came to 5e-7. bfloat16:
#: see docs/benchmarks.md.
TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 0.25}
#: Of a layer's output, relative to its largest value.
LAYER_TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 2e-2}

#: What the probe says. Any tokenizer has tokens for it.
TEXT = "The quick brown fox jumps over 13 lazy dogs; 7 * 6 = 42, and <answer>{x: [1, 2]}</answer> is not Ünïcødé."
MAX_TOKENS = 64


def probe_ids(encoded: np.ndarray, max_length: int) -> np.ndarray:
    """int32 [P], 2 <= P: as much of the encoded text as an engine with room for `max_length` tokens scores, which
    samples one more."""
    return encoded[: max(2, min(MAX_TOKENS, max_length - 1))]


def deviation(engine: np.ndarray, learner: np.ndarray) -> float:
    """Largest absolute difference of two float32 [P - 1]; inf where they cannot be compared."""
    if engine.shape != learner.shape:
        return float("inf")
    difference = float(np.max(np.abs(engine - learner), initial=0.0))
    return difference if np.isfinite(difference) else float("inf")


def probe_vector(size: int) -> torch.Tensor:
    """float32 [size], the same ones in every process."""
    return torch.randn(size, generator=torch.Generator().manual_seed(size))


def differing_parameters(
    layers: Mapping[str, Sequence[float]],
    fused: Mapping[str, Sequence[str]],
    tensors: Mapping[str, torch.Tensor],
    tolerance: float,
) -> list[str]:
    """Names among `tensors` (the learner's) that the engine does not have.

    `layers` is what the engine's parameters make of `probe_vector`, by the engine's names; `fused` says which of the
    learner's layers are one of the engine's ("qkv_proj" -> "q_proj", "k_proj", "v_proj"). Names that only one side
    knows are left out: models are not always built alike.
    """
    return [
        name
        for layer, output in layers.items()
        for name, part in _parts(layer, torch.tensor(output, dtype=torch.float64), fused, tensors)
        if _differ(part, _product(tensors[name]), tolerance)
    ]


def _parts(
    layer: str, output: torch.Tensor, fused: Mapping[str, Sequence[str]], tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The learner's parameters that are in the engine's parameter `layer`, each with its share of the output."""
    path, _, kind = layer.rpartition(".")
    parent, _, last = path.rpartition(".")
    names = [f"{parent}.{part}.{kind}".lstrip(".") for part in fused.get(last, [last])]
    if not all(name in tensors for name in names):
        return
    sizes = [tensors[name].shape[0] for name in names]
    if sum(sizes) <= len(output):  # engines pad vocabularies
        yield from zip(names, output[: sum(sizes)].split(sizes), strict=True)


def _product(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().double().cpu()
    return tensor if tensor.ndim < 2 else tensor @ probe_vector(tensor.shape[-1]).double()


def _differ(engine: torch.Tensor, learner: torch.Tensor, tolerance: float) -> bool:
    scale = float(learner.abs().max()) + 1e-6
    return not bool((engine - learner).abs().max() <= tolerance * scale)
