"""The vocabulary of the swarm. Everything here is immutable and knows nothing of engines, networks or disks.

A `Task` is named by a `TaskRef`, which every node can turn into the same prompt and the same ground truth. A node
samples n `Rollout`s of it (lists of `Turn`s), which together are a `RolloutGroup`: the unit that is shared. Whoever
receives a group recomputes its rewards (`Score`) and comes to a `Verdict`.

Shapes: T = sampled tokens of one turn, G = rollouts of one group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

import numpy as np

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58 ("12D3KooW..."). It contains the ed25519 key that its signatures are checked with."""
GroupId = NewType("GroupId", str)
"""SHA-256 of a group's serialised body, in hex."""
PolicyVersion = NewType("PolicyVersion", int)
"""How many optimiser steps made these weights. Comparable only within one node."""


class Role(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class FinishReason(StrEnum):
    STOP = "stop"
    """The policy ended its turn; its last sampled token is the end-of-sequence token, of byte length 0."""
    STOP_STRING = "stop_string"
    """The turn was cut after the token that completed one of the sampling parameters' stop strings; it has no
    end-of-sequence token."""
    LENGTH = "length"
    ERROR = "error"

    @property
    def truncated(self) -> bool:
        """Whether the turn might have gone on."""
        return self in (FinishReason.LENGTH, FinishReason.ERROR)


def family_of(source: str) -> str:
    """The last part of a source's name: what people call the task ("spell_backward")."""
    return source.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRef:
    """Names one task so that any node regenerates it bit for bit."""

    source: str
    """"reasoning_gym/spell_backward", "jsonl/algebra"."""
    version: str
    """Of the source: a library version, or the SHA-256 of a file."""
    config: str
    """Canonical JSON: sorted keys, no spaces."""
    seed: int
    index: int

    @property
    def family(self) -> str:
        return family_of(self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    ref: TaskRef
    prompt: str
    answer: str
    """Ground truth, as text. Never leaves the node."""
    difficulty: str
    """Canonical JSON of what makes this task harder than its siblings ('{"word_len":4}'); "{}" if unknown."""
    metadata: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)
    """Whatever the source needs to score it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """A run of tokens that one policy version sampled."""

    version: PolicyVersion
    length: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledTokens:
    """What the sampler knew of each of a turn's T tokens.

    The turn "<answer>ba</answer>" of a byte-level policy with one token per tag, ended by the policy itself:

        logprobs     [-.01, -.7, -.2, -.01, -.02]      T = 5, the last is end-of-sequence
        byte_lengths [   8,   1,   1,    9,    0]      sum = len("<answer>ba</answer>".encode())
        versions     (VersionSpan(version=7, length=5),)
    """

    logprobs: np.ndarray
    """float32 [T], natural log-probabilities under the distribution that was really sampled, <= 0."""
    byte_lengths: np.ndarray
    """int32 [T], UTF-8 bytes of the turn's text that each token completed."""
    versions: tuple[VersionSpan, ...]
    """Which policy version sampled which run of tokens; lengths add up to T."""
    ids: np.ndarray | None = None
    """int32 [T] under the group's tokenizer, or None where they were not sent."""

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def oldest_version(self) -> PolicyVersion:
        return min(span.version for span in self.versions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    role: Role
    text: str
    finish: FinishReason | None = None
    """Of a sampled turn, else None."""
    sampled: SampledTokens | None = None
    """Of a sampled turn, else None."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """What followed the task's prompt. Today's tasks have one assistant turn."""

    turns: tuple[Turn, ...]

    @property
    def response(self) -> str:
        """Text of the last assistant turn: what is scored."""
        return next((turn.text for turn in reversed(self.turns) if turn.role is Role.ASSISTANT), "")

    @property
    def num_sampled(self) -> int:
        return sum(len(turn.sampled) for turn in self.turns if turn.sampled is not None)

    @property
    def truncated(self) -> bool:
        return any(turn.finish is not None and turn.finish.truncated for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    """A turn ends with the token that completes one of these; the string stays in the text."""


def end_of_stop(text: str, stop: Sequence[str]) -> int | None:
    """UTF-8 bytes of `text` up to the end of the stop string that ends first; None where it has none."""
    encoded = text.encode()
    # Not bytes.find, whose worst case costs the string's length times the text's: a literal pattern is searched with an
    # overlap table (Knuth, Morris and Pratt), in one pass.
    found = (re.search(re.escape(piece.encode()), encoded) for piece in stop)
    return min((match.end() for match in found if match is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutGroup:
    """One task, n rollouts, one author. Carries no reward: whoever wants one computes it."""

    swarm: str
    """Id of the swarm it was made for."""
    origin: PeerId
    task: TaskRef
    rollouts: tuple[Rollout, ...]
    model: str
    """Fingerprint of the policy's architecture and base weights."""
    tokenizer: str
    """Fingerprint of the tokenizer; token ids mean something only where it equals one's own."""
    sampling: SamplingParams
    created_at: float
    """Unix seconds by the origin's clock."""
    membership: bytes = b""
    """The origin's proof that it is in the swarm; empty in an open one."""

    @property
    def num_sampled(self) -> int:
        return sum(rollout.num_sampled for rollout in self.rollouts)

    @property
    def oldest_version(self) -> PolicyVersion:
        """The origin's oldest policy version that contributed a token."""
        return min(
            (turn.sampled.oldest_version for r in self.rollouts for turn in r.turns if turn.sampled is not None),
            default=PolicyVersion(0),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignedGroup:
    """A group as it travels: the bytes that were signed stay with it, so that any peer can pass it on."""

    id: GroupId
    group: RolloutGroup
    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CellValue:
    """What a node scores on a source's tasks of one difficulty, by its own account."""

    source: str
    difficulty: str
    value: float
    """Expected reward, in [0, 1]."""
    mass: float
    """Rollouts that it rests on, old ones discounted; >= 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """I am alive, this is where I am, and this is how far my log goes."""

    swarm: str
    peer: PeerId
    addresses: tuple[str, ...]
    epoch: bytes
    """Of the log. A new one invalidates every cursor into the old."""
    head: int
    name: str
    model: str
    tokenizer: str
    issued_at: float
    """Unix seconds by the peer's clock."""
    values: tuple[CellValue, ...] = ()
    """What the peer is worth; the first ones matter most. Empty if it does not say."""
    membership: bytes = b""
    """The peer's proof that it is in the swarm; empty in an open one."""
    readers: int = 0
    """Peers that read its log, as it says."""


class ScoreStatus(StrEnum):
    OK = "ok"
    FAILED = "failed"
    """The source could not score it. Counts as no evidence: reward 0, not trained on."""
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    reward: float
    """In [0, 1]; 0 or 1 where the source thresholds (reasoning-gym does)."""
    status: ScoreStatus = ScoreStatus.OK
    detail: str = ""


class Reason(StrEnum):
    """Why a group was admitted or refused, in the order in which it is checked (swarm/verify.py)."""

    ADMITTED = "admitted"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    WRONG_PROTOCOL = "wrong_protocol"
    WRONG_SWARM = "wrong_swarm"
    WRONG_ORIGIN = "wrong_origin"
    BANNED = "banned"
    BAD_SIGNATURE = "bad_signature"
    NOT_A_MEMBER = "not_a_member"
    STALE = "stale"
    FROM_FUTURE = "from_future"
    UNKNOWN_TASK = "unknown_task"
    WRONG_MODEL = "wrong_model"
    BAD_SAMPLING = "bad_sampling"
    BAD_TOKENS = "bad_tokens"
    IMPLAUSIBLE = "implausible"
    DUPLICATE = "duplicate"
    COPIED = "copied"
    HELD_OUT = "held_out"
    UNSCORABLE = "unscorable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    reason: Reason
    detail: str = ""

    @property
    def admitted(self) -> bool:
        return self.reason is Reason.ADMITTED
