"""Bytes per sampled token on the wire, and what they are."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

from swarm.net.base import LogEntry
from swarm.types import RolloutGroup
from swarm.wire.codec import encode_entry, seal
from swarm.wire.deflate import Deflater
from tests.bench.texts import CUTS, KINDS, make_group
from tests.builders import MANIFEST, identity, task_ref

FRAME_BYTES = 4
LOGPROB_BYTES = 2.0
CREATED_AT = 1.8e9
APART_S = 1.234567
"""Between two groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes per token."""

    text: float
    logprobs: float
    lengths: float
    rest: float
    """Everything else: task, names, signature, cursor, frame."""
    plain: float
    """All of it, to a reader that does not unpack."""
    first: float
    """All of it, packed: as the first group of a stream."""
    packed: float
    """As one of many."""
    ids: float
    """More than that if token ids were sent, which they are not."""


def costs(bare: Sequence[RolloutGroup], with_ids: Sequence[RolloutGroup]) -> Cost:
    """The mean of groups as a peer gets them that pulls a log, one after the other. `with_ids` are the same ones with
    token ids."""
    tokens = bare[0].num_sampled
    stream, ids_stream = Deflater(), Deflater()
    packed = [packed_frame(group, stream) / tokens for group in bare]
    with_ids_packed = [packed_frame(group, ids_stream) / tokens for group in with_ids]
    parts = [_parts(group) for group in bare]
    text, lengths, rest, plain = (statistics.mean(column) for column in zip(*parts, strict=True))
    return Cost(
        text=text,
        logprobs=LOGPROB_BYTES,
        lengths=lengths,
        rest=rest,
        plain=plain,
        first=statistics.mean(packed_frame(group, Deflater()) / tokens for group in bare),
        packed=statistics.mean(packed[1:]),
        ids=statistics.mean(with_ids_packed[1:]) - statistics.mean(packed[1:]),
    )


def _parts(group: RolloutGroup) -> tuple[float, float, float, float]:
    """Bytes per token: text, lengths, rest, all."""
    tokens, frame = group.num_sampled, FRAME_BYTES + len(message_of(group))
    turns = [turn for rollout in group.rollouts for turn in rollout.turns]
    text = sum(len(turn.text.encode()) for turn in turns)
    lengths = sum(varint_bytes(int(length)) for turn in turns if turn.sampled for length in turn.sampled.byte_lengths)
    return text / tokens, lengths / tokens, (frame - text - lengths) / tokens - LOGPROB_BYTES, frame / tokens


def packed_frame(group: RolloutGroup, stream: Deflater) -> int:
    """Bytes that go through a stream for it, as the next one."""
    return FRAME_BYTES + len(stream.pack(message_of(group)))


def message_of(group: RolloutGroup) -> bytes:
    signed = seal(group, identity())
    # Not all zeros, which would be compressed away.
    return encode_entry(bytes(range(16)), LogEntry(cursor=1000, body=signed.body, signature=signed.signature))


def varint_bytes(value: int) -> int:
    """Of a number as protobuf writes it."""
    return max(-(-value.bit_length() // 7), 1)


def measure(kind: str, cut: str, *, rollouts: int, tokens: int, groups: int) -> Cost:
    """Of `groups` different groups, at least 2."""

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
            created_at=CREATED_AT + APART_S * number,
        )

    return costs([made(i, ids=False) for i in range(groups)], [made(i, ids=True) for i in range(groups)])


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
