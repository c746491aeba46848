import stat
from pathlib import Path

import base58
import pytest

from swarm.errors import ConfigError, SignatureMismatch, WireError
from swarm.types import PeerId
from swarm.wire.identity import ANNOUNCEMENT_DOMAIN, GROUP_DOMAIN, Identity, check_signature, public_key
from tests.builders import identity

# RFC 8032, section 7.1, test 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
PEER_ID = "12D3KooWQK1wnefoLrcVHbbnf5tLzbopUd3K3bFAoJpA7YJgL5pV"  # as the libp2p daemon says it


def test_a_new_key_is_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "made" / "identity.key"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["identity.key"]
    assert Identity.load_or_create(path).peer_id == made.peer_id
    assert Identity.load_or_create(tmp_path / "other.key").peer_id != made.peer_id


def test_file_and_peer_id_are_libp2ps(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(bytes.fromhex("08011240") + SEED + PUBLIC)
    loaded = Identity.load_or_create(path)
    assert loaded.peer_id == PEER_ID
    assert public_key(loaded.peer_id) == PUBLIC


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes.fromhex("08011240") + SEED, id="torn"),
        pytest.param(bytes.fromhex("08011240") + SEED + PUBLIC + b"\n", id="longer"),
        pytest.param(bytes.fromhex("08011240") + SEED + SEED, id="halves that do not belong together"),
        pytest.param(bytes.fromhex("08001240") + SEED + PUBLIC, id="RSA"),
    ],
)
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"identity\.key.*move it away"):
        Identity.load_or_create(path)
    assert path.read_bytes() == data


def test_a_key_that_cannot_be_read_or_written_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Identity.load_or_create(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be"):
        Identity.load_or_create(tmp_path / "file" / "identity.key")


def test_a_signature_is_by_one_author_for_one_purpose() -> None:
    author, other = identity(1), identity(2)
    signature = author.sign(GROUP_DOMAIN, b"body")
    check_signature(author.peer_id, GROUP_DOMAIN, b"body", signature)
    for peer, domain, body, mark in [
        (other.peer_id, GROUP_DOMAIN, b"body", signature),
        (author.peer_id, ANNOUNCEMENT_DOMAIN, b"body", signature),
        (author.peer_id, GROUP_DOMAIN, b"bodY", signature),
        (author.peer_id, GROUP_DOMAIN, b"body", signature[:-1]),
        (author.peer_id, GROUP_DOMAIN, b"body", b""),
    ]:
        with pytest.raises(SignatureMismatch):
            check_signature(peer, domain, body, mark)


@pytest.mark.parametrize(
    "peer",
    [
        "",
        "12D3KooW",
        PEER_ID[:-1],
        PEER_ID + " ",
        PEER_ID[:-1] + "0",  # not in the alphabet
        PEER_ID[:-1] + "é",
        "Qm" + PEER_ID[2:],
        "1" * 52,
        "1" * 100_000,
        base58.b58encode(bytes([0, 36, 8, 2, 18, 32]) + PUBLIC).decode(),  # secp256k1
    ],
)
def test_what_is_no_ed25519_peer_id_is_refused(peer: str) -> None:
    with pytest.raises(WireError, match="peer id"):
        public_key(PeerId(peer))
    with pytest.raises(WireError):
        check_signature(PeerId(peer), GROUP_DOMAIN, b"", bytes(64))
