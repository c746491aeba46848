"""What a swarm file may say: its tables, and sentences for everything that is not right in them.

Strangers write these files. Size and lines are bounded before anything is parsed, the number of values before any of
them is looked at, and text is such that a terminal shows it as it is. Of a signature nothing is known here.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from swarm.config_errors import complaints, shown
from swarm.errors import ConfigError, WireError
from swarm.limits import Limits
from swarm.net.addresses import peer_of, wildcard
from swarm.tasks import SOURCES
from swarm.tasks.base import canonical_json
from swarm.types import PeerId
from swarm.wire.bounds import MAX_ADDRESS_CHARS, MAX_CONFIG_CHARS, MAX_LABEL_CHARS, MAX_NAME_CHARS
from swarm.wire.codec import PROTOCOL
from swarm.wire.identity import public_key

FORMAT = 1
MAX_FILE_BYTES = 64_000
MAX_LINE_BYTES = 8192
"""A parser's time may grow with the square of a line."""
MAX_DEPTH = 8
MAX_VALUES = 2000
MAX_SAID = 8
"""Of all that may be wrong."""
MAX_SOURCES = 64
MAX_BOOTSTRAP = 32
MAX_FINGERPRINTS = 256
MAX_WEIGHT = 1000.0
LIMIT_FACTOR = 10
"""A file's limit is at most so many times the default: what a stranger writes must not open a node's memory."""

_PLUGIN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
_KEY_DIGEST = re.compile(r"([0-9a-f]{64})?")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_ADDRESS = "a multiaddr such as /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..."


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SourceTable(_Table):
    type: str
    """Key of `swarm.tasks.SOURCES`, or "module:factory"."""
    name: str
    """As peers call it: "reasoning_gym/spell_backward"."""
    version: str
    config: dict[str, object] = Field(default_factory=dict)
    weight: PositiveFloat = 1.0


class ModelsTable(_Table):
    models: tuple[str, ...] = Field(default=(), max_length=MAX_FINGERPRINTS)
    tokenizers: tuple[str, ...] = Field(default=(), max_length=MAX_FINGERPRINTS)


class AccessTable(_Table):
    key_sha256: str = ""
    """`swarm.membership.key_digest`; empty where members need no key."""
    allow: tuple[str, ...] = ()
    """Peer ids of all members; empty for everybody."""


class SignedTable(_Table):
    signature: str


class Content(_Table):
    format: Literal[1]
    protocol: int
    name: str
    created: str
    organiser: str
    bootstrap: tuple[str, ...] = Field(default=(), max_length=MAX_BOOTSTRAP)
    limits: Limits = Limits()
    models: ModelsTable = ModelsTable()
    access: AccessTable = AccessTable()
    sources: tuple[SourceTable, ...] = Field(min_length=1, max_length=MAX_SOURCES)
    signed: SignedTable


