"""What the nodes of one swarm have agreed on. Whoever agrees on something else is in another swarm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from swarm.tasks.base import SourceInfo
from swarm.types import TaskRef
from swarm.wire.codec import PROTOCOL

ID_CHARS = 32


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class AgreedSource:
    """What two nodes must share for their tasks to be the same tasks."""

    name: str
    version: str
    config: str
    """Canonical JSON."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A swarm: its name and the tasks that may be learned in it. The order of the sources means nothing."""

    name: str
    sources: tuple[AgreedSource, ...]
    models: frozenset[str] = frozenset()
    """Fingerprints of the models that may take part; empty for any."""
    tokenizers: frozenset[str] = frozenset()
    """The same of tokenizers."""
    file: str = ""
    """The id of the signed file that all of this is from (swarm/file.py), which is then the swarm's; else empty."""

    @classmethod
    def of(cls, name: str, sources: Iterable[SourceInfo]) -> Manifest:
        """The swarm of this name for nodes that have these sources."""
        agreed = tuple(AgreedSource(name=s.name, version=s.version, config=s.config) for s in sources)
        return cls(name=name, sources=agreed)

    @cached_property
    def id(self) -> str:
        """The first 32 hex digits of the SHA-256 of all that is agreed on, the protocol's version included."""
        if self.file:
            return self.file
        agreed = [PROTOCOL, self.name, [[s.name, s.version, s.config] for s in sorted(self.sources)]]
        canonical = json.dumps(agreed, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:ID_CHARS]

    def admits(self, ref: TaskRef) -> bool:
        """Whether `ref` names a task of this swarm's sources. Whether there is such a task only its source knows."""
        return AgreedSource(name=ref.source, version=ref.version, config=ref.config) in self.sources

    def model_complaint(self, model: str, tokenizer: str) -> str | None:
        """Why a policy of these fingerprints may not take part; None if it may."""
        for what, given, allowed in (("model", model, self.models), ("tokenizer", tokenizer, self.tokenizers)):
            if allowed and given not in allowed:
                return f"{what} {given} is not among the {len(allowed)} that this swarm allows"
        return None
