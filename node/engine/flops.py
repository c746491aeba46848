"""Model FLOPs of a batch: the multiplications and additions that its gradient cannot do without.

Of T tokens as they are packed (a shared prompt once, no padding) and N actions, with P parameters in the layers' linear
maps, L layers, queries of A units in all, a head of H x V:

    forward   2 P T  +  4 A L * pairs  +  2 H V N        pairs: (query, key) that see each other
    backward  twice that

Nothing that is computed again is counted, nor norms, activations and softmax: model FLOPs utilisation (PaLM, arXiv
2204.02311, appendix B), where T tokens in rows of their own would count every prompt.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from node.engine.nf4 import weights_in
from node.rl.batch import MicroBatch

#: Dense bfloat16 FLOP/s by what a device's name contains, from the vendors' data sheets.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def useful_flops(model: PreTrainedModel, micro_batches: Iterable[MicroBatch]) -> float:
    """Forward and backward, for all of `model`'s parameters. A frozen base spares the gradients of its weights, a third
    of the linear part."""
    config = model.config.get_text_config()
    linear = [m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    parameters = sum(m.weight.numel() for m in linear) + weights_in(model)
    trained = sum(m.weight.numel() for m in linear if m.weight.requires_grad)
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    head_size, head_passes = head.weight.numel(), 3 if head.weight.requires_grad else 2
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    total = 0.0
    for micro in micro_batches:
        tokens, pairs = _tokens_and_pairs(micro)
        total += 2 * tokens * (2 * parameters + trained)
        total += 3 * 4 * width * config.num_hidden_layers * pairs
        total += 2 * head_passes * head_size * len(micro.targets)
    return total


def peak_flops(device: torch.device) -> float | None:
    """Of dense bfloat16, per second; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def _tokens_and_pairs(micro: MicroBatch) -> tuple[int, int]:
    if micro.segments is not None:
        return int(micro.segments.lengths.sum()), micro.segments.pairs()
    lengths = [len(row) for row in micro.rows]
    return sum(lengths), sum(length * (length + 1) // 2 for length in lengths)