def parse(data: bytes) -> dict[str, Any]:
    """The file's tables as they are. Raises ConfigError, without the file's name."""
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"has more than {MAX_FILE_BYTES} bytes, which no swarm file has")
    if any(len(line) > MAX_LINE_BYTES for line in data.splitlines()):
        raise ConfigError(f"has a line of more than {MAX_LINE_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise ConfigError("is nested too deeply") from None
    except ValueError as error:  # not only TOMLDecodeError: also bytes that are no text, and numbers of 5000 digits
        raise ConfigError(f"is not TOML: {str(error)[:200]!a}") from error


def checked(tables: Mapping[str, Any]) -> Content:
    """The tables with their meaning. Raises ConfigError, without the file's name, for all that is wrong with them."""
    if type(tables.get("format")) is int and tables["format"] != FORMAT:
        raise ConfigError(_refused("format", tables["format"], str(FORMAT)))
    if _more_values_than(MAX_VALUES, tables):
        raise ConfigError(f"has more than {MAX_VALUES} values, which no swarm file has")
    wrong = list(_not_plain(tables, ""))
    if not wrong:
        try:
            content = Content.model_validate(tables)
        except ValidationError as error:
            wrong = [complaint.sentence for complaint in complaints(error, Content)]
        else:
            wrong = list(_complaints(content))
            if not wrong:
                return content
    raise ConfigError("; ".join(wrong[:MAX_SAID]))


def _refused(key: str, value: object, wanted: str) -> str:
    return f"{key} = {shown(value)} is not allowed; it must be {wanted}"


def _more_values_than(most: int, tables: Mapping[str, Any]) -> bool:
    """Tables and lists count, too."""
    left: list[object] = [tables]
    for _ in range(most + 1):
        if not left:
            return False
        value = left.pop()
        if isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return bool(left)


def _not_plain(value: object, key: str, depth: int = 0) -> Iterator[str]:
    """All text must be printable, keys too: nothing else in here ever has to quote it."""
    if depth > MAX_DEPTH:
        yield f"{key[:80]} is nested too deeply"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if not (name.isprintable() and len(name) <= MAX_LABEL_CHARS):
                yield f"{key or 'the file'} has the key {name[:80]!a}; it must be printable and short"
            else:
                yield from _not_plain(inner, f"{key}.{name}" if key else name, depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _not_plain(inner, f"{key}.{i}", depth + 1)
    elif isinstance(value, str):
        if not value.isprintable():
            yield f"{key} = {value[:80]!a} is not allowed; it must be printable"
    elif not isinstance(value, int) and not (isinstance(value, float) and math.isfinite(value)):
        yield f"{key} = {str(value)[:80]} is not allowed; it must be a string, a finite number or true or false"


def _complaints(content: Content) -> Iterator[str]:
    """What no type can tell."""
    if content.protocol != PROTOCOL:
        yield _refused("protocol", content.protocol, f"{PROTOCOL}, which is what this swarm-node speaks")
    if not _is_label(content.name, MAX_NAME_CHARS):
        yield _refused("name", content.name, f"1 to {MAX_NAME_CHARS} characters, no space at either end")
    if not _is_date(content.created):
        yield _refused("created", content.created, "a date such as 2026-11-22")
    yield from _not_peers("organiser", [content.organiser])
    for i, address in enumerate(content.bootstrap):
        if not _is_address(address):
            yield _refused(f"bootstrap.{i}", address, _ADDRESS)
    yield from _limits_too_wide(content.limits)
    for key, values in (("models", content.models.models), ("tokenizers", content.models.tokenizers)):
        for i, value in enumerate(values):
            if not _is_label(value):
                yield _refused(f"models.{key}.{i}", value, f"a fingerprint of 1 to {MAX_LABEL_CHARS} characters")
    if not _KEY_DIGEST.fullmatch(content.access.key_sha256):
        yield _refused("access.key_sha256", content.access.key_sha256, "64 hex digits, or empty")
    yield from _not_peers("access.allow", content.access.allow, many=True)
    for i, source in enumerate(content.sources):
        yield from _source_complaints(f"sources.{i}", source)
    names = [source.name for source in content.sources]
    for i, name in enumerate(names):
        if (first := names.index(name)) != i:
            yield f"sources.{i} has the name of sources.{first}: {shown(name)}"
    if not _SIGNATURE.fullmatch(content.signed.signature):
        yield _refused("signed.signature", content.signed.signature, "128 hex digits")


def _source_complaints(key: str, source: SourceTable) -> Iterator[str]:
    if source.type in SOURCES:
        if not (source.name.startswith(f"{source.type}/") and _is_label(source.name) and source.name[-1] != "/"):
            yield _refused(f"{key}.name", source.name, f'"{source.type}/" and a name')
    elif not (_PLUGIN.fullmatch(source.type) and _is_label(source.type)):
        yield _refused(f"{key}.type", source.type, f'{", ".join(map(shown, SOURCES))} or "module:factory"')
    elif not _is_label(source.name):
        yield _refused(f"{key}.name", source.name, f"1 to {MAX_LABEL_CHARS} characters")
    if not _is_label(source.version):
        yield _refused(f"{key}.version", source.version, f"1 to {MAX_LABEL_CHARS} characters")
    if source.weight > MAX_WEIGHT:
        yield _refused(f"{key}.weight", source.weight, f"at most {MAX_WEIGHT:g}")
    if (chars := len(canonical_json(source.config))) > MAX_CONFIG_CHARS:
        yield f"{key}.config has {chars} characters as JSON; it must be at most {MAX_CONFIG_CHARS}"


def _limits_too_wide(limits: Limits) -> Iterator[str]:
    for key, default in Limits().model_dump().items():
        if (value := getattr(limits, key)) > LIMIT_FACTOR * default:
            yield _refused(f"limits.{key}", value, f"at most {LIMIT_FACTOR * default:g}")


def _not_peers(key: str, peers: tuple[str, ...] | list[str], many: bool = False) -> Iterator[str]:
    for i, peer in enumerate(peers):
        try:
            public_key(PeerId(peer))
        except WireError:
            yield _refused(f"{key}.{i}" if many else key, peer, "a peer id of an ed25519 key (12D3KooW...)")


def _is_label(text: str, max_chars: int = MAX_LABEL_CHARS) -> bool:
    return 1 <= len(text) <= max_chars and text == text.strip()


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _is_address(address: str) -> bool:
    try:
        peer_of(address)
        return len(address) <= MAX_ADDRESS_CHARS and wildcard(address) is None
    except WireError:
        return False
