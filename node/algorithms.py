"""Every knob of the algorithms on one page: values, advantages, losses, what is learned from peers, and how much of it.

Part of the node's configuration (`node/config.py`, whose conventions hold here). Every number's source is given where
it is used (node/rl).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from node.table import Fraction, Table

Truncated = Literal["scored", "failed", "ignored"]


class TrackerConfig(Table):
    prompt_decay: Annotated[float, Field(gt=0, le=1)] = 0.96
    """What an outcome of one prompt is worth a policy update later (SPO++ rho; prompts come back rarely)."""
    cell_decay: Annotated[float, Field(gt=0, le=1)] = 0.875
    """The same for a (source, difficulty) cell and for a source, which are seen in every update."""
    prior_mass: PositiveFloat = 8.0
    """Pseudo-outcomes that a parent's value is worth to its child (SPO N_0)."""
    max_prompts: PositiveInt = 100_000
    """Prompts remembered; the least recently seen go first."""
    peers: Literal["ignore", "weigh", "prior"] = "ignore"
    """What the rewards of peers' rollouts say of our own values: nothing, a little evidence, or a prior where we have
    little of our own."""
    peer_weight: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Outcomes of our own that a peer's outcome is worth there."""


class SpoAdvantage(Table):
    type: Literal["spo"] = "spo"
    """r - v, whitened over the batch's own action tokens (SPO++)."""
    clamp: PositiveFloat = 5.0


class GrpoAdvantage(Table):
    type: Literal["grpo"] = "grpo"
    """(r - mean) / std of the group."""


class DrGrpoAdvantage(Table):
    type: Literal["dr_grpo"] = "dr_grpo"
    """r - mean of the group."""


class RlooAdvantage(Table):
    type: Literal["rloo"] = "rloo"
    """r - mean of the others in the group."""


AdvantageConfig = Annotated[SpoAdvantage | GrpoAdvantage | DrGrpoAdvantage | RlooAdvantage, Field(discriminator="type")]


class DppoTv(Table):
    type: Literal["dppo_tv"] = "dppo_tv"
    """Capped importance weight, masked by total variation, with a squared log-ratio (default)."""
    delta: PositiveFloat = 0.2
    cap: PositiveFloat = 2.0
    squared_log_ratio: NonNegativeFloat = 1e-3


class PpoClip(Table):
    type: Literal["ppo_clip"] = "ppo_clip"
    low: Fraction = 0.2
    high: PositiveFloat = 0.28


class DecoupledPpo(Table):
    type: Literal["decoupled_ppo"] = "decoupled_ppo"
    """AReaL: PPO around the proximal policy, times the capped behaviour weight. With cap 2 it is token-level TIS."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28
    cap: PositiveFloat = 5.0


class Cispo(Table):
    type: Literal["cispo"] = "cispo"
    cap: PositiveFloat = 5.0


class Gspo(Table):
    type: Literal["gspo"] = "gspo"
    """Sequence-level ratio; only for rollouts of the same engine and weights."""
    low: PositiveFloat = 3e-4
    high: PositiveFloat = 4e-4


class Reinforce(Table):
    type: Literal["reinforce"] = "reinforce"
    """No correction at all, for comparison; it collapses on stale data. learner.opsm_delta still vetoes."""


class IcePop(Table):
    type: Literal["icepop"] = "icepop"
    """decoupled_ppo whose weight is not capped: a token with a weight outside of [least, most] is dropped."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28
    least: Fraction = 0.5
    """Smallest prox / mu that is trusted."""
    most: Annotated[float, Field(ge=1)] = 5.0
    """Largest."""


class M2po(Table):
    type: Literal["m2po"] = "m2po"
    """Drops outward tokens, the furthest first, over the whole batch; for extreme staleness. Costs a forward pass more
    per update where a batch has several micro-batches (about a third)."""
    budget: PositiveFloat = 0.04
    """Largest mean (log rho)^2 of the outward tokens that are kept (tau)."""


