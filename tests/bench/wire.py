"""Bytes per sampled token on the wire, and what they are."""

from __future__ import annotations

import random
import statistics
import zlib
from dataclasses import dataclass, fields

from swarm.net.base import LogEntry
from swarm.types import RolloutGroup
from swarm.wire.codec import encode_entry, seal
from tests.bench.texts import CUTS, KINDS, make_group
from tests.builders import MANIFEST, identity, task_ref

FRAME_BYTES = 4
LOGPROB_BYTES = 2.0
CREATED_AT = 1.8e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes per token."""

    text: float
    logprobs: float
    lengths: float
    rest: float
    """Everything else: task, names, signature, cursor, frame."""
    total: float
    with_ids: float
    """The same group with token ids."""
    deflated: float
    """Without ids, the frame compressed with DEFLATE (level 6), which the wire format does not do."""


def cost(bare: RolloutGroup, with_ids: RolloutGroup) -> Cost:
    """Of a group as a peer gets it that pulls a log. `with_ids` is the same one with token ids."""
    tokens, frame = bare.num_sampled, frame_of(bare)
    turns = [turn for rollout in bare.rollouts for turn in rollout.turns]
    text = sum(len(turn.text.encode()) for turn in turns)
    lengths = sum(varint_bytes(int(length)) for turn in turns if turn.sampled for length in turn.sampled.byte_lengths)
    return Cost(
        text=text / tokens,
        logprobs=LOGPROB_BYTES,
        lengths=lengths / tokens,
        rest=(len(frame) - text - lengths) / tokens - LOGPROB_BYTES,
        total=len(frame) / tokens,
        with_ids=len(frame_of(with_ids)) / tokens,
        deflated=(len(zlib.compress(frame[FRAME_BYTES:], 6)) + FRAME_BYTES) / tokens,
    )


def frame_of(group: RolloutGroup) -> bytes:
    """What goes through a stream for it."""
    signed = seal(group, identity())
    entry = LogEntry(cursor=1000, body=signed.body, signature=signed.signature)
    return bytes(FRAME_BYTES) + encode_entry(bytes(16), entry)


def varint_bytes(value: int) -> int:
    """Of a number as protobuf writes it."""
    return max(-(-value.bit_length() // 7), 1)


def measure(kind: str, cut: str, *, rollouts: int, tokens: int, groups: int) -> Cost:
    """The mean of `groups` different groups."""

    def made(number: int, ids: bool) -> RolloutGroup:
        return make_group(
            random.Random(number),
            origin=identity().peer_id,
            swarm=MANIFEST.id,
            task=task_ref(number),
            rollouts=rollouts,
            tokens=tokens,
            kind=kind,
            cut=cut,
            ids=ids,
            created_at=CREATED_AT,
        )

    costs = [cost(made(i, ids=False), made(i, ids=True)) for i in range(groups)]
    return Cost(**{each.name: statistics.mean(getattr(c, each.name) for c in costs) for each in fields(Cost)})


def report(tokens: int, groups: int) -> str:
    """The table, in Markdown."""
    names = [each.name for each in fields(Cost)]
    lines = [f"| text | tokens | rollouts | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for kind in KINDS:
        for cut in CUTS:
            for rollouts in (2, 8):
                found = measure(kind, cut, rollouts=rollouts, tokens=tokens, groups=groups)
                numbers = " | ".join(f"{getattr(found, name):.2f}" for name in names)
                lines.append(f"| {kind} | {cut} | {rollouts} | {numbers} |")
    return "\n".join(lines)
