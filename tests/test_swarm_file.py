"""The swarm file: what it is the id of, what is refused in it and with which sentence, and what is made of it."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ConfigError
from swarm.file import (
    DOMAIN,
    SwarmFile,
    SwarmSource,
    canonical,
    parse_swarm_file,
    read_swarm_file,
    sign_swarm_file,
    to_toml,
)
from swarm.file_content import MAX_FILE_BYTES, MAX_LINE_BYTES, MAX_VALUES
from swarm.limits import Limits
from swarm.manifest import AgreedSource, Manifest
from swarm.membership import Membership
from swarm.tasks import make_source
from swarm.tasks.base import SourceSpec
from swarm.types import Reason
from swarm.verify import Context, check
from swarm.wire.codec import seal
from tests.builders import MANIFEST, NOW, group, identity

GOLDEN = Path(__file__).parent / "golden.swarm.toml"
KEY = b"correct horse battery staple"
ORGANISER = identity(1)
SPELL = AgreedSource(name="reasoning_gym/spell_backward", version="0.1.25", config='{"max_word_len":6}')
TABLES: dict[str, Any] = tomllib.loads(GOLDEN.read_text())
Place = tuple[str | int, ...]


def signed(**changes: Any) -> str:
    settings: dict[str, Any] = {
        "name": "small",
        "created": "2026-11-22",
        "sources": [SwarmSource(type="reasoning_gym", agreed=SPELL)],
        "limits": Limits(),
    }
    return sign_swarm_file(ORGANISER, **(settings | changes))


def resigned(tables: dict[str, Any]) -> bytes:
    """`tables` as their organiser would have signed them."""
    tables["signed"] = {"signature": ORGANISER.sign(DOMAIN, canonical(tables)).hex()}
    return to_toml(tables).encode()


def refused(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_swarm_file(data)
    assert str(caught.value).isprintable()
    return str(caught.value)


def leaves(value: Any, path: Place = ()) -> Iterator[Place]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def changed(path: Place, change: Callable[[Any], Any]) -> dict[str, Any]:
    tables = copy.deepcopy(TABLES)
    here: Any = tables
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = change(here[path[-1]])
    return tables


def with_value(dotted: str, value: Any) -> dict[str, Any]:
    return changed(tuple(int(key) if key.isdecimal() else key for key in dotted.split(".")), lambda _: value)


# The id ---------------------------------------------------------------------------------------------------------------


def test_the_id_is_pinned() -> None:
    """Another one for the same file would part the nodes of before and after."""
    file = read_swarm_file(GOLDEN)
    assert file.id == file.manifest.id == "44150e7c6827e33e2d3c1a2c71ccfaa5"
    content = {key: value for key, value in TABLES.items() if key != "signed"}
    body = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(b"swarm/v1/file\0" + body).hexdigest()[:32] == file.id


def test_what_the_golden_file_says() -> None:
    file = read_swarm_file(GOLDEN)
    assert (file.name, file.created, file.organiser) == ("golden swarm", "2026-11-22", ORGANISER.peer_id)
    assert file.bootstrap == tuple(TABLES["bootstrap"])
    assert [(source.type, source.label, source.weight) for source in file.sources] == [
        ("reasoning_gym", "spell_backward", 2.0),
        ("arithmetic", "sums", 1.0),
        ("jsonl", "algebra", 0.5),
    ]
    assert file.sources[0].agreed.config == '{"max_word_len":6,"min_word_len":3}'
    assert file.manifest.sources == tuple(source.agreed for source in file.sources)
    assert (file.manifest.models, file.manifest.tokenizers) == ({"0123456789abcdef"}, {"bytes"})
    assert (file.limits.max_rollouts, file.limits.max_age_s) == (16, 600.0)
    assert file.allow == {identity(number).peer_id for number in (2, 3, 4)}


def test_layout_and_comments_mean_nothing() -> None:
    tables = copy.deepcopy(TABLES)
    reordered = {key: tables[key] for key in reversed(tables)}
    inline = [f"{key} = {_inline(value)}  # about {key}" for key, value in reordered.items()]
    assert parse_swarm_file("\n\n".join(inline).encode()) == read_swarm_file(GOLDEN)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(inner)}" for key, inner in reversed(value.items())) + "}"
    return "[" + ",".join(map(_inline, value)) + "]" if isinstance(value, list) else json.dumps(value)


@pytest.mark.parametrize("path", list(leaves(TABLES)), ids=lambda path: ".".join(map(str, path)))
def test_no_value_can_be_changed(path: Place) -> None:
    """Not by others, whose signature it is not, and not by the organiser without making another swarm."""

    def other(value: Any) -> Any:
        return value + 1 if isinstance(value, int | float) else value[:-1] + ("b" if value[-1] == "a" else "a")

    tables = changed(path, other)
    refused(to_toml(tables).encode())
    if path[0] != "signed":
        try:
            anew = parse_swarm_file(resigned(tables))
        except ConfigError:
            return  # a value that means nothing ("format")
        assert anew.id != read_swarm_file(GOLDEN).id


@given(data=st.data(), value=st.one_of(st.text(max_size=8), st.integers(), st.floats(allow_nan=False), st.booleans()))
def test_no_value_can_become_anything(data: st.DataObject, value: object) -> None:
    path = data.draw(st.sampled_from(list(leaves(TABLES))))
    tables = changed(path, lambda old: value if json.dumps(value) != json.dumps(old) else f"{value}!")
    with pytest.raises(ConfigError):
        parse_swarm_file(to_toml(tables).encode(errors="replace"))


@pytest.mark.parametrize("key", [key for key in TABLES if key != "signed"])
def test_nothing_can_be_left_out(key: str) -> None:
    refused(to_toml({k: v for k, v in TABLES.items() if k != key}).encode())


def test_a_list_in_another_order_is_another_list() -> None:
    tables = changed(("bootstrap",), lambda addresses: addresses[::-1])
    assert "signed.signature is not by organiser" in refused(to_toml(tables).encode())


def test_only_the_organiser_signs() -> None:
    tables = copy.deepcopy(TABLES)
    tables["signed"]["signature"] = identity(2).sign(DOMAIN, canonical(tables)).hex()
    assert refused(to_toml(tables).encode()) == (
        f"signed.signature is not by organiser {ORGANISER.peer_id} over what is in the file: it was changed since it"
        " was signed, or damaged; ask whoever runs the swarm for the right file"
    )
    tables["organiser"] = identity(2).peer_id
    tables["signed"]["signature"] = identity(2).sign(DOMAIN, canonical(tables)).hex()
    assert parse_swarm_file(to_toml(tables).encode()).id != read_swarm_file(GOLDEN).id


def test_a_signature_is_for_swarm_files_only() -> None:
    tables = copy.deepcopy(TABLES)
    tables["signed"]["signature"] = ORGANISER.sign(b"", canonical(tables)).hex()
    assert "signed.signature is not by" in refused(to_toml(tables).encode())


# What is signed -------------------------------------------------------------------------------------------------------


def test_what_is_signed_is_read() -> None:
    text = signed(bootstrap=TABLES["bootstrap"], models=["m"], tokenizers=["t"], key=KEY, allow=[identity(3).peer_id])
    file = parse_swarm_file(text.encode())
    assert (file.name, file.limits, file.bootstrap) == ("small", Limits(), tuple(TABLES["bootstrap"]))
    assert file.manifest == Manifest(
        name="small", sources=(SPELL,), models=frozenset("m"), tokenizers=frozenset("t"), file=file.id
    )
    assert text.splitlines()[-1].startswith('signature = "')


def test_every_limit_is_written_out() -> None:
    """A default may change; what a swarm agreed on may not."""
    assert tomllib.loads(signed())["limits"] == Limits().model_dump()


def test_smaller_is_stricter_in_every_limit() -> None:
    """Or the field-wise minimum of two would not be the stricter one."""
    assert all(key.startswith("max_") for key in Limits.model_fields)


def test_the_key_is_not_in_the_file_and_equal_keys_do_not_show() -> None:
    one, other = signed(key=KEY), signed(key=KEY, name="other")
    assert KEY.decode() not in one
    assert parse_swarm_file(one.encode()).key_sha256 != parse_swarm_file(other.encode()).key_sha256


def test_what_would_not_be_read_is_not_signed() -> None:
    with pytest.raises(ConfigError, match=r"created = \"today\" is not allowed; it must be a date"):
        signed(created="today")
    with pytest.raises(ConfigError, match=r"sources\.0\.config\.x = None is not allowed"):
        signed(sources=[SwarmSource(type="reasoning_gym", agreed=replace(SPELL, config='{"x":null}'))])


def test_a_long_list_of_members_fits() -> None:
    peers = [identity(number).peer_id for number in range(1, 256)]
    assert parse_swarm_file(signed(allow=peers).encode()).allow == set(peers)


def test_a_plugin_keeps_its_name() -> None:
    source = SwarmSource(type="pkg.tasks:Anagrams", agreed=AgreedSource(name="mine/anagrams", version="1", config="{}"))
    [read] = parse_swarm_file(signed(sources=[source]).encode()).sources
    assert (read, read.plugin, read.label) == (source, True, "anagrams")


# Who is in ------------------------------------------------------------------------------------------------------------


def test_membership_of_an_open_swarm() -> None:
    file = parse_swarm_file(signed().encode())
    membership = file.membership()
    assert (membership.swarm, membership.key, membership.allow) == (file.id, None, None)
    with pytest.raises(ConfigError) as caught:
        file.membership(KEY)
    assert str(caught.value) == "swarm small is not closed by a key: leave --key-file and swarm.key_file out"


def test_membership_of_a_closed_swarm() -> None:
    file = read_swarm_file(GOLDEN)
    membership = file.membership(KEY)
    assert (membership.swarm, membership.key, membership.allow) == (file.id, KEY, file.allow)
    with pytest.raises(ConfigError) as caught:
        file.membership()
    assert str(caught.value) == (
        "swarm golden swarm is closed by a key: --key-file or swarm.key_file must name its file"
    )
    with pytest.raises(ConfigError) as caught:
        file.membership(KEY + b"!")
    assert str(caught.value) == "the key is not that of swarm golden swarm; ask whoever runs it for the right one"


# Refusals -------------------------------------------------------------------------------------------------------------

PEER = ORGANISER.peer_id
REFUSED = [
    ("format", 2, "format = 2 is not allowed; it must be 1"),
    ("format", "1.0", 'format = "1.0" is not allowed; it must be 1'),
    ("protocol", 2, "protocol = 2 is not allowed; it must be 1, which is what this swarm-node speaks"),
    ("protocol", "x", 'protocol = "x" is not allowed; it must be a whole number'),
    ("name", "", 'name = "" is not allowed; it must be 1 to 64 characters, no space at either end'),
    ("name", " a", 'name = " a" is not allowed; it must be 1 to 64 characters, no space at either end'),
    ("name", "a" * 65, f'name = "{"a" * 65}" is not allowed; it must be 1 to 64 characters, no space at either end'),
    ("name", "a\x1b[2J", "name = 'a\\x1b[2J' is not allowed; it must be printable"),
    ("name", "a\u202eb", "name = 'a\\u202eb' is not allowed; it must be printable"),
    ("name", 7, "name = 7 is not allowed; it must be a string"),
    ("created", "2026-13-01", 'created = "2026-13-01" is not allowed; it must be a date such as 2026-11-22'),
    ("created", "20261122", 'created = "20261122" is not allowed; it must be a date such as 2026-11-22'),
    ("organiser", "12D3", 'organiser = "12D3" is not allowed; it must be a peer id of an ed25519 key (12D3KooW...)'),
    ("limits.max_rollouts", 0, "limits.max_rollouts = 0 is not allowed; it must be greater than 0"),
    ("limits.max_rollouts", 641, "limits.max_rollouts = 641 is not allowed; it must be at most 640"),
    ("models.models.0", "", 'models.models.0 = "" is not allowed; it must be a fingerprint of 1 to 128 characters'),
    ("models.models", ["a"] * 257, "it must be a list of 256 or fewer"),
    ("access.key_sha256", "AB", 'access.key_sha256 = "AB" is not allowed; it must be 64 hex digits, or empty'),
    ("access.allow.1", "me", 'access.allow.1 = "me" is not allowed; it must be a peer id of an ed25519 key'),
    ("sources", [], "sources = [] is not allowed; it must be a list of 1 or more"),
    ("sources.0.type", "python", 'sources.0.type = "python" is not allowed; it must be "reasoning_gym", "arithmetic",'),
    ("sources.0.type", "os:system()", 'sources.0.type = "os:system()" is not allowed'),
    ("sources.0.name", "jsonl/x", 'sources.0.name = "jsonl/x" is not allowed; it must be "reasoning_gym/" and a name'),
    ("sources.0.name", "reasoning_gym/", 'sources.0.name = "reasoning_gym/" is not allowed'),
    ("sources.0.version", "v" * 129, "is not allowed; it must be 1 to 128 characters"),
    ("sources.0.weight", 0, "sources.0.weight = 0 is not allowed; it must be greater than 0"),
    ("sources.0.weight", 1e9, "sources.0.weight = 1000000000.0 is not allowed; it must be at most 1000"),
    (
        "sources.0.config.min_word_len",
        "x" * 5000,
        "config has 5036 characters as JSON; it must be at most 4096",
    ),
    ("signed.signature", "00", 'signed.signature = "00" is not allowed; it must be 128 hex digits'),
    (
        "bootstrap.0",
        "/ip4/1.2.3.4/tcp/1",
        'bootstrap.0 = "/ip4/1.2.3.4/tcp/1" is not allowed; it must be',
    ),
    ("bootstrap.0", f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}", "is not allowed; it must be a multiaddr such"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), REFUSED)
def test_what_is_wrong_with_a_value(key: str, value: object, sentence: str) -> None:
    tables = with_value(key, value)
    assert sentence in refused(to_toml(tables).encode())


def test_an_unknown_key_has_a_neighbour() -> None:
    tables = copy.deepcopy(TABLES)
    tables["limits"]["max_rollout"] = 1
    tables["sources"][1]["path"] = "/etc/passwd"
    said = refused(resigned(tables))
    assert "limits.max_rollout is not a key; did you mean limits.max_rollouts?" in said
    assert "sources.1.path is not a key; sources.1 has type, name, version, config, weight" in said


def test_the_same_source_twice() -> None:
    tables = changed(("sources",), lambda sources: [*sources, sources[0]])
    assert refused(resigned(tables)) == 'sources.3 has the name of sources.0: "reasoning_gym/spell_backward"'


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"x" * (MAX_FILE_BYTES + 1), "has more than 64000 bytes, which no swarm file has"),
        (b"a = " + b"1" * MAX_LINE_BYTES, "has a line of more than 8192 bytes"),
        (b"a = \xff", "is not TOML: "),
        (b"a = " + b"9" * 5000, "is not TOML: "),
        (b"name =", "is not TOML: "),
        (b"a = " + b"[" * 8000, "is nested too deeply"),
        (b".".join([b"a"] * 1000) + b" = 1", "is nested too deeply"),
        (b"a = [" + b"1,\n" * (MAX_VALUES + 1) + b"]", "has more than 2000 values, which no swarm file has"),
        (b"a = nan", "a = nan is not allowed; it must be a string, a finite number or true or false"),
        (b"a = 2026-11-22", "a = 2026-11-22 is not allowed; it must be a string, a finite number or true or false"),
        (b'"\\u001b" = 1', "the file has the key '\\x1b'; it must be printable and short"),
        (b"", "format is missing"),
    ],
    ids=range(12),
)
def test_what_is_no_swarm_file(data: bytes, sentence: str) -> None:
    assert sentence in refused(data)


@given(st.binary(max_size=400))
def test_garbage_is_refused_with_a_sentence(data: bytes) -> None:
    refused(data)


def test_the_sentence_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.swarm.toml"
    with pytest.raises(ConfigError) as caught:
        read_swarm_file(path)
    assert str(caught.value) == f"{path}: there is no such file"
    with pytest.raises(ConfigError) as caught:
        read_swarm_file(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"
    path.write_bytes(resigned(with_value("protocol", 9)))
    with pytest.raises(ConfigError, match="protocol = 9 is not allowed") as caught:
        read_swarm_file(path)
    assert str(caught.value).startswith(f"{path}: ")


# The models of a swarm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "reason", "detail"),
    [
        ({}, Reason.ADMITTED, ""),
        ({"models": {"model-a"}, "tokenizers": {"bytes"}}, Reason.ADMITTED, ""),
        ({"models": {"x", "y"}}, Reason.WRONG_MODEL, "model model-a is not among the 2 that this swarm allows"),
        ({"tokenizers": {"x"}}, Reason.WRONG_MODEL, "tokenizer bytes is not among the 1 that this swarm allows"),
    ],
)
def test_a_group_of_another_model_is_refused(rules: dict[str, set[str]], reason: Reason, detail: str) -> None:
    manifest = replace(MANIFEST, **{key: frozenset(value) for key, value in rules.items()})
    membership = Membership(swarm=manifest.id)
    context = Context(me=identity(9).peer_id, manifest=manifest, membership=membership, limits=Limits(), now=NOW)
    verdict = check(seal(group(swarm=manifest.id), identity()), context)
    assert (verdict.reason, verdict.detail) == (reason, detail)


def test_a_file_without_rules_for_models_takes_any() -> None:
    file: SwarmFile = parse_swarm_file(signed().encode())
    assert file.manifest.model_complaint("anything", "at all") is None


def test_a_spec_is_made_of_the_label() -> None:
    source = read_swarm_file(GOLDEN).sources[1]
    spec = SourceSpec(type=source.type, name=source.label, config=source.agreed.config)
    made = make_source(spec)
    assert (made.name, made.version, made.config) == (source.agreed.name, source.agreed.version, source.agreed.config)
