"""Who is in a swarm: by its id, by a list, by a key that is never sent."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from swarm.errors import ConfigError
from swarm.membership import MAX_KEY_BYTES, PROOF_BYTES, Membership, key_digest, read_key
from tests.builders import identity

ME, OTHER = identity(1).peer_id, identity(2).peer_id
KEY = b"correct horse battery staple"
CLOSED = Membership(swarm="s", key=KEY)


def test_an_open_swarm_admits_everybody_of_it() -> None:
    swarm = Membership(swarm="s")
    assert swarm.proof(ME) == b""
    assert swarm.complaint("s", ME, b"") is None
    assert swarm.complaint("t", ME, b"") == "of swarm t: ours is s"


def test_a_list_admits_those_on_it() -> None:
    swarm = Membership(swarm="s", allow=frozenset({ME}))
    assert swarm.complaint("s", ME, b"") is None
    assert swarm.complaint("s", OTHER, b"") == f"{OTHER} is not on the swarm's list"


def test_a_key_admits_those_who_show_it() -> None:
    proof = CLOSED.proof(ME)
    assert proof == hmac.digest(KEY, b"swarm/v1/member\0" + f"s\0{ME}".encode(), hashlib.sha256)
    assert len(proof) == PROOF_BYTES
    assert CLOSED.complaint("s", ME, proof) is None
    for wrong in (b"", proof[:-1], bytes(PROOF_BYTES), Membership(swarm="s", key=KEY + b"!").proof(ME)):
        assert CLOSED.complaint("s", ME, wrong) == f"{ME} does not show the swarm's key"


def test_a_proof_is_of_one_peer_in_one_swarm() -> None:
    assert CLOSED.complaint("s", OTHER, CLOSED.proof(ME)) is not None
    assert CLOSED.complaint("s", ME, Membership(swarm="t", key=KEY).proof(ME)) is not None


def test_with_a_list_and_a_key_a_member_needs_both() -> None:
    swarm = Membership(swarm="s", key=KEY, allow=frozenset({ME}))
    assert swarm.complaint("s", ME, swarm.proof(ME)) is None
    assert swarm.complaint("s", OTHER, swarm.proof(OTHER)) == f"{OTHER} is not on the swarm's list"
    assert swarm.complaint("s", ME, b"") == f"{ME} does not show the swarm's key"


def test_a_key_is_not_printed() -> None:
    assert "horse" not in repr(CLOSED)


def test_white_space_around_a_key_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b" \n" + KEY + b"\r\n")
    assert read_key(path) == KEY


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"short", "has a key of 5 bytes; it must be at least 16"),
        (b"x" * 15 + b"\n" * 50, "has a key of 15 bytes; it must be at least 16"),
        (b"x" * (MAX_KEY_BYTES + 1), "has more than 4096 bytes"),
    ],
)
def test_a_key_that_will_not_do(data: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_key(path)
    assert str(caught.value) == f"key file {path}: {sentence}"


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read_key(tmp_path / "key")


def test_the_digest_of_a_key_is_pinned_and_of_one_name() -> None:
    assert key_digest("a", KEY) == hashlib.sha256(b"swarm/v1/key\0a\0" + KEY).hexdigest()
    assert key_digest("a", KEY) != key_digest("b", KEY)
