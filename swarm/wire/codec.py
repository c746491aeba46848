"""Between the vocabulary and bytes. With turns.py and values.py all that knows the field names of exchange.proto.

What is encoded here can be decoded by a peer with the same limits; what is decoded here has been bounded before it was
parsed and is consistent in its counts. Whether it is true (signature of a group, reward, task) is for `swarm.verify`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from swarm.errors import LimitError, ProtocolMismatch, WireError
from swarm.limits import Limits
from swarm.net.base import LogEntry
from swarm.types import (
    Announcement,
    GroupId,
    PeerId,
    RolloutGroup,
    SamplingParams,
    SignedGroup,
    TaskRef,
)
from swarm.wire import bounds, turns, values
from swarm.wire.identity import ANNOUNCEMENT_DOMAIN, GROUP_DOMAIN, Identity, check_signature
from swarm.wire.parsing import encoding, parse
from swarm.wire.v1 import exchange_pb2 as pb

#: Nodes of different protocols never mix: it is in every message and in the swarm's id.
PROTOCOL = 1

MAX_ANNOUNCEMENT_BYTES = 2000
MAX_READERS = 2**32 - 1
MAX_ADDRESSES = 8
MAX_PULL_GROUPS = 1024


# Groups ---------------------------------------------------------------------------------------------------------------


def encode_group(group: RolloutGroup) -> bytes:
    """The bytes that are signed and hashed: equal groups make equal bytes.

    Raises WireError for what the format cannot carry: counts that differ, NaN or positive log-probabilities, text with
    lone surrogates, a turn of no tokens.
    """
    _bounded_group(group)
    with encoding():
        task, sampling = group.task, group.sampling
        message = pb.RolloutGroup(
            protocol=PROTOCOL,
            swarm=group.swarm,
            origin=group.origin,
            task=pb.TaskRef(
                source=task.source, version=task.version, config=task.config, seed=task.seed, index=task.index
            ),
            rollouts=[turns.rollout_message(rollout) for rollout in group.rollouts],
            model=group.model,
            tokenizer=group.tokenizer,
            sampling=pb.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_new_tokens=sampling.max_new_tokens,
                stop=bounds.stop_strings(sampling.stop),
            ),
            created_at=group.created_at,
            membership=group.membership,
        )
        return message.SerializeToString(deterministic=True)


def seal(group: RolloutGroup, identity: Identity) -> SignedGroup:
    """Encodes and signs a group of our own. Raises WireError as `encode_group`, and if `identity` is not its origin."""
    if group.origin != identity.peer_id:
        raise WireError(f"a group of {group.origin} cannot be signed by {identity.peer_id}")
    body = encode_group(group)
    return SignedGroup(id=group_id(body), group=group, body=body, signature=identity.sign(GROUP_DOMAIN, body))


def group_id(body: bytes) -> GroupId:
    return GroupId(hashlib.sha256(body).hexdigest())


def decode_group(body: bytes, signature: bytes, limits: Limits) -> SignedGroup:
    """Parses what `seal` made; arrays come out read-only. The signature is carried along, not checked.

    Raises LimitError for anything larger than `limits` (the body's size is looked at before it is parsed),
    ProtocolMismatch for another protocol's group, WireError for anything else that is wrong.
    """
    bounds.limit("group bytes", len(body), limits.max_group_bytes)
    bounds.limit("signature bytes", len(signature), bounds.SIGNATURE_BYTES)
    message = parse(pb.RolloutGroup(), body)
    _check_protocol(message.protocol)
    bounds.limit("rollouts", len(message.rollouts), limits.max_rollouts)
    task, sampling = message.task, message.sampling
    group = RolloutGroup(
        swarm=message.swarm,
        origin=PeerId(message.origin),
        task=TaskRef(source=task.source, version=task.version, config=task.config, seed=task.seed, index=task.index),
        rollouts=tuple(turns.read_rollout(rollout, limits) for rollout in message.rollouts),
        model=message.model,
        tokenizer=message.tokenizer,
        sampling=SamplingParams(
            temperature=bounds.shortest(sampling.temperature),
            top_p=bounds.shortest(sampling.top_p),
            max_new_tokens=sampling.max_new_tokens,
            stop=bounds.stop_strings(sampling.stop),
        ),
        created_at=message.created_at,
        membership=message.membership,
    )
    return SignedGroup(id=group_id(body), group=_bounded_group(group), body=body, signature=signature)


def task_source(body: bytes) -> str:
    """Of a group of any protocol that has one. Raises WireError for bytes that are no group."""
    return parse(pb.RolloutGroup(), body).task.source


def _bounded_group(group: RolloutGroup) -> RolloutGroup:
    """`group`, if everything in it but its rollouts is within bounds, which are the same for writer and reader."""
    for name in ("swarm", "origin", "model", "tokenizer"):
        bounds.label(name, getattr(group, name))
    bounds.label("task.source", group.task.source)
    bounds.label("task.version", group.task.version)
    bounds.label("task.config", group.task.config, bounds.MAX_CONFIG_CHARS)
    bounds.integer("task.seed", group.task.seed)
    bounds.integer("task.index", group.task.index)
    bounds.instant("created_at", group.created_at)
    bounds.proof(group.membership)
    return group


# Announcements --------------------------------------------------------------------------------------------------------


def encode_announcement(announcement: Announcement, identity: Identity) -> bytes:
    """Signed, at most MAX_ANNOUNCEMENT_BYTES: with the first of the `values`, as many as there is room for. Raises
    WireError if it would be larger without any, or a peer would refuse it."""
    a = _bounded_announcement(announcement)
    if a.peer != identity.peer_id:
        raise WireError(f"an announcement of {a.peer} cannot be signed by {identity.peer_id}")
    with encoding():
        message = pb.Announcement(
            protocol=PROTOCOL,
            swarm=a.swarm,
            peer=a.peer,
            addresses=a.addresses,
            epoch=a.epoch,
            head=a.head,
            name=a.name,
            model=a.model,
            tokenizer=a.tokenizer,
            issued_at=a.issued_at,
            values=map(values.value_message, a.values),
            membership=a.membership,
            readers=a.readers,
        )
        while message.values and _signed_bytes(message) > MAX_ANNOUNCEMENT_BYTES:
            del message.values[-1]
        body = message.SerializeToString(deterministic=True)
    signed = pb.SignedAnnouncement(body=body, signature=identity.sign(ANNOUNCEMENT_DOMAIN, body))
    data = signed.SerializeToString(deterministic=True)
    bounds.limit("announcement bytes", len(data), MAX_ANNOUNCEMENT_BYTES)
    return data


def decode_announcement(data: bytes) -> Announcement:
    """Bounded, printable and signed by the peer that it is about; how fresh it is is for the directory to judge.

    Raises WireError (LimitError, ProtocolMismatch), or SignatureMismatch.
    """
    bounds.limit("announcement bytes", len(data), MAX_ANNOUNCEMENT_BYTES)
    signed = parse(pb.SignedAnnouncement(), data)
    message = parse(pb.Announcement(), signed.body)
    _check_protocol(message.protocol)
    announcement = _bounded_announcement(
        Announcement(
            swarm=message.swarm,
            peer=PeerId(message.peer),
            addresses=tuple(message.addresses),
            epoch=message.epoch,
            head=message.head,
            name=message.name,
            model=message.model,
            tokenizer=message.tokenizer,
            issued_at=message.issued_at,
            values=tuple(map(values.read_value, message.values)),
            membership=message.membership,
            readers=message.readers,
        )
    )
    check_signature(announcement.peer, ANNOUNCEMENT_DOMAIN, signed.body, signed.signature)
    return announcement


def _signed_bytes(message: pb.Announcement) -> int:
    signature = bytes(bounds.SIGNATURE_BYTES)
    return pb.SignedAnnouncement(body=message.SerializeToString(), signature=signature).ByteSize()


def _bounded_announcement(announcement: Announcement) -> Announcement:
    bounds.label("swarm", announcement.swarm)
    bounds.label("peer", announcement.peer)
    bounds.limit("addresses", len(announcement.addresses), MAX_ADDRESSES)
    for address in announcement.addresses:
        bounds.label("address", address, bounds.MAX_ADDRESS_CHARS)
    bounds.epoch(announcement.epoch)
    bounds.integer("head", announcement.head)
    bounds.limit("readers", announcement.readers, MAX_READERS)
    bounds.label("name", announcement.name, bounds.MAX_NAME_CHARS)
    bounds.label("model", announcement.model)
    bounds.label("tokenizer", announcement.tokenizer)
    bounds.instant("issued_at", announcement.issued_at)
    bounds.proof(announcement.membership)
    bounds.limit("values", len(announcement.values), values.MAX_CELL_VALUES)
    for cell in announcement.values:
        values.bounded_value(cell)
    return announcement


# Pulling --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """ "Send me at most `max_groups` that came after `cursor` in your log `epoch`.\""""

    swarm: str
    epoch: bytes
    """Empty at first contact."""
    cursor: int
    max_groups: int
    membership: bytes = b""
    """The reader's."""
    max_backlog: int = 0
    """When more than so many are waiting, the oldest are skipped; 0 leaves it to the publisher."""
    deflate: bool = False
    """The reader can unpack frames."""


def encode_pull(pull: Pull) -> bytes:
    """Raises WireError for what the other side would refuse."""
    with encoding():
        request = pb.PullRequest(
            swarm=pull.swarm,
            epoch=pull.epoch,
            cursor=pull.cursor,
            max_groups=pull.max_groups,
            membership=pull.membership,
            max_backlog=pull.max_backlog,
            deflate=pull.deflate,
        )
    _read_pull(request)
    return request.SerializeToString()


def decode_pull(data: bytes) -> Pull:
    """Raises WireError (LimitError) unless everything is within bounds."""
    return _read_pull(parse(pb.PullRequest(), data))


def _read_pull(request: pb.PullRequest) -> Pull:
    if not 1 <= request.max_groups <= MAX_PULL_GROUPS:
        raise LimitError(f"max_groups {request.max_groups}: must be from 1 to {MAX_PULL_GROUPS}")
    return Pull(
        swarm=bounds.label("swarm", request.swarm),
        epoch=bounds.epoch(request.epoch) if request.epoch else b"",
        cursor=bounds.integer("cursor", request.cursor),
        max_groups=request.max_groups,
        membership=bounds.proof(request.membership),
        max_backlog=request.max_backlog,
        deflate=request.deflate,
    )


def encode_credit(groups: int) -> bytes:
    """Raises WireError for what the other side would refuse."""
    with encoding():
        message = pb.PullCredit(groups=groups)
    _read_credit(message)
    return message.SerializeToString()


def decode_credit(data: bytes) -> int:
    """Groups more that a reader has room for. Raises WireError (LimitError)."""
    return _read_credit(parse(pb.PullCredit(), data))


def _read_credit(message: pb.PullCredit) -> int:
    if not 1 <= message.groups <= MAX_PULL_GROUPS:
        raise LimitError(f"credit {message.groups}: must be from 1 to {MAX_PULL_GROUPS}")
    return message.groups


def encode_entry(epoch: bytes, entry: LogEntry) -> bytes:
    """One entry of the log `epoch`. Raises WireError for what the other side would refuse."""
    with encoding():
        group = pb.SignedGroup(body=entry.body, signature=entry.signature)
        response = pb.PullResponse(epoch=epoch, cursor=entry.cursor, group=group)
    _read_entry(response)
    return response.SerializeToString()


def decode_entry(data: bytes) -> tuple[bytes, LogEntry]:
    """The epoch of the log and one entry of it. The entry's body is for `decode_group` to bound.

    Raises WireError unless everything else is within bounds."""
    return _read_entry(parse(pb.PullResponse(), data))


def _read_entry(response: pb.PullResponse) -> tuple[bytes, LogEntry]:
    if bounds.integer("cursor", response.cursor) == 0:
        raise WireError("cursor 0 names no group")
    bounds.limit("signature bytes", len(response.group.signature), bounds.SIGNATURE_BYTES)
    entry = LogEntry(cursor=response.cursor, body=response.group.body, signature=response.group.signature)
    return bounds.epoch(response.epoch), entry


def _check_protocol(protocol: int) -> None:
    if protocol != PROTOCOL:
        raise ProtocolMismatch(f"protocol {protocol}: ours is {PROTOCOL}")
