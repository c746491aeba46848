"""How large a model is, and how much memory its learner takes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

from node.algorithms import LearnerConfig
from node.config import TransformersEngine, VllmEngine

Dtype = Literal["float32", "bfloat16"]

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
#: Of a weight: half a byte, a byte of scale for 64 of them, and 4 for 256 of those (node/engine/nf4.py).
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
#: Saved for the backward pass per token and layer, in bytes per unit of (hidden, MLP, query, key) width. Counted with
#: saved-tensor hooks on transformers' Llama, Qwen2 and Qwen3 (tests/test_room.py counts again); the larger ones are
#: taken, of Qwen3, which also normalises queries and keys. About twice the 34 bytes per hidden unit of Korthikanti et
#: al. (arXiv 2205.05198, eq. 1 without attention's quadratic part), who have a fused norm and no gate in the MLP. In
#: bfloat16 the norms stay float32.
SAVED_BYTES = {"float32": (24, 16, 24, 8), "bfloat16": (26, 8, 14, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Of a dense decoder with (grouped) attention and a gated MLP. Experts, sliding windows and other attention are
    counted as if they were that."""

    parameters: int
    """Tied ones once."""
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    """Width of the MLP."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    quantised: int = 0
    """Of the parameters, in NF4."""
    positions: int | None = None
    """Tokens of a text that it can tell apart; None where it has no limit."""

    @classmethod
    def of(cls, config: PreTrainedConfig, parameters: int, trainable: int, quantised: int = 0) -> ModelSize:
        """From transformers' description of a model; of one with several modalities, the text's."""
        text = config.get_text_config(decoder=True)
        heads, hidden = text.num_attention_heads, text.hidden_size
        return cls(
            parameters=parameters,
            trainable=trainable,
            layers=text.num_hidden_layers,
            hidden=hidden,
            intermediate=getattr(text, "intermediate_size", None) or 4 * hidden,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or hidden // heads,
            vocabulary=text.vocab_size,
            quantised=quantised,
            positions=getattr(text, "max_position_embeddings", None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerBytes:
    """What the learner will take beside the policy's weights, which are there already."""

    standing: int
    """Also between its steps."""
    passing: int
    """During a step only."""

    @property
    def whole(self) -> int:
        return self.standing + self.passing


