"""The swarm file: a small signed TOML file that is a swarm. Whoever has the same file is in it, and nobody else.

Its organiser says what is learned, within which limits, by which models, where the first peers are and who may join,
and signs that. The swarm's id is a digest of what is signed, which is canonical JSON: comments and layout mean nothing,
everything else makes another swarm. Nothing is imported or fetched for a file's sake.

    format = 1                          of the file
    protocol = 1                        that its nodes speak
    name = "reasoning"
    created = "2026-11-22"
    organiser = "12D3KooW..."           whose ed25519 key signs (it is in the peer id)
    bootstrap = ["/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..."]
    [limits]                            of swarm/limits.py; a node's own may be stricter
    [models]                            models, tokenizers: fingerprints that may take part; empty for any
    [access]                            key_sha256: of a key that members share; allow: peer ids of all members
    [[sources]]                         type, name, version, weight, config
    [signed]
    signature = "..."                   in hex
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm.errors import ConfigError, SignatureMismatch
from swarm.file_content import FORMAT, MAX_FILE_BYTES, Content, SourceTable, checked, parse
from swarm.limits import Limits
from swarm.manifest import ID_CHARS, AgreedSource, Manifest
from swarm.membership import Membership, key_digest
from swarm.tasks import SOURCES
from swarm.tasks.base import canonical_json
from swarm.toml import toml_lines
from swarm.types import PeerId, family_of
from swarm.wire.codec import PROTOCOL
from swarm.wire.identity import Identity, check_signature

DOMAIN = b"swarm/v1/file\0"
SIGNED = "signed"
HEADER = """\
# A swarm of swarm-node. `swarm-node swarm show FILE` says what joining means, `swarm-node join FILE` joins.
# Signed by its organiser: with another value it is another swarm's file, or nobody's.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSource:
    type: str
    """Key of `swarm.tasks.SOURCES`, or "module:factory"."""
    agreed: AgreedSource
    weight: float = 1.0
    """How often it is sampled beside the others."""

    @property
    def plugin(self) -> bool:
        return self.type not in SOURCES

    @property
    def label(self) -> str:
        """The name in a node's config: "spell_backward" of "reasoning_gym/spell_backward"."""
        return family_of(self.agreed.name) if self.plugin else self.agreed.name.removeprefix(f"{self.type}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmFile:
    """A file whose signature is good. Made by `read_swarm_file`."""

    id: str
    """Of the swarm."""
    name: str
    created: str
    """An ISO date, by the organiser's account."""
    organiser: PeerId
    bootstrap: tuple[str, ...]
    """Multiaddrs with /p2p/ and a peer id."""
    sources: tuple[SwarmSource, ...]
    manifest: Manifest
    limits: Limits
    key_sha256: str
    """Of the members' key (`swarm.membership.key_digest`); empty where they need none."""
    allow: frozenset[PeerId] | None
    """All members; None where everybody may join."""

    def membership(self, key: bytes | None = None) -> Membership:
        """Raises ConfigError when `key` is missing, or not the swarm's, or the swarm has none."""
        if self.key_sha256 and key is None:
            raise ConfigError(f"swarm {self.name} is closed by a key: --key-file or swarm.key_file must name its file")
        if key is not None and not self.key_sha256:
            raise ConfigError(f"swarm {self.name} is not closed by a key: leave --key-file and swarm.key_file out")
        if key is not None and not hmac.compare_digest(key_digest(self.name, key), self.key_sha256):
            raise ConfigError(f"the key is not that of swarm {self.name}; ask whoever runs it for the right one")
        return Membership(swarm=self.id, key=key, allow=self.allow)


def read_swarm_file(path: Path) -> SwarmFile:
    """Raises ConfigError, which names the file and all that is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return parse_swarm_file(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_swarm_file(data: bytes) -> SwarmFile:
    """A file's bytes. Raises ConfigError, without the file's name."""
    tables = parse(data)
    content = checked(tables)
    body = canonical(tables)
    organiser = PeerId(content.organiser)
    try:
        check_signature(organiser, DOMAIN, body, bytes.fromhex(content.signed.signature))
    except SignatureMismatch:
        raise ConfigError(
            f"signed.signature is not by organiser {organiser} over what is in the file: it was changed since it was"
            " signed, or damaged; ask whoever runs the swarm for the right file"
        ) from None
    return _swarm_file(content, hashlib.sha256(DOMAIN + body).hexdigest()[:ID_CHARS])


def sign_swarm_file(
    organiser: Identity,
    *,
    name: str,
    created: str,
    sources: Sequence[SwarmSource],
    limits: Limits,
    bootstrap: Sequence[str] = (),
    models: Sequence[str] = (),
    tokenizers: Sequence[str] = (),
    key: bytes | None = None,
    allow: Sequence[PeerId] = (),
) -> str:
    """The text of a new file, which `parse_swarm_file` accepts. Raises ConfigError where it would not."""
    tables: dict[str, Any] = {
        "format": FORMAT,
        "protocol": PROTOCOL,
        "name": name,
        "created": created,
        "organiser": organiser.peer_id,
        "bootstrap": list(bootstrap),
        "limits": limits.model_dump(),
        "models": {"models": list(models), "tokenizers": list(tokenizers)},
        "access": {"key_sha256": "" if key is None else key_digest(name, key), "allow": list(allow)},
        "sources": [_source_table(source) for source in sources],
    }
    tables[SIGNED] = {"signature": organiser.sign(DOMAIN, canonical(tables)).hex()}
    checked(tables)
    text = to_toml(tables)
    parse_swarm_file(text.encode())
    return text


def to_toml(tables: Mapping[str, Any]) -> str:
    """The tables of a swarm file as people read them, the signature last."""
    content = {key: value for key, value in tables.items() if key != SIGNED}
    return HEADER + "\n" + "\n".join([*toml_lines(content), *toml_lines({SIGNED: tables[SIGNED]})]) + "\n"


def canonical(tables: Mapping[str, Any]) -> bytes:
    """What is signed, and what the id is made of: everything but the signature. Defaults are not filled in, so that
    they may change without changing what an old file is."""
    return canonical_json({key: value for key, value in tables.items() if key != SIGNED}).encode()


def _source_table(source: SwarmSource) -> dict[str, Any]:
    agreed = source.agreed
    described = {"type": source.type, "name": agreed.name, "version": agreed.version, "weight": source.weight}
    return {**described, "config": json.loads(agreed.config)}


def _swarm_file(content: Content, id: str) -> SwarmFile:
    sources = tuple(map(_source, content.sources))
    manifest = Manifest(
        name=content.name,
        sources=tuple(source.agreed for source in sources),
        models=frozenset(content.models.models),
        tokenizers=frozenset(content.models.tokenizers),
        file=id,
    )
    return SwarmFile(
        id=id,
        name=content.name,
        created=content.created,
        organiser=PeerId(content.organiser),
        bootstrap=content.bootstrap,
        sources=sources,
        manifest=manifest,
        limits=content.limits,
        key_sha256=content.access.key_sha256,
        allow=frozenset(map(PeerId, content.access.allow)) or None,
    )


def _source(table: SourceTable) -> SwarmSource:
    agreed = AgreedSource(name=table.name, version=table.version, config=canonical_json(table.config))
    return SwarmSource(type=table.type, agreed=agreed, weight=table.weight)
