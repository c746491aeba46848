"""A peer's group that was admitted: what it is worth to us, and what our tracker hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from node.algorithms import TrackerConfig
from node.intake import Intake
from node.journal import Journal
from node.ledger import Ledger
from node.rl.tracker import ValueTracker
from swarm.limits import Limits
from swarm.net.base import Received
from swarm.types import PeerId, PolicyVersion
from swarm.wire.codec import seal
from tests.builders import MANIFEST, MEMBERSHIP, NOW, EchoJudge, group, identity, rollout, task, task_ref

VERSION = PolicyVersion(3)
PEER = identity(2)


def intake_of(journal: Journal, tracker: ValueTracker, me: PeerId | None = None) -> Intake:
    return Intake(
        me=me or identity(1).peer_id,
        manifest=MANIFEST,
        membership=MEMBERSHIP,
        limits=Limits(),
        truncated="scored",
        judge=EchoJudge(),
        journal=journal,
        tracker=tracker,
        version=lambda: VERSION,
        ledger=Ledger(),
        wall_clock=lambda: NOW,
    )


def received() -> Received:
    """Of task 7: a success, a failure, and one that nobody can score."""
    sealed = seal(group(rollout("7"), rollout("8"), rollout("?"), ref=task_ref(7), origin=PEER.peer_id), PEER)
    return Received(sender=PEER.peer_id, body=sealed.body, signature=sealed.signature)


@pytest.mark.parametrize("peers", ["ignore", "weigh", "prior"])
async def test_the_tracker_hears_of_scored_rollouts_after_the_group_has_its_value(
    tmp_path: Path, peers: Literal["ignore", "weigh", "prior"]
):
    config = TrackerConfig(peers=peers, peer_weight=0.5)
    tracker, expected = ValueTracker(config), ValueTracker(config)
    for reward in (1.0, 1.0, 0.0):
        tracker.observe(task(task_ref(7)), reward, VERSION)
        expected.observe(task(task_ref(7)), reward, VERSION)
    before = tracker.value(task(task_ref(7)), VERSION)
    async with Journal.open(tmp_path / "journal.db", 10) as journal:
        findings, judged = await intake_of(journal, tracker).judge(received())
    assert judged is not None, findings.verdict
    assert judged.experience.scores == [1.0, 0.0, None]
    assert (judged.experience.own, judged.experience.version, judged.experience.value) == (False, VERSION, before)
    for reward in (1.0, 0.0):
        expected.observe_peer(task(task_ref(7)), reward, VERSION)
    assert tracker.state() == expected.state()
    assert (tracker.value(task(task_ref(7)), VERSION) != before) is (peers != "ignore")


async def test_the_tracker_hears_nothing_of_a_group_that_was_refused(tmp_path: Path):
    tracker = ValueTracker(TrackerConfig(peers="weigh"))
    async with Journal.open(tmp_path / "journal.db", 10) as journal:
        findings, judged = await intake_of(journal, tracker, me=PEER.peer_id).judge(received())
    assert (judged, findings.verdict.admitted) == (None, False)
    assert tracker.state() == ValueTracker(TrackerConfig()).state()
