"""Who has earned what: strikes and bans that fade, trust that is earned, lost and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm.net.standing import MAX_PEERS, SAVE_S, Standing, lineage_of
from swarm.types import PeerId

PEER, OTHER = PeerId("peer"), PeerId("other")
HOUR = 3600.0


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_strikes_add_up_fade_and_are_forgotten() -> None:
    clock = Clock()
    standing = Standing(clock)
    for _ in range(4):
        standing.strike(PEER)
    assert not standing.excluded(PEER)
    standing.strike(PEER)
    assert standing.excluded(PEER)
    assert standing.ban_s(PEER) == pytest.approx(60.0 * 2**0.5)
    clock.now = 59.0
    assert standing.banned(PEER)
    clock.now = 61.0 * 2**0.5
    assert not standing.excluded(PEER)
    for _ in range(20):
        standing.strike(PEER)
    clock.now += Standing.LONGEST_S - 1
    assert standing.excluded(PEER)
    clock.now += 2
    assert not standing.excluded(PEER)
    clock.now += 10 * Standing.HALF_LIFE_S
    standing.strike(PEER)
    assert not standing.excluded(PEER)
    for number in range(2 * MAX_PEERS):
        standing.strike(PeerId(f"peer {number}"))
    assert len(standing._offences) == MAX_PEERS


def test_who_rests_is_excluded_and_not_banned() -> None:
    clock = Clock()
    standing = Standing(clock)
    standing.rest(PEER, 5.0)
    assert standing.excluded(PEER)
    assert not standing.banned(PEER)
    clock.now = 5.0
    assert not standing.excluded(PEER)


def test_trust_is_earned_fades_over_hours_and_is_capped() -> None:
    clock = Clock()
    standing = Standing(clock)
    assert standing.trust(PEER) == 0.0
    standing.credit(PEER, Standing.TRUSTED - 0.5)
    assert not standing.trusted(PEER)
    standing.credit(PEER, 0.5)
    assert standing.trusted(PEER)
    assert not standing.trusted(OTHER)
    clock.now = Standing.TRUST_HALF_LIFE_S
    assert standing.trust(PEER) == pytest.approx(Standing.TRUSTED / 2)
    assert not standing.trusted(PEER)
    standing.credit(PEER, 1e9)
    assert standing.trust(PEER) == Standing.MOST_TRUST
    clock.now += 24 * HOUR  # a day away, and it begins again
    assert not standing.trusted(PEER)


def test_a_strike_halves_trust_and_a_ban_takes_it_all() -> None:
    standing = Standing(Clock())
    standing.credit(PEER, Standing.MOST_TRUST)
    standing.credit(OTHER, Standing.MOST_TRUST)
    seen = []
    for _ in range(5):
        standing.strike(PEER)
        seen.append(standing.trust(PEER))
    assert seen == [10.0, 5.0, 2.5, 1.25, 0.0]
    assert standing.banned(PEER)
    assert standing.trust(OTHER) == Standing.MOST_TRUST


def test_what_was_refused_takes_trust_back_and_then_strikes() -> None:
    standing = Standing(Clock())
    standing.credit(PEER, 1.0)
    standing.credit(PEER, -1.0)
    assert standing.trust(PEER) == 0.0
    for _ in range(4):
        standing.credit(PEER, -7.0)  # one strike, however much it was
    assert not standing.banned(PEER)
    standing.credit(PEER, -0.4)
    assert not standing.banned(PEER)
    standing.credit(PEER, -0.1)
    assert standing.banned(PEER)


def test_a_crowd_that_has_earned_little_makes_nobody_else_forgotten() -> None:
    standing = Standing(Clock())
    standing.credit(PEER, Standing.TRUSTED)
    for number in range(MAX_PEERS + 10):
        standing.credit(PeerId(f"sybil {number}"), 0.1)
    assert standing.trusted(PEER)
    assert len(standing._earned) == MAX_PEERS


def test_standing_is_kept_over_a_restart_and_fades_meanwhile(tmp_path: Path) -> None:
    path, wall = tmp_path / "standing.json", Clock(1e9)
    standing = Standing(Clock(500.0), path, wall)
    standing.credit(PEER, 20.0)
    for _ in range(5):
        standing.strike(OTHER)
    standing.save()
    again = Standing(Clock(3.0), path, wall)
    assert again.trust(PEER) == pytest.approx(20.0)
    assert again.ban_s(OTHER) == pytest.approx(60.0 * 2**0.5)
    wall.now += Standing.TRUST_HALF_LIFE_S
    later = Standing(Clock(3.0), path, wall)
    assert later.trust(PEER) == pytest.approx(10.0)
    assert not later.banned(OTHER)
    wall.now = 0.0  # our own clock went back: nothing fades, nothing grows
    assert Standing(Clock(3.0), path, wall).trust(PEER) == pytest.approx(20.0)


def test_a_crash_loses_at_most_a_minute(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "standing.json"
    standing = Standing(clock, path)
    standing.credit(PEER, 1.0)
    assert not path.exists()
    clock.now = SAVE_S
    standing.credit(PEER, 1.0)
    assert Standing(clock, path).trust(PEER) == pytest.approx(2.0, rel=1e-2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["standing.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"saved_at": 0, "trust": {"peer": -1}, "strikes": {}}',
        '{"saved_at": 0, "trust": {"peer": NaN}, "strikes": {}}',
        '{"saved_at": 0, "trust": {"peer": "20"}, "strikes": {}}',
        '{"saved_at": 0, "trust": {"peer": 20}, "strikes": {"other": [5]}}',
        '{"saved_at": null, "trust": {"peer": 20}, "strikes": {}}',
        " " * (5 << 20),
    ],
)
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "standing.json"
    path.write_text(content)
    standing = Standing(Clock(), path, Clock(1e9))
    assert standing.trust(PEER) == 0.0
    standing.credit(PEER, 5.0)
    standing.save()
    assert Standing(Clock(), path, Clock(1e9)).trust(PEER) == 5.0


def test_a_file_gives_nobody_more_than_can_be_earned(tmp_path: Path) -> None:
    path = tmp_path / "standing.json"
    many = {f"peer {number}": 1e300 for number in range(MAX_PEERS + 10)}
    path.write_text(json.dumps({"saved_at": 1e9, "trust": many, "strikes": {}}))
    standing = Standing(Clock(), path, Clock(1e9))
    assert standing.trust(PeerId("peer 0")) == Standing.MOST_TRUST
    assert len(standing._earned) == MAX_PEERS


def test_a_full_disk_costs_the_memory_and_not_the_node(tmp_path: Path) -> None:
    standing = Standing(Clock(), tmp_path / "missing" / "standing.json")
    standing.credit(PEER, 5.0)
    standing.save()
    assert standing.trust(PEER) == 5.0


@pytest.mark.parametrize(
    ("address", "lineage"),
    [
        ("/ip4/8.8.4.99/tcp/4001", "8.8.4.0/24"),
        ("/ip4/8.8.4.7/udp/4001/quic-v1", "8.8.4.0/24"),
        ("/ip6/2001:4860:4860:1::8888/tcp/4001", "2001:4860:4860::/48"),
        ("/ip4/8.8.4.99/tcp/4001/p2p/12D3KooW/p2p-circuit", None),
        ("/ip4/127.0.0.1/tcp/4001", None),
        ("/ip4/192.168.1.4/tcp/4001", None),
        ("/ip4/10.1.2.3/tcp/4001", None),
        ("/ip6/::1/tcp/4001", None),
        ("/ip6/fd00::1/tcp/4001", None),
        ("/dns4/example.org/tcp/4001", None),
        ("/ip4/8.8.4.999/tcp/4001", None),
        ("", None),
    ],
)
def test_a_lineage_is_the_network_that_costs_little_more_than_an_address(address: str, lineage: str | None) -> None:
    assert lineage_of(address) == lineage


def test_a_lineage_is_where_a_peer_was_really_reached() -> None:
    standing = Standing(Clock())
    assert standing.lineage(PEER) is None
    standing.reached(PEER, "/ip4/8.8.4.99/tcp/4001")
    standing.reached(PEER, "/ip4/127.0.0.1/tcp/4001")
    assert standing.lineage(PEER) == "8.8.4.0/24"
    for number in range(MAX_PEERS):
        standing.reached(PeerId(f"peer {number}"), "/ip4/8.8.8.1/tcp/1")
    assert standing.lineage(PEER) is None