NOTHING = LearnerBytes(standing=0, passing=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBytes:
    """The policy's weights as a learner has them, with the float32 ones that its optimiser works on where those are
    others (node/engine/optimizer.py)."""

    loading: int
    """In RAM, until they are where they are used."""
    ram: int
    """In RAM from then on: all of it where the learner is on the CPU."""
    converting: int
    """On its GPU, before they are in the precision that they are used in; nothing where there are several."""
    device: int
    """On each of its GPUs from then on."""


def policy_bytes(size: ModelSize, learner: LearnerConfig, on_cpu: bool) -> PolicyBytes:
    """`on_cpu`: the learner is. Everything is loaded in float32, into RAM. A learner on several devices leaves it
    there, and hands a copy to its ranks through shared memory (node/engine/ranks/several.py)."""
    ranks, whole = learner.num_devices, 4 * size.parameters
    float32, held = held_bytes(size, "float32"), held_bytes(size, learner.weights)
    others = learner.weights != "float32" or learner.offload_optimizer
    masters = 4 * size.trainable if others else 0
    offloaded = masters if learner.offload_optimizer and not on_cpu else 0
    used = held + masters - offloaded
    kept = whole if ranks > 1 else 0
    loading = 2 * whole if ranks > 1 else whole
    converting = float32 + masters - offloaded if ranks == 1 else 0
    if on_cpu:
        loading = max(loading, converting, 2 * kept + used if kept else 0)
        return PolicyBytes(loading=loading, ram=kept + used, converting=0, device=0)
    return PolicyBytes(loading=loading, ram=kept + offloaded, converting=converting, device=-(-used // ranks))


def held_bytes(size: ModelSize, dtype: Dtype) -> int:
    """Of the weights: those in NF4, and the others in `dtype`."""
    return math.ceil(NF4_BYTES * size.quantised) + DTYPE_BYTES[dtype] * (size.parameters - size.quantised)


def ram_bytes(
    size: ModelSize,
    dtype: Dtype,
    max_length: int,
    learner: LearnerConfig,
    engine: VllmEngine | TransformersEngine,
    on_cpu: bool,
) -> LearnerBytes:
    """What the learner will take of RAM beside the policy's weights: `engine.learner_gib` where it is on the CPU, or
    else an upper estimate.

    Standing: a checkpoint's copy of weights and moments (12 bytes per trained parameter) while it is written; of
    several devices the weights on their way to the engine; with `learner.offload_optimizer` the moments. Passing:
    gradients and temporaries of updates that are made there. On the CPU, what is on each of its devices as well.
    """
    each = learner_bytes(size, dtype, max_length, learner, engine)
    if on_cpu and isinstance(engine, VllmEngine) and engine.learner_gib:
        return each
    ranks, offloaded = learner.num_devices, 8 * size.trainable if learner.offload_optimizer else 0
    standing = 12 * size.trainable + offloaded + (DTYPE_BYTES[dtype] * size.trainable if ranks > 1 else 0)
    passing = offloaded
    if on_cpu:
        standing += ranks * each.standing
        passing = max(passing, ranks * each.passing)
    return LearnerBytes(standing=standing, passing=passing)


def batch_bytes(size: ModelSize, dtype: Dtype, max_length: int, max_new_tokens: int, sequences: int) -> int:
    """What the transformers engine takes at least for a batch (node/engine/sampling.py): keys and values of all its
    responses at their longest and of one whole sequence (how long prompts are, only the tasks know), and a row of
    float32 logits in the five forms that a token is drawn through."""
    tokens = sequences * max_new_tokens + max_length - max_new_tokens
    return tokens * kv_bytes(size, dtype) + 5 * 4 * sequences * size.vocabulary


def kv_bytes(size: ModelSize, dtype: Dtype, ranks: int = 1) -> int:
    """Of a token's keys and values, on each of `ranks` devices that share the heads."""
    return 2 * size.layers * -(-size.kv_heads // ranks) * size.head_dim * DTYPE_BYTES[dtype]


def learner_bytes(
    size: ModelSize,
    dtype: Dtype,
    max_length: int,
    learner: LearnerConfig,
    engine: VllmEngine | TransformersEngine,
) -> LearnerBytes:
    """`engine.learner_gib`, or else an upper estimate of what node/engine/updates.py takes.

    Standing: gradients in the weights' precision, Adam's two moments (of 4 bytes per trainable parameter, or of 1;
    nothing where they are in RAM), and the copy of the weights on its way to the engine. Passing, the larger of: a
    micro-batch's forward and backward pass, that is what its layers keep, the head, and under autocast the 16-bit
    copies of float32 weights; or the optimiser's update, whose temporaries are another 4 bytes per trainable parameter.
    Weights in NF4 are put together one layer at a time, in float32 and then in the dtype that is computed in.

    On each of several devices (node/engine/ranks): its part of what is standing, without that copy, which is made in
    RAM; and in a step, whole, weights and gradients of embeddings, head, and two layers (one computes while the next
    comes).
    """
    tokens = max(learner.tokens_per_micro_batch, max_length)  # a longer row is a micro-batch alone
    cast = 2 * (size.parameters - size.quantised) if dtype == "bfloat16" and learner.weights == "float32" else 0
    if size.quantised:
        cast += (6 if dtype == "bfloat16" else 4) * size.hidden * size.intermediate
    gradients = DTYPE_BYTES[learner.weights]
    moments, update = (2 if learner.optimizer == "adamw_8bit" else 8), 4
    if learner.offload_optimizer:
        moments = update = 0
    ranks = learner.num_devices
    copied = DTYPE_BYTES[dtype] * size.trainable if ranks == 1 else 0
    standing = (gradients + moments) * size.trainable // ranks + copied
    whole = _whole(size) if ranks > 1 else 0
    passing = max(
        _kept(size, dtype, tokens, learner) + _head(size, dtype, tokens, learner) + cast + whole,
        update * size.trainable // ranks,
    )
    if isinstance(engine, VllmEngine) and engine.learner_gib:
        given = int(engine.learner_gib * GIB)
        return LearnerBytes(standing=min(given, standing), passing=max(0, given - standing))
    return LearnerBytes(standing=standing, passing=passing)


def _whole(size: ModelSize) -> int:
    """Of several devices, on each: float32 weights and gradients that are put together at the same time."""
    outside = min(2 * size.vocabulary * size.hidden, size.parameters)
    return 8 * (outside + 2 * (size.parameters - outside) // size.layers)


def _kept(size: ModelSize, dtype: Dtype, tokens: int, learner: LearnerConfig) -> int:
    """For the backward pass: SAVED_BYTES of every layer; or of one, and the float32 input of every other."""
    widths = (size.hidden, size.intermediate, size.heads * size.head_dim, size.kv_heads * size.head_dim)
    layer = tokens * sum(b * width for b, width in zip(SAVED_BYTES[dtype], widths, strict=True))
    return layer + 4 * tokens * size.hidden * size.layers if learner.recompute_activations else layer * size.layers


def _head(size: ModelSize, dtype: Dtype, tokens: int, learner: LearnerConfig) -> int:
    """A chunk of logits in float32, their 16-bit product beside it, and a gradient of the head that is added to the
    one that is there (node/engine/head.py)."""
    product = 2 if dtype == "bfloat16" and not learner.fp32_head else 0
    gradient = 4 * size.vocabulary * size.hidden if size.trainable == size.parameters else 0
    return (4 + product) * min(learner.logit_chunk, tokens) * size.vocabulary + gradient
