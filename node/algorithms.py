"""Every knob of the algorithms on one page: values, advantages, losses, what is learned from peers, and how much of it.

Part of the node's configuration (`node/config.py`, whose conventions hold here). Every number's source is given where
it is used (node/rl).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from node.table import Fraction, Table


class TrackerConfig(Table):
    prompt_decay: Annotated[float, Field(gt=0, le=1)] = 0.96
    """What an outcome of one prompt is worth a policy update later (SPO++ rho; prompts come back rarely)."""
    cell_decay: Annotated[float, Field(gt=0, le=1)] = 0.875
    """The same for a (source, difficulty) cell and for a source, which are seen in every update."""
    prior_mass: PositiveFloat = 8.0
    """Pseudo-outcomes that a parent's value is worth to its child (SPO N_0)."""
    max_prompts: PositiveInt = 100_000
    """Prompts remembered; the least recently seen go first."""


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
    """AReaL: PPO around the proximal policy, times the capped behaviour weight."""
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


ObjectiveConfig = Annotated[DppoTv | PpoClip | DecoupledPpo | Cispo | Gspo, Field(discriminator="type")]


class ReceiverBaseline(Table):
    type: Literal["receiver_baseline"] = "receiver_baseline"
    """r - min(v, peer mean), drawn where we fail and the peer verifiably succeeds; never up-weighted (default)."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28
    demand: NonNegativeFloat = 2.0
    """Groups are drawn with weight (1 - v)^demand."""
    negatives: Fraction = 0.0
    """Weight of a peer's failures; 0 learns from successes only."""


class RecOneside(Table):
    type: Literal["rec_oneside"] = "rec_oneside"
    """REC-OneSide-NoIS around our own snapshot, attenuated by how likely the text is to us (algorithm sheet 10.4 B)."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28
    floor: Fraction = 0.8
    """Rollouts whose byte-normalised likelihood ratio s is below are not used."""
    negative_floor: Fraction = 0.9
    """The same for rollouts with a negative advantage."""
    bytes_per_token: PositiveFloat = 4.0
    """kappa: s is a geometric mean per so many bytes."""


class SapoPlain(Table):
    type: Literal["sapo_plain"] = "sapo_plain"
    """The paper's arm: group advantage of the peer's group, no correction (SAPO section 3)."""
    low: Fraction = 0.2
    high: PositiveFloat = 0.28


ForeignConfig = Annotated[ReceiverBaseline | RecOneside | SapoPlain, Field(discriminator="type")]


class LearnerConfig(Table):
    lr: PositiveFloat = 1e-6
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat = 1.0
    warmup_steps: NonNegativeInt = 10
    updates_per_batch: PositiveInt = 1
    tokens_per_micro_batch: PositiveInt = 16_384
    """Padded tokens in one forward pass."""
    logit_chunk: PositiveInt = 4096
    """Action tokens whose logits exist at the same time."""
    min_advantage: NonNegativeFloat = 0.02
    """Rollouts with less are not trained on: they would cost a forward pass and move nothing."""
    opsm_delta: PositiveFloat = 0.5
    """Own negatives that drifted further (mean nats a token) are vetoed (DeepSeek-V3.2 OPSM)."""


class PoolConfig(Table):
    own_groups: PositiveInt = 4
    """I: own groups per step."""
    foreign_groups: NonNegativeInt = 4
    """J: at most so many of peers' groups per step; never waited for."""
    own_capacity: PositiveInt = 16
    """Own groups waiting; the generator waits when it is full."""
    foreign_capacity: PositiveInt = 256
    """Peers' groups waiting; the oldest is dropped when it is full."""
    max_lag: PositiveInt = 8
    """Own groups older than so many policy versions are dropped at the draw."""
    foreign_max_lag: PositiveInt = 32
    """Peers' groups that arrived more than so many own steps ago are dropped."""
    foreign_max_age_s: PositiveFloat = 900.0
    """... or that are older than this by the wall clock."""
    peer_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Of a step's foreign groups, at most this share (at least one group) from one origin while others are waiting."""