class Vespo(Table):
    type: Literal["vespo"] = "vespo"
    """REINFORCE with a smooth weight of the rollout's ratio W: W^k exp(lambda (1 - W))."""
    positive: tuple[PositiveFloat, PositiveFloat] = (2.0, 3.0)
    """(k, lambda) where A >= 0."""
    negative: tuple[PositiveFloat, PositiveFloat] = (3.0, 2.0)
    """(k, lambda) where A < 0."""


class SeqTis(Table):
    type: Literal["seq_tis"] = "seq_tis"
    """REINFORCE with the rollout's importance weight, truncated (VCPO's; its step size is learner.lr_rule = "ess")."""
    cap: PositiveFloat = 8.0


class Remix(Table):
    type: Literal["remix"] = "remix"
    """PPO against the sampler, clipped around what the proximal policy makes of it."""
    clip: PositiveFloat = 0.2
    """Half the width of the clip, on both sides."""


ObjectiveConfig = Annotated[
    DppoTv | PpoClip | DecoupledPpo | Cispo | Gspo | Reinforce | IcePop | M2po | Vespo | SeqTis | Remix,
    Field(discriminator="type"),
]


class ReceiverBaseline(Table):
    type: Literal["receiver_baseline"] = "receiver_baseline"
    """r - min(v, peer mean), drawn where we fail and the peer verifiably succeeds; never up-weighted (default)."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28
    demand: NonNegativeFloat = 2.0
    """Groups are drawn with weight (1 - v)^demand."""
    negatives: Fraction = 0.0
    """Weight of a peer's failures; 0 learns from successes only."""


class ChunkAligned(Table):
    type: Literal["chunk_aligned"] = "chunk_aligned"
    """receiver_baseline, without the stretches of text on which we and the peer disagree by too much."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28
    demand: NonNegativeFloat = 2.0
    """Groups are drawn with weight (1 - v)^demand."""
    negatives: Fraction = 0.0
    """Weight of a peer's failures; 0 learns from successes only."""
    chunk_low: Fraction = 0.5
    """Chunks that are less likely to us than this, relative to the peer, are masked (IcePop's bounds, per chunk)."""
    chunk_high: Annotated[float, Field(ge=1)] = 5.0
    """The same for those that are more likely."""


class RecOneside(Table):
    type: Literal["rec_oneside"] = "rec_oneside"
    """REC-OneSide-NoIS around our own snapshot, attenuated by how likely the text is to us."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28
    floor: Fraction = 0.5
    """Rollouts whose byte-normalised likelihood ratio s is below are not used (docs/experiments/cross-tokenizer.md)."""
    negative_floor: Fraction = 0.9
    """The same for rollouts with a negative advantage."""
    bytes_per_token: PositiveFloat = 4.0
    """kappa: s is a geometric mean per so many bytes."""


class SapoPlain(Table):
    type: Literal["sapo_plain"] = "sapo_plain"
    """The paper's arm: group advantage of the peer's group, no correction (SAPO section 3)."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28


ForeignConfig = Annotated[ReceiverBaseline | ChunkAligned | RecOneside | SapoPlain, Field(discriminator="type")]


class NoGate(Table):
    type: Literal["none"] = "none"
    """Peers' rollouts are trained on however unlikely they are to us: a third of hostile ones ruins a node then."""


class AbsoluteGate(Table):
    type: Literal["absolute"] = "absolute"
    """Those that our own policy, as it is before the step, finds too unlikely are not."""
    max_bits_per_byte: PositiveFloat = 4.0


class RelativeGate(Table):
    type: Literal["relative"] = "relative"
    """Those that it finds unlikelier than most of the latest are not."""
    quantile: Fraction = 0.9
    window: PositiveInt = 256
    """Peers' rollouts that are remembered."""


