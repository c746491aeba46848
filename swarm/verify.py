"""From a peer's bytes to a verdict. Nothing that a peer says is believed that can be computed.

`verify` goes through everything in the order of `swarm.types.Reason`, cheapest first, and stops at the first refusal:

    decode   too_large, malformed, wrong_protocol      size and structure             swarm.wire.codec
    CHECKS   wrong_swarm ... implausible               the group by itself            the table below; pure
    known    duplicate                                 asks the journal
    copied   copied                                    asks what texts came before    swarm.near_duplicates
    judge    unknown_task, held_out, unscorable        makes the task, computes the rewards

Nobody can claim a reward: a group has no field for one, and a field that we do not know changes nothing. The
log-probabilities are the one thing that can only be found plausible (swarm/plausible.py): the learner bounds what they
can do, and its own likelihood decides what is learned from (node/rl/gate.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from swarm.errors import LimitError, ProtocolMismatch, SignatureMismatch, TaskError, TaskTimeout, WireError
from swarm.limits import Limits
from swarm.manifest import Manifest
from swarm.membership import Membership
from swarm.net.base import Received
from swarm.plausible import implausible
from swarm.tasks.base import Judge, held_out
from swarm.types import (
    FinishReason,
    GroupId,
    PeerId,
    Reason,
    Role,
    Rollout,
    RolloutGroup,
    SamplingParams,
    Score,
    ScoreStatus,
    SignedGroup,
    Task,
    Turn,
    Verdict,
    end_of_stop,
)
from swarm.wire.codec import decode_group
from swarm.wire.identity import GROUP_DOMAIN, check_signature, public_key

MAX_TEMPERATURE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """What became of something received."""

    verdict: Verdict
    origin: PeerId
    """Whom the verdict is about: the group's origin once its signature was checked, before that whoever sent it. An
    origin that is only claimed is never held responsible."""
    signed: SignedGroup | None = None
    """None where it could not be decoded."""
    task: Task | None = None
    """As we made it; of admitted groups."""
    scores: tuple[Score, ...] = ()
    """Ours, one per rollout; of admitted groups."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """What a group is held against."""

    me: PeerId
    manifest: Manifest
    membership: Membership
    limits: Limits
    now: float
    """Unix seconds."""
    banned: Callable[[PeerId], bool] = lambda peer: False


# The group by itself --------------------------------------------------------------------------------------------------

Complaint = str | None
"""What is wrong, or None."""


def _swarm(signed: SignedGroup, context: Context) -> Complaint:
    theirs, ours = signed.group.swarm, context.manifest.id
    return None if theirs == ours else f"made for swarm {theirs}: ours is {ours}"


def _origin(signed: SignedGroup, context: Context) -> Complaint:
    if signed.group.origin == context.me:
        return "it is our own"
    try:
        public_key(signed.group.origin)
    except WireError as error:
        return str(error)
    return None


def _ban(signed: SignedGroup, context: Context) -> Complaint:
    """Before the signature, which costs more. So it is only said to be theirs, and nobody is blamed."""
    return "banned for a while" if context.banned(signed.group.origin) else None


def _signature(signed: SignedGroup, context: Context) -> Complaint:
    try:
        check_signature(signed.group.origin, GROUP_DOMAIN, signed.body, signed.signature)
    except SignatureMismatch as error:
        return str(error)
    return None


def _member(signed: SignedGroup, context: Context) -> Complaint:
    group = signed.group
    return context.membership.complaint(group.swarm, group.origin, group.membership)


def _age(signed: SignedGroup, context: Context) -> Complaint:
    age, limit = context.now - signed.group.created_at, context.limits.max_age_s
    return None if age <= limit else f"{age:.0f} s old: at most {limit:.0f}"


def _clock(signed: SignedGroup, context: Context) -> Complaint:
    ahead, limit = signed.group.created_at - context.now, context.limits.max_clock_skew_s
    return None if ahead <= limit else f"made {ahead:.0f} s from now: at most {limit:.0f}"


def _task(signed: SignedGroup, context: Context) -> Complaint:
    ref = signed.group.task
    return None if context.manifest.admits(ref) else f"{ref.source} {ref.version} with that config is not in this swarm"


def _model(signed: SignedGroup, context: Context) -> Complaint:
    return context.manifest.model_complaint(signed.group.model, signed.group.tokenizer)


def _sampling(signed: SignedGroup, context: Context) -> Complaint:
    sampling = signed.group.sampling
    if not 0 < sampling.temperature <= MAX_TEMPERATURE:
        return f"temperature {sampling.temperature}: above 0, at most {MAX_TEMPERATURE}"
    if not 0 < sampling.top_p <= 1:
        return f"top_p {sampling.top_p}: above 0, at most 1"
    if not 1 <= sampling.max_new_tokens <= context.limits.max_tokens:
        return f"max_new_tokens {sampling.max_new_tokens}: from 1 to {context.limits.max_tokens}"
    if "" in sampling.stop:
        return "an empty stop string: it would end every turn at once"
    return None


def _tokens(signed: SignedGroup, context: Context) -> Complaint:
    if not signed.group.rollouts:
        return "no rollouts"
    for i, rollout in enumerate(signed.group.rollouts):
        complaint = _rollout(rollout, signed.group.sampling)
        if complaint is not None:
            return f"rollout {i}: {complaint}"
    return None


def _rollout(rollout: Rollout, sampling: SamplingParams) -> Complaint:
    if not rollout.turns or rollout.turns[0].role is not Role.ASSISTANT:
        return "must start with the assistant's turn"
    for turn in rollout.turns:
        if (turn.role is Role.ASSISTANT) != (turn.sampled is not None):
            return "the assistant's turns are sampled, and no others"
        complaint = _turn(turn, sampling)
        if complaint is not None:
            return complaint
    return None


def _turn(turn: Turn, sampling: SamplingParams) -> Complaint:
    tokens = turn.sampled
    if tokens is None:
        return None
    if not 1 <= len(tokens) <= sampling.max_new_tokens:
        return f"{len(tokens)} tokens: from 1 to max_new_tokens {sampling.max_new_tokens}"
    if not (np.isfinite(tokens.logprobs).all() and (tokens.logprobs <= 0).all()):
        return "log-probabilities must be finite and at most 0"
    if (tokens.byte_lengths < 0).any():
        return "byte lengths must not be negative"
    covered, text_bytes = int(tokens.byte_lengths.sum(dtype=np.int64)), len(turn.text.encode())
    if covered != text_bytes:
        return f"tokens of {covered} bytes for a text of {text_bytes}"
    if turn.finish is FinishReason.STOP and tokens.byte_lengths[-1] != 0:
        return "finish stop, but the last token has bytes: end-of-sequence has none"
    if turn.finish is FinishReason.STOP_STRING:
        return _stop_string(turn.text, covered - int(tokens.byte_lengths[-1]), sampling.stop)
    return None


def _stop_string(text: str, before_last: int, stop: tuple[str, ...]) -> Complaint:
    """`before_last`: bytes of the text that all tokens but the last one cover."""
    end = end_of_stop(text, stop)
    if end is None:
        return f"finish stop_string, but the text has none of the group's {len(stop)} stop strings"
    if end <= before_last:
        return "finish stop_string, but a token before the last one completed a stop string"
    return None


#: All that a group by itself can be refused for, cheapest first. Everything after the signature is its origin's doing.
CHECKS: tuple[tuple[Reason, Callable[[SignedGroup, Context], Complaint]], ...] = (
    (Reason.WRONG_SWARM, _swarm),
    (Reason.WRONG_ORIGIN, _origin),
    (Reason.BANNED, _ban),
    (Reason.BAD_SIGNATURE, _signature),
    (Reason.NOT_A_MEMBER, _member),
    (Reason.STALE, _age),
    (Reason.FROM_FUTURE, _clock),
    (Reason.UNKNOWN_TASK, _task),
    (Reason.WRONG_MODEL, _model),
    (Reason.BAD_SAMPLING, _sampling),
    (Reason.BAD_TOKENS, _tokens),
    (Reason.IMPLAUSIBLE, lambda signed, context: implausible(signed.group, context.limits)),
)

#: Refusals that come before the signature is known to be good.
UNSIGNED = frozenset({Reason.WRONG_SWARM, Reason.WRONG_ORIGIN, Reason.BANNED, Reason.BAD_SIGNATURE})


def check(signed: SignedGroup, context: Context) -> Verdict:
    """Goes through CHECKS; the verdict is the first refusal, or ADMITTED. Pure."""
    for reason, complaint_about in CHECKS:
        complaint = complaint_about(signed, context)
        if complaint is not None:
            return Verdict(reason=reason, detail=complaint)
    return Verdict(reason=Reason.ADMITTED)


# All of it ------------------------------------------------------------------------------------------------------------

#: What bytes that cannot be decoded are refused for; the first that fits.
UNDECODABLE: tuple[tuple[type[WireError], Reason], ...] = (
    (LimitError, Reason.TOO_LARGE),
    (ProtocolMismatch, Reason.WRONG_PROTOCOL),
    (WireError, Reason.MALFORMED),
)


async def verify(
    received: Received,
    *,
    me: PeerId,
    judge: Judge,
    manifest: Manifest,
    membership: Membership,
    limits: Limits,
    known: Callable[[GroupId], Awaitable[bool]],
    now: float,
    banned: Callable[[PeerId], bool] = lambda peer: False,
    copied: Callable[[RolloutGroup], str | None] = lambda group: None,
) -> Findings:
    """Never raises for anything that a peer can send.

    `me`: our own id. `known`: whether we have this group already. `now`: unix seconds. `banned`: whose groups are not
    looked at. `copied`: what is wrong with texts that came before, or None.
    """
    try:
        signed = decode_group(received.body, received.signature, limits)
    except WireError as error:
        reason = next(reason for kind, reason in UNDECODABLE if isinstance(error, kind))
        return Findings(verdict=Verdict(reason=reason, detail=str(error)), origin=received.sender)
    context = Context(me=me, manifest=manifest, membership=membership, limits=limits, now=now, banned=banned)
    verdict = check(signed, context)
    if verdict.reason in UNSIGNED:
        return Findings(verdict=verdict, origin=received.sender, signed=signed)
    if verdict.admitted and await known(signed.id):
        verdict = Verdict(reason=Reason.DUPLICATE)
    if verdict.admitted and (copy := copied(signed.group)) is not None:
        verdict = Verdict(reason=Reason.COPIED, detail=copy)
    if not verdict.admitted:
        return Findings(verdict=verdict, origin=signed.group.origin, signed=signed)
    return await _score(signed, judge)


async def _score(signed: SignedGroup, judge: Judge) -> Findings:
    """The last word on a group that has nothing wrong with it: is its task one to learn from, and what is it worth?"""

    def refused(reason: Reason, detail: str = "") -> Findings:
        return Findings(verdict=Verdict(reason=reason, detail=detail), origin=signed.group.origin, signed=signed)

    try:
        task = await judge.task(signed.group.task)
    except TaskTimeout as error:
        return refused(Reason.UNSCORABLE, str(error))
    except TaskError as error:
        return refused(Reason.UNKNOWN_TASK, str(error))
    if held_out(task.prompt):
        return refused(Reason.HELD_OUT)
    scores = tuple(await judge.score(task, [rollout.response for rollout in signed.group.rollouts]))
    if all(score.status is not ScoreStatus.OK for score in scores):
        return refused(Reason.UNSCORABLE, scores[0].detail)
    return Findings(
        verdict=Verdict(reason=Reason.ADMITTED), origin=signed.group.origin, signed=signed, task=task, scores=scores
    )
