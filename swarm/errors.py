"""Everything that swarm-node raises on purpose.

    SwarmError
    ├── ConfigError            a config file, a flag or a key: names the key, the value and what is allowed
    ├── TaskError              a task cannot be made or scored
    │   └── TaskTimeout        ... in time
    ├── WireError              bytes from outside that are not what they should be
    │   ├── LimitError         ... or more than they may be
    │   └── ProtocolMismatch   ... or those of another version of the protocol
    ├── SignatureMismatch      bytes that their claimed author did not sign
    ├── NetworkError           a peer, a stream or the network stack failed; never fatal to the node
    ├── PolicyError            a model or tokenizer cannot be loaded or used
    ├── EngineError            the sampling engine cannot be started, or is lost for good
    ├── JournalError           the journal cannot be opened or written
    ├── CheckpointError        a checkpoint is missing, torn or of another policy
    └── CrashLoop              a part of the node failed again and again

A bad rollout is data (a status), a bad peer is a verdict, a bug is a crash: none of those is here.
"""


class SwarmError(Exception):
    """Root of the tree above."""


class ConfigError(SwarmError, ValueError): ...


class TaskError(SwarmError): ...


class TaskTimeout(TaskError, TimeoutError): ...


class WireError(SwarmError, ValueError): ...


class LimitError(WireError): ...


class ProtocolMismatch(WireError): ...


class SignatureMismatch(SwarmError): ...


class NetworkError(SwarmError, ConnectionError): ...


class PolicyError(SwarmError): ...


class EngineError(SwarmError): ...


class JournalError(SwarmError, OSError): ...


class CheckpointError(SwarmError): ...


class CrashLoop(SwarmError): ...
