from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_STARTING: _ClassVar[NodeState]
    NODE_STATE_RUNNING: _ClassVar[NodeState]
    NODE_STATE_PAUSED: _ClassVar[NodeState]
    NODE_STATE_STOPPING: _ClassVar[NodeState]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_STARTING: NodeState
NODE_STATE_RUNNING: NodeState
NODE_STATE_PAUSED: NodeState
NODE_STATE_STOPPING: NodeState

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("interval_s",)
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    def __init__(self, interval_s: _Optional[float] = ...) -> None: ...

class ListPeersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPeersResponse(_message.Message):
    __slots__ = ("peers",)
    PEERS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    def __init__(self, peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ...) -> None: ...

class ListVerdictsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListVerdictsResponse(_message.Message):
    __slots__ = ("verdicts",)
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[VerdictRecord]
    def __init__(self, verdicts: _Optional[_Iterable[_Union[VerdictRecord, _Mapping]]] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("path", "step")
    PATH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    path: str
    step: int
    def __init__(self, path: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("name", "peer", "version", "state", "uptime_s", "policy_version", "steps", "swarm", "addresses", "peers", "admitted", "refused", "counters", "metrics", "held_out", "held_out_step", "values", "network", "warnings", "alarms", "parts", "holds", "learner_time", "generator_time")
    class AdmittedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class HeldOutEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class LearnerTimeEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class GeneratorTimeEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_STEP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    LEARNER_TIME_FIELD_NUMBER: _ClassVar[int]
    GENERATOR_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    peer: str
    version: str
    state: NodeState
    uptime_s: float
    policy_version: int
    steps: int
    swarm: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    peers: int
    admitted: _containers.ScalarMap[str, int]
    refused: _containers.ScalarMap[str, int]
    counters: _containers.ScalarMap[str, int]
    metrics: _containers.ScalarMap[str, float]
    held_out: _containers.ScalarMap[str, float]
    held_out_step: int
    values: _containers.ScalarMap[str, float]
    network: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    alarms: _containers.RepeatedCompositeFieldContainer[Alarm]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    holds: _containers.RepeatedScalarFieldContainer[str]
    learner_time: _containers.ScalarMap[str, float]
    generator_time: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., peer: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., uptime_s: _Optional[float] = ..., policy_version: _Optional[int] = ..., steps: _Optional[int] = ..., swarm: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., peers: _Optional[int] = ..., admitted: _Optional[_Mapping[str, int]] = ..., refused: _Optional[_Mapping[str, int]] = ..., counters: _Optional[_Mapping[str, int]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., held_out: _Optional[_Mapping[str, float]] = ..., held_out_step: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ..., network: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., alarms: _Optional[_Iterable[_Union[Alarm, _Mapping]]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., holds: _Optional[_Iterable[str]] = ..., learner_time: _Optional[_Mapping[str, float]] = ..., generator_time: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("name", "state", "restarts", "recent_failures", "allowed_failures", "last_error", "last_error_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    RECENT_FAILURES_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FAILURES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    restarts: int
    recent_failures: int
    allowed_failures: int
    last_error: str
    last_error_s: float
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., restarts: _Optional[int] = ..., recent_failures: _Optional[int] = ..., allowed_failures: _Optional[int] = ..., last_error: _Optional[str] = ..., last_error_s: _Optional[float] = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("name", "text", "value", "threshold", "since_step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SINCE_STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    value: float
    threshold: float
    since_step: int
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., value: _Optional[float] = ..., threshold: _Optional[float] = ..., since_step: _Optional[int] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("peer", "name", "addresses", "last_seen_s", "head", "cursor", "admitted", "refused", "trust", "trusted", "ban_s")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PEER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_FIELD_NUMBER: _ClassVar[int]
    BAN_S_FIELD_NUMBER: _ClassVar[int]
    peer: str
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    last_seen_s: float
    head: int
    cursor: int
    admitted: int
    refused: _containers.ScalarMap[str, int]
    trust: float
    trusted: bool
    ban_s: float
    def __init__(self, peer: _Optional[str] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., last_seen_s: _Optional[float] = ..., head: _Optional[int] = ..., cursor: _Optional[int] = ..., admitted: _Optional[int] = ..., refused: _Optional[_Mapping[str, int]] = ..., trust: _Optional[float] = ..., trusted: _Optional[bool] = ..., ban_s: _Optional[float] = ...) -> None: ...

class VerdictRecord(_message.Message):
    __slots__ = ("origin", "group", "reason", "detail", "age_s")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    origin: str
    group: str
    reason: str
    detail: str
    age_s: float
    def __init__(self, origin: _Optional[str] = ..., group: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., age_s: _Optional[float] = ...) -> None: ...
