"""Rollouts on the wire: T tokens of a turn as packed arrays. The part of the codec that numbers pass through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swarm.errors import WireError
from swarm.limits import Limits
from swarm.types import FinishReason, PolicyVersion, Role, Rollout, SampledTokens, Turn, VersionSpan
from swarm.wire import bounds
from swarm.wire.v1 import exchange_pb2 as pb

#: Log-probabilities travel as uint16 in units of 1/2048 nat: steps of 0.05 %, saturating at 32 nats.
LOGPROB_SCALE = 2048
_LOGPROB = np.dtype("<u2")
_MAX_INT32 = np.iinfo(np.int32).max

#: Version spans of one rollout. A rollout that saw so many versions is stale; a million spans would stall the reader.
MAX_SPANS = 64

_ROLES = {pb.ROLE_USER: Role.USER, pb.ROLE_ASSISTANT: Role.ASSISTANT, pb.ROLE_TOOL: Role.TOOL}
_FINISHES = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_ERROR: FinishReason.ERROR,
    pb.FINISH_REASON_STOP_STRING: FinishReason.STOP_STRING,
}
_ROLE_NUMBERS = {role: number for number, role in _ROLES.items()}
_FINISH_NUMBERS = {finish: number for number, finish in _FINISHES.items()}


def rollout_message(rollout: Rollout) -> pb.Rollout:
    """Raises WireError for what the format cannot carry."""
    spans = sum(len(turn.sampled.versions) for turn in rollout.turns if turn.sampled is not None)
    bounds.limit("version spans", spans, MAX_SPANS)
    return pb.Rollout(turns=[_turn_message(turn) for turn in rollout.turns])


def _turn_message(turn: Turn) -> pb.Turn:
    if (turn.sampled is None) != (turn.finish is None):
        raise WireError("a turn has a finish reason if and only if it was sampled")
    if turn.sampled is None or turn.finish is None:
        return pb.Turn(role=_ROLE_NUMBERS[turn.role], text=turn.text)
    tokens = turn.sampled
    num_ids = None if tokens.ids is None else len(tokens.ids)
    _check_counts(len(tokens), len(tokens.byte_lengths), num_ids, [span.length for span in tokens.versions])
    if not (np.isfinite(tokens.logprobs).all() and (tokens.logprobs <= 0).all()):
        raise WireError("log-probabilities must be finite and at most 0")
    units = np.rint(tokens.logprobs.astype(np.float64) * -LOGPROB_SCALE).clip(0, np.iinfo(_LOGPROB).max)
    sampled = pb.SampledTokens(
        logprobs=units.astype(_LOGPROB).tobytes(),
        byte_lengths=tokens.byte_lengths.tolist(),
        versions=[pb.VersionSpan(version=span.version, length=span.length) for span in tokens.versions],
        ids=[] if tokens.ids is None else tokens.ids.tolist(),
    )
    finish = _FINISH_NUMBERS[turn.finish]
    return pb.Turn(role=_ROLE_NUMBERS[turn.role], text=turn.text, finish=finish, sampled=sampled)


def read_rollout(message: pb.Rollout, limits: Limits) -> Rollout:
    """Arrays come out read-only. Raises LimitError for more than `limits`, WireError for what does not add up."""
    bounds.limit("turns", len(message.turns), limits.max_turns)
    num_tokens = sum(len(turn.sampled.logprobs) // _LOGPROB.itemsize for turn in message.turns)
    bounds.limit("tokens", num_tokens, limits.max_tokens)
    bounds.limit("version spans", sum(len(turn.sampled.versions) for turn in message.turns), MAX_SPANS)
    bounds.limit("text bytes", sum(len(turn.text.encode()) for turn in message.turns), limits.max_text_bytes)
    return Rollout(turns=tuple(_read_turn(turn) for turn in message.turns))


def _read_turn(message: pb.Turn) -> Turn:
    role = _ROLES.get(message.role)
    if role is None:
        raise WireError(f"role {message.role} is unknown")
    if not message.HasField("sampled"):
        if message.finish != pb.FINISH_REASON_UNSPECIFIED:
            raise WireError("a turn that was not sampled has a finish reason")
        return Turn(role=role, text=message.text)
    finish = _FINISHES.get(message.finish)
    if finish is None:
        raise WireError(f"finish reason {message.finish} of a sampled turn is unknown")
    return Turn(role=role, text=message.text, finish=finish, sampled=_read_tokens(message.sampled))


def _read_tokens(message: pb.SampledTokens) -> SampledTokens:
    if len(message.logprobs) % _LOGPROB.itemsize:
        raise WireError(f"{len(message.logprobs)} bytes of log-probabilities: must be even")
    units = np.frombuffer(message.logprobs, _LOGPROB)
    # Before anything else becomes an array: the number of log-probabilities has been bounded, the others have not.
    _check_counts(len(units), len(message.byte_lengths), len(message.ids) or None, [s.length for s in message.versions])
    return SampledTokens(
        logprobs=_frozen(units.astype(np.float32) / np.float32(-LOGPROB_SCALE)),
        byte_lengths=_int32("byte length", message.byte_lengths),
        versions=tuple(
            VersionSpan(version=PolicyVersion(bounds.integer("version", span.version)), length=span.length)
            for span in message.versions
        ),
        ids=_int32("token id", message.ids) if message.ids else None,
    )


def _check_counts(num_tokens: int, num_lengths: int, num_ids: int | None, spans: Sequence[int]) -> None:
    if num_tokens == 0:
        raise WireError("a sampled turn has no tokens")
    if num_lengths != num_tokens:
        raise WireError(f"{num_lengths} byte lengths for {num_tokens} tokens")
    if num_ids is not None and num_ids != num_tokens:
        raise WireError(f"{num_ids} ids for {num_tokens} tokens")
    if min(spans, default=0) < 1 or sum(spans) != num_tokens:
        raise WireError(f"version spans do not add up to {num_tokens} tokens")


def _int32(name: str, values: Sequence[int]) -> np.ndarray:
    """At least one."""
    # protobuf's containers become arrays by themselves, a hundred times as fast as number by number.
    array = np.array(values, np.uint32)
    bounds.limit(name, int(array.max()), _MAX_INT32)
    return _frozen(array.astype(np.int32))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
