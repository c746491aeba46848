"""From judged groups to rows of tokens to train on.

Text is what is shared; here it becomes our own tokens again. Rows are filtered on their advantage *after* the tracker,
never on the spread of their group's rewards: an expert's all-correct group is the best teacher there is.

Truncated own rollouts are trained on with the reward that they have (`learner.truncated`): a node that is to answer
within its token budget has to learn what did not fit. Rollouts without a score, and those that the engine failed on,
are no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from node.algorithms import AdvantageConfig, ForeignConfig, GuidanceConfig, LearnerConfig, PeerGuidance
from node.experience import Experience, PeerScores
from node.rl.advantage import ADVANTAGES, Outcomes
from node.rl.foreign import FOREIGN
from node.rl.guidance import guidance_metrics, token_guidance
from node.rl.objective import Denominators
from node.text_codec import TextCodec
from swarm.types import FinishReason, PeerId, PolicyVersion, Role, Rollout, SampledTokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeerTokens:
    """What a peer says of its own tokenisation of a response. Good enough to turn the response down, not up."""

    logprobs: np.ndarray
    """float32 [T]."""
    byte_lengths: np.ndarray
    """int32 [T]; adds up to the response's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenRow:
    """One rollout in our tokens: P of the prompt, L of the response (all of them actions)."""

    prompt_ids: np.ndarray
    """int32 [P], P >= 1."""
    response_ids: np.ndarray
    """int32 [L], L >= 1, the end-of-sequence token included where the policy ended."""
    byte_lengths: np.ndarray
    """int32 [L], bytes of the response's text that each token completed."""
    behaviour: np.ndarray | None
    """float32 [L], log mu of our own sampler; None for a peer's rollout."""
    peer: PeerTokens | None
    """None for our own."""
    advantage: float
    reward: float
    own: bool
    origin: PeerId
    staleness: int
    """Own: our policy versions since the oldest one that sampled a token of it. Foreign: since it arrived."""
    truncated: bool
    guidance: np.ndarray | None = None
    """float32 [L], what each token's advantage differs by; None where no peer scored the rollout."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowPlan:
    rows: tuple[TokenRow, ...]
    """Those worth a forward pass, own before foreign; may be empty."""
    denominators: Denominators
    """Of all own rollouts, so that filtering some does not weigh the others up, and of the foreign rows: what a peer
    sends without teaching us anything has no weight at all, however long it is."""
    metrics: dict[str, float]
    """Of the drawn batch; a key whose rollouts are missing is missing."""


class _SampledTurn(NamedTuple):
    text: str
    finish: FinishReason
    sampled: SampledTokens


def build_rows(
    batch: Sequence[Experience],
    codec: TextCodec,
    advantage: AdvantageConfig,
    foreign: ForeignConfig,
    guidance: GuidanceConfig,
    learner: LearnerConfig,
    now: PolicyVersion,
    max_length: int | None = None,
) -> RowPlan:
    """Rows of the batch. `max_length`: tokens that the model has positions for, None where it has no limit.

    The baseline of a group is its `value`: of an own group that from before it was sampled, of a foreign one that from
    when it was drawn (whoever draws brings it up to date).

    Raises ValueError for an own group that cannot be trained on (no ids, more than one sampled turn): that is a bug of
    ours. A peer's rollout that cannot be is skipped and counted: it is data.
    """
    own, scores, values, groups = list[TokenRow](), list[PeerScores | None](), list[float](), list[int]()
    for number, experience in enumerate(batch):
        if experience.own:
            rows = _own_rows(experience, codec, now)
            own += [row for row, _ in rows]
            scores += [scored for _, scored in rows]
            values += [experience.value] * len(rows)
            groups += [number] * len(rows)
    outcomes = Outcomes(
        rewards=np.array([row.reward for row in own], dtype=np.float64),
        values=np.array(values, dtype=np.float64),
        groups=np.array(groups, dtype=np.int64),
        lengths=np.array([len(row.response_ids) for row in own], dtype=np.int64),
    )
    estimate = ADVANTAGES[type(advantage)](outcomes, advantage)
    own = [_credited(*row, guidance) for row in zip(own, estimate.values.tolist(), scores, strict=True)]
    peers = list[TokenRow]()
    room = learner.tokens_per_micro_batch if max_length is None else min(learner.tokens_per_micro_batch, max_length)
    for experience in batch:
        if not experience.own:
            peers += _foreign_rows(experience, codec, estimate.scale, foreign, room, now)
    plan = _plan(batch, own, peers, outcomes, estimate.scale, learner.min_advantage)
    guided = guidance_metrics([row.guidance for row in own]) if isinstance(guidance, PeerGuidance) else {}
    return replace(plan, metrics=plan.metrics | guided)


def _credited(row: TokenRow, advantage: float, scores: PeerScores | None, config: GuidanceConfig) -> TokenRow:
    """An own row with its advantage, and with what that of its tokens differs by."""
    if scores is None or not isinstance(config, PeerGuidance):
        return replace(row, advantage=advantage)
    assert row.behaviour is not None  # of an own row
    guidance = token_guidance(row.behaviour, row.byte_lengths, scores, advantage, config)
    return replace(row, advantage=advantage, guidance=guidance)


def _plan(
    batch: Sequence[Experience],
    own: list[TokenRow],
    peers: list[TokenRow],
    outcomes: Outcomes,
    scale: float,
    min_advantage: float,
) -> RowPlan:
    drawn = own + peers
    own_tokens = _num_tokens(own)
    teaching = _within([row for row in peers if abs(row.advantage) >= min_advantage], own_tokens if own else None)
    kept = (*(row for row in own if abs(row.advantage) >= min_advantage), *teaching)
    metrics = _side_metrics("own", own) | _side_metrics("foreign", peers)
    metrics |= {
        "advantage_scale": scale,
        "rollouts_skipped": float(sum(len(e.group.rollouts) for e in batch) - len(drawn)),
    }
    if drawn:
        metrics["zero_advantage_share"] = 1.0 - len(kept) / len(drawn)
    if own:
        # Near 0 as long as the tracker is calibrated.
        metrics["calibration"] = float((outcomes.rewards - outcomes.values).mean())
    counts = Denominators(tokens=own_tokens + _num_tokens(teaching), samples=len(own) + len(teaching))
    return RowPlan(rows=kept, denominators=counts, metrics=metrics)


def _within(rows: Sequence[TokenRow], budget: int | None) -> list[TokenRow]:
    """As many as fit, in order: at most half of what is trained on is foreign, by tokens and not by groups, or one peer
    with long rollouts would decide what a step costs and how much our own count."""
    fitting, spent = list[TokenRow](), 0
    for row in rows:
        if budget is None or spent + len(row.response_ids) <= budget:
            fitting.append(row)
            spent += len(row.response_ids)
    return fitting


def _num_tokens(rows: Sequence[TokenRow]) -> int:
    return sum(len(row.response_ids) for row in rows)


def _own_rows(experience: Experience, codec: TextCodec, now: PolicyVersion) -> list[tuple[TokenRow, PeerScores | None]]:
    """Rows without their advantage, of what was scored and sampled to an end, each with what a peer thinks of it."""
    rows = []
    scores = experience.guidance or [None] * len(experience.group.rollouts)
    prompt_ids = codec.prompt(experience.task)
    for index, rollout in enumerate(experience.group.rollouts):
        turn = _single_turn(rollout)
        if turn is None:
            raise ValueError(f"own group {experience.id}: rollout {index} is not one sampled assistant turn")
        if not experience.scored[index] or turn.finish is FinishReason.ERROR or len(turn.sampled) == 0:
            continue
        if turn.sampled.ids is None:
            raise ValueError(f"own group {experience.id}: rollout {index} has no token ids")
        row = _row(experience, index, turn, prompt_ids, (turn.sampled.ids, turn.sampled.byte_lengths), now)
        rows.append((row, scores[index]))
    return rows


def _foreign_rows(
    experience: Experience,
    codec: TextCodec,
    scale: float,
    foreign: ForeignConfig,
    room: int,
    now: PolicyVersion,
) -> list[TokenRow]:
    """Rows of the rollouts that have a score, tokens of ours, and room for them: a peer does not decide how much memory
    our forward pass takes, nor whether the model has positions for it."""
    rule = FOREIGN[type(foreign)]
    scored = np.flatnonzero(experience.scored)
    if len(scored) == 0:
        return []
    rewards = experience.rewards[scored].astype(np.float64)
    advantages = rule.advantages(rewards, experience.value, float(rewards.mean()), scale, foreign)
    rows, seen = [], set[tuple[str, FinishReason]]()
    prompt_ids = codec.prompt(experience.task)
    same_tokenizer = experience.group.tokenizer == codec.fingerprint
    for index, advantage in zip(scored.tolist(), advantages, strict=True):
        turn = _single_turn(experience.group.rollouts[index])
        if turn is None or turn.finish is FinishReason.ERROR or (rule.distinct and turn[:2] in seen):
            continue
        tokens = _our_tokens(turn, codec, same_tokenizer)
        if tokens is not None and len(prompt_ids) + len(tokens[0]) <= room:
            seen.add((turn.text, turn.finish))
            row = _row(experience, index, turn, prompt_ids, tokens, now)
            rows.append(replace(row, advantage=float(advantage)))
    return rows


def _row(
    experience: Experience,
    index: int,
    turn: _SampledTurn,
    prompt_ids: np.ndarray,
    tokens: tuple[np.ndarray, np.ndarray],
    now: PolicyVersion,
) -> TokenRow:
    own, sampled = experience.own, turn.sampled
    return TokenRow(
        prompt_ids=prompt_ids,
        response_ids=tokens[0],
        byte_lengths=tokens[1],
        behaviour=sampled.logprobs if own else None,
        peer=None if own else PeerTokens(logprobs=sampled.logprobs, byte_lengths=sampled.byte_lengths),
        advantage=0.0,
        reward=float(experience.rewards[index]),
        own=own,
        origin=experience.group.origin,
        staleness=now - (sampled.oldest_version if own else experience.version),
        truncated=turn.finish.truncated,
    )


def _our_tokens(turn: _SampledTurn, codec: TextCodec, same_tokenizer: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """(ids, byte lengths) of a peer's response: the peer's own ids where its tokenizer is ours and the lengths tell
    them (or they came along, and spell the text), else the canonical ones. None where it has no tokens, or none that
    spell it."""
    sampled = turn.sampled
    if int(sampled.byte_lengths.sum()) != len(turn.text.encode()):
        return None
    ids = sampled.ids
    if not same_tokenizer:
        ids = None
    elif ids is None or not _valid(ids, turn.finish, codec) or codec.decode(ids)[0] != turn.text:
        ids = codec.retrace(turn.text, sampled.byte_lengths, turn.finish)
    if ids is None:
        ids = codec.encode(turn.text, turn.finish)
    decoded, byte_lengths = codec.decode(ids)
    return (ids, byte_lengths) if len(ids) and decoded == turn.text else None


def _valid(ids: np.ndarray, finish: FinishReason, codec: TextCodec) -> bool:
    """Whether all are in the vocabulary, ended by end-of-sequence iff the policy ended its turn, and nowhere before."""
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= codec.vocab_size:
        return False
    return np.flatnonzero(ids == codec.eos_id).tolist() == ([len(ids) - 1] if finish is FinishReason.STOP else [])


def _single_turn(rollout: Rollout) -> _SampledTurn | None:
    """The one sampled assistant turn that today's tasks have; None for anything else."""
    if len(rollout.turns) != 1:
        return None
    turn = rollout.turns[0]
    if turn.role is not Role.ASSISTANT or turn.sampled is None or turn.finish is None:
        return None
    return _SampledTurn(turn.text, turn.finish, turn.sampled)


def _side_metrics(side: str, rows: Sequence[TokenRow]) -> dict[str, float]:
    metrics = {f"{side}_rollouts": float(len(rows))}
    if rows:
        metrics |= {
            f"{side}_reward": float(np.mean([row.reward for row in rows])),
            f"{side}_length": float(np.mean([len(row.response_ids) for row in rows])),
            f"{side}_staleness": float(np.mean([row.staleness for row in rows])),
            f"{side}_truncated_share": float(np.mean([row.truncated for row in rows])),
        }
    return metrics