class OwnGate(Table):
    type: Literal["own"] = "own"
    """Those with a stretch that is much unlikelier than the least likely ones of our own rollouts are not. Nothing that
    peers send moves the threshold; texts as long as a book cannot hide a sentence."""
    window_bytes: PositiveInt = 16
    """Length of a stretch."""
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of our own rollouts' least likely stretches..."""
    slack: PositiveFloat = 2.0
    """... times this is the most that a peer's may have, in bits."""
    window: PositiveInt = 512
    """Own rollouts that are remembered."""


ForeignGateConfig = Annotated[NoGate | AbsoluteGate | RelativeGate | OwnGate, Field(discriminator="type")]


class NoGuidance(Table):
    type: Literal["none"] = "none"
    """Every token of a rollout has the rollout's advantage (default)."""


class PeerGuidance(Table):
    type: Literal["peer_scores"] = "peer_scores"
    """Where a stronger peer has scored a rollout of ours, its tokens' advantages differ by what it thinks of them
    (node/rl/guidance.py). Peers are asked in the laboratory only: nothing of it is on the wire."""
    weight: PositiveFloat = 0.5
    """Advantage per nat between the peer and us."""
    clip: PositiveFloat = 1.0
    """Nats per token that count at most."""
    bound: Fraction = 0.5
    """Of a rollout's own advantage, the largest part that a token's may differ by."""


GuidanceConfig = Annotated[NoGuidance | PeerGuidance, Field(discriminator="type")]


class LearnerConfig(Table):
    lr: PositiveFloat = 1e-6
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat = 1.0
    warmup_steps: NonNegativeInt = 0
    lr_rule: Literal["none", "staleness", "ess"] = "none"
    """Times min(1, 2 / (1 + mean staleness of own rows)), or times sqrt(ESS / B) of own rollouts' weights."""
    reincarnate_every: NonNegativeInt = 0
    """Policy versions after which the optimiser forgets its moments and the warm-up begins again (ReMix); 0 never."""
    updates_per_batch: PositiveInt = 1
    tokens_per_micro_batch: PositiveInt = 16_384
    """Tokens in one forward pass, with padding; halved by itself when memory runs out in a step."""
    packing: bool = True
    """Rollouts share a row, without padding, and those of a prompt share its tokens, where the model can."""
    logit_chunk: PositiveInt = 4096
    """Action tokens whose logits exist at the same time."""
    fp32_head: bool = False
    """Logits are multiplied in float32 where policy.dtype is "bfloat16" (ScaleRL); the engine's are as they are."""
    recompute_activations: bool = False
    """Layers keep nothing for the backward pass but their input, and are computed again: a third more work, and a
    fraction of the memory. On a CPU freed memory goes back to the system at once, too (node/engine/heap.py)."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """What the model's weights are while it computes; with "bfloat16" the optimiser has float32 ones of its own."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """ "adamw_8bit" has moments of a byte (torchao; pip install 'swarm-node[torchao]')."""
    offload_optimizer: bool = False
    """The optimiser's weights and moments are in RAM, and updates are made there: slower, and 12 bytes per trained
    parameter less on the GPU."""
    compile: bool = False
    """torch.compile of the layers: faster after a minute or so of compiling at the first steps."""
    deterministic: bool = False
    """The same bits from the same batch, where an algorithm can be had that does that; for tests."""
    min_advantage: NonNegativeFloat = 0.02
    """Rollouts with less are not trained on: they would cost a forward pass and move nothing."""
    truncated: Truncated = "failed"
    """What a rollout is worth that was cut off before its policy ended it: "scored" as its text is, "failed" (reward
    0: who has answered should stop, which some swarms unlearn otherwise: docs/experiments/sharing-tokenizers.md), or
    "ignored"."""
    devices: PositiveInt | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = 1
    """So many of policy.device's kind, or CUDA devices by number; several share weights, gradients and the optimiser's
    state among them (FSDP2), one process each."""
    draw_ahead: bool = False
    """The next batch is drawn and packed while a step is under way (node/drawing.py); own groups are then up to a step
    older. Not in experiments."""
    step_timeout_s: PositiveFloat = 600.0
    """Of several devices, for one step; a learner that takes longer counts as lost."""
    opsm_delta: PositiveFloat = 0.5
    """Own negatives that drifted further (mean nats a token) are vetoed (DeepSeek-V3.2 OPSM)."""

    @property
    def num_devices(self) -> int:
        return self.devices if isinstance(self.devices, int) else len(self.devices)


