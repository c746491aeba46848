from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_TOOL: _ClassVar[Role]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ERROR: _ClassVar[FinishReason]
    FINISH_REASON_STOP_STRING: _ClassVar[FinishReason]
ROLE_UNSPECIFIED: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_TOOL: Role
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ERROR: FinishReason
FINISH_REASON_STOP_STRING: FinishReason

class TaskRef(_message.Message):
    __slots__ = ("source", "version", "config", "seed", "index")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    source: str
    version: str
    config: str
    seed: int
    index: int
    def __init__(self, source: _Optional[str] = ..., version: _Optional[str] = ..., config: _Optional[str] = ..., seed: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class VersionSpan(_message.Message):
    __slots__ = ("version", "length")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    version: int
    length: int
    def __init__(self, version: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class SampledTokens(_message.Message):
    __slots__ = ("logprobs", "byte_lengths", "versions", "ids")
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BYTE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    logprobs: bytes
    byte_lengths: _containers.RepeatedScalarFieldContainer[int]
    versions: _containers.RepeatedCompositeFieldContainer[VersionSpan]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, logprobs: _Optional[bytes] = ..., byte_lengths: _Optional[_Iterable[int]] = ..., versions: _Optional[_Iterable[_Union[VersionSpan, _Mapping]]] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("role", "text", "finish", "sampled")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    role: Role
    text: str
    finish: FinishReason
    sampled: SampledTokens
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., text: _Optional[str] = ..., finish: _Optional[_Union[FinishReason, str]] = ..., sampled: _Optional[_Union[SampledTokens, _Mapping]] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("turns",)
    TURNS_FIELD_NUMBER: _ClassVar[int]
    turns: _containers.RepeatedCompositeFieldContainer[Turn]
    def __init__(self, turns: _Optional[_Iterable[_Union[Turn, _Mapping]]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "max_new_tokens", "stop")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    max_new_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., max_new_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class RolloutGroup(_message.Message):
    __slots__ = ("protocol", "swarm", "origin", "task", "rollouts", "model", "tokenizer", "sampling", "created_at", "membership")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    swarm: str
    origin: str
    task: TaskRef
    rollouts: _containers.RepeatedCompositeFieldContainer[Rollout]
    model: str
    tokenizer: str
    sampling: SamplingParams
    created_at: float
    membership: bytes
    def __init__(self, protocol: _Optional[int] = ..., swarm: _Optional[str] = ..., origin: _Optional[str] = ..., task: _Optional[_Union[TaskRef, _Mapping]] = ..., rollouts: _Optional[_Iterable[_Union[Rollout, _Mapping]]] = ..., model: _Optional[str] = ..., tokenizer: _Optional[str] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., created_at: _Optional[float] = ..., membership: _Optional[bytes] = ...) -> None: ...

class SignedGroup(_message.Message):
    __slots__ = ("body", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class CellValue(_message.Message):
    __slots__ = ("source", "difficulty", "value", "mass")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DIFFICULTY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    MASS_FIELD_NUMBER: _ClassVar[int]
    source: str
    difficulty: str
    value: float
    mass: float
    def __init__(self, source: _Optional[str] = ..., difficulty: _Optional[str] = ..., value: _Optional[float] = ..., mass: _Optional[float] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("protocol", "swarm", "peer", "addresses", "epoch", "head", "name", "model", "tokenizer", "issued_at", "values", "membership", "readers")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    swarm: str
    peer: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    epoch: bytes
    head: int
    name: str
    model: str
    tokenizer: str
    issued_at: float
    values: _containers.RepeatedCompositeFieldContainer[CellValue]
    membership: bytes
    readers: int
    def __init__(self, protocol: _Optional[int] = ..., swarm: _Optional[str] = ..., peer: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., epoch: _Optional[bytes] = ..., head: _Optional[int] = ..., name: _Optional[str] = ..., model: _Optional[str] = ..., tokenizer: _Optional[str] = ..., issued_at: _Optional[float] = ..., values: _Optional[_Iterable[_Union[CellValue, _Mapping]]] = ..., membership: _Optional[bytes] = ..., readers: _Optional[int] = ...) -> None: ...

class SignedAnnouncement(_message.Message):
    __slots__ = ("body", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("swarm", "epoch", "cursor", "max_groups", "membership", "max_backlog", "deflate")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    MAX_GROUPS_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    MAX_BACKLOG_FIELD_NUMBER: _ClassVar[int]
    DEFLATE_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    epoch: bytes
    cursor: int
    max_groups: int
    membership: bytes
    max_backlog: int
    deflate: bool
    def __init__(self, swarm: _Optional[str] = ..., epoch: _Optional[bytes] = ..., cursor: _Optional[int] = ..., max_groups: _Optional[int] = ..., membership: _Optional[bytes] = ..., max_backlog: _Optional[int] = ..., deflate: _Optional[bool] = ...) -> None: ...

class PullCredit(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: int
    def __init__(self, groups: _Optional[int] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("epoch", "cursor", "group")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    epoch: bytes
    cursor: int
    group: SignedGroup
    def __init__(self, epoch: _Optional[bytes] = ..., cursor: _Optional[int] = ..., group: _Optional[_Union[SignedGroup, _Mapping]] = ...) -> None: ...

class RelayRequest(_message.Message):
    __slots__ = ("swarm", "membership", "deflate")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    DEFLATE_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    membership: bytes
    deflate: bool
    def __init__(self, swarm: _Optional[str] = ..., membership: _Optional[bytes] = ..., deflate: _Optional[bool] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("id", "origin", "hops", "bytes", "created_at", "source")
    ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    origin: str
    hops: int
    bytes: int
    created_at: float
    source: str
    def __init__(self, id: _Optional[bytes] = ..., origin: _Optional[str] = ..., hops: _Optional[int] = ..., bytes: _Optional[int] = ..., created_at: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class RelayWants(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RelayedGroup(_message.Message):
    __slots__ = ("id", "group")
    ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    group: SignedGroup
    def __init__(self, id: _Optional[bytes] = ..., group: _Optional[_Union[SignedGroup, _Mapping]] = ...) -> None: ...

class RelayResponse(_message.Message):
    __slots__ = ("offers", "relayed")
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    offers: _containers.RepeatedCompositeFieldContainer[Offer]
    relayed: RelayedGroup
    def __init__(self, offers: _Optional[_Iterable[_Union[Offer, _Mapping]]] = ..., relayed: _Optional[_Union[RelayedGroup, _Mapping]] = ...) -> None: ...