class FixedShare(Table):
    type: Literal["fixed"] = "fixed"
    """At most pool.foreign_groups in every step (default)."""


class ScheduledShare(Table):
    type: Literal["scheduled"] = "scheduled"
    """Fewer and fewer: experience of others is for the beginning (ReMix, arXiv 2507.06892)."""
    start_step: NonNegativeInt = 0
    """Up to here pool.foreign_groups, then linearly fewer. Steps are our policy versions."""
    end_step: Annotated[NonNegativeInt, Field(validate_default=True)] = 1000
    """From here on final_groups."""
    final_groups: NonNegativeInt = 1

    @field_validator("end_step")
    @classmethod
    def _after_the_start(cls, end: int, info: ValidationInfo) -> int:
        if end <= (start := info.data.get("start_step", -1)):
            raise PydanticCustomError("greater_than", "greater than {gt}", {"gt": start})
        return end


class UsefulShare(Table):
    type: Literal["useful"] = "useful"
    """As many as they have to teach us, compared with what our own groups have."""
    window: PositiveInt = 50
    """Own groups over which their use is averaged."""


class GuardedShare(Table):
    type: Literal["guarded"] = "guarded"
    """Halved, for good, whenever our own reward has fallen and stays there: nodes that learn mostly from others
    learn and forget in turns (SAPO's 2/6 arm)."""
    drop: Fraction = 0.1
    """How far below its best, relative to it."""
    steps: PositiveInt = 50
    """For how long; also over how many steps our own reward is averaged."""


ShareConfig = Annotated[FixedShare | ScheduledShare | UsefulShare | GuardedShare, Field(discriminator="type")]


class PoolConfig(Table):
    own_groups: PositiveInt = 32
    """I: own groups per step."""
    foreign_groups: NonNegativeInt = 96
    """J: at most so many of peers' groups per step, and at most as many tokens as own ones; never waited for. Three
    times I was worth twice I's gain (docs/experiments/sharing-skills.md)."""
    share: ShareConfig = FixedShare()
    """How many of those J a step really takes."""
    own_capacity: PositiveInt = 64
    """Own groups waiting; the generator waits when it is full."""
    foreign_capacity: PositiveInt = 1024
    """Peers' groups waiting; the oldest is dropped when it is full."""
    foreign_mib: PositiveFloat = 256.0
    """Memory that they may take together; the oldest is dropped when it is more."""
    max_lag: PositiveInt = 8
    """Own groups older than so many policy versions are dropped at the draw."""
    foreign_max_lag: PositiveInt = 32
    """Peers' groups that arrived more than so many own steps ago are dropped."""
    foreign_max_age_s: PositiveFloat = 900.0
    """... or that are older than this by the wall clock."""
    peer_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Of a step's foreign groups, at most this share (at least one group) from one origin while others are waiting."""
    lineage_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The same for all origins that are reached in one network (/24, or /48 of IPv6)."""
    newcomer_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """All origins that have not taught us anything yet together: at most this share (at least one group) of a step's
    groups, and of the room for waiting ones. What they do not use is free; what others do not use is not theirs."""
    distinct: bool = True
    """Whether a group is refused whose texts came before, for the same task."""
    max_length_ratio: PositiveFloat = 4.0
    """Where we mostly succeed, peers' responses that are longer than so many of our own are not learned from."""
