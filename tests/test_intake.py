"""A peer's group that was admitted: what it is worth to us, and what our tracker hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from node.algorithms import PoolConfig, TrackerConfig
from node.experience import Experience
from node.intake import Intake
from node.journal import Journal
from node.ledger import Ledger
from node.precedents import Precedents
from node.rl.tracker import ValueTracker
from swarm.limits import Limits
from swarm.net.base import INNOCENT, Received
from swarm.net.standing import Standing
from swarm.types import FinishReason, GroupId, PeerId, PolicyVersion, Reason, SamplingParams
from swarm.wire.codec import seal
from swarm.wire.identity import Identity
from tests.builders import MANIFEST, MEMBERSHIP, NOW, EchoJudge, group, identity, rollout, task, task_ref

VERSION = PolicyVersion(3)
PEER = identity(2)


def intake_of(
    journal: Journal,
    tracker: ValueTracker,
    me: PeerId | None = None,
    *,
    precedents: Precedents | None = None,
    ledger: Ledger | None = None,
    banned: Callable[[PeerId], bool] = lambda peer: False,
) -> Intake:
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
        ledger=ledger or Ledger(),
        precedents=precedents or Precedents(PoolConfig()),
        banned=banned,
        wall_clock=lambda: NOW,
    )


def received() -> Received:
    """Of task 7: a success, a failure, and one that nobody can score."""
    sealed = seal(group(rollout("7"), rollout("8"), rollout("?"), ref=task_ref(7), origin=PEER.peer_id), PEER)
    return Received(sender=PEER.peer_id, body=sealed.body, signature=sealed.signature)


@pytest.mark.parametrize("peers", ["ignore", "weigh", "prior"])
async def test_the_tracker_hears_of_scored_rollouts_when_the_group_has_its_value_and_its_place(
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
    assert tracker.state() == expected.state(), "not before it is in the pool"
    tracker.hear(judged.experience, VERSION)
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


# Precedents: what came before ----------------------------------------------------------------------------------------

THIEF = identity(3)
PROSE = "It is seven because six and one are seven, and nothing else would be. "


def written(text: str, author: Identity = PEER, created_at: float = NOW, **fields: Any) -> Received:
    """Two rollouts of task 7 with that much text before the answer's line."""
    texts = [f"{text} And so: {number}" for number in (1, 2)]
    made = group(*(rollout(t) for t in texts), ref=task_ref(7), origin=author.peer_id, created_at=created_at, **fields)
    sealed = seal(made, author)
    return Received(sender=author.peer_id, body=sealed.body, signature=sealed.signature)


LONG = SamplingParams(max_new_tokens=4096)


async def test_a_copy_is_refused_and_holds_nothing_against_anybody(tmp_path: Path):
    """Whoever comes second: a thief, or the victim of one with a faster line. And our own texts are nobody else's."""
    precedents = Precedents(PoolConfig())
    async with Journal.open(tmp_path / "journal.db", 10) as journal:
        intake = intake_of(journal, ValueTracker(TrackerConfig()), precedents=precedents)
        _, judged = await intake.judge(written(PROSE * 3, THIEF, sampling=LONG))
        assert judged is not None
        precedents.add(judged.experience)
        standing = Standing(lambda: 0.0)
        for _ in range(50):
            findings, judged = await intake.judge(written(PROSE * 3, PEER, sampling=LONG))
            assert (findings.verdict.reason, judged) == (Reason.COPIED, None)
            if findings.verdict.reason not in INNOCENT:
                standing.strike(findings.origin)
        assert not standing.excluded(PEER.peer_id)
        off = intake_of(journal, ValueTracker(TrackerConfig()), precedents=Precedents(PoolConfig(distinct=False)))
        assert (await off.judge(written(PROSE * 3, PEER, sampling=LONG)))[1] is not None


async def test_the_same_under_a_new_id_is_refused(tmp_path: Path):
    precedents = Precedents(PoolConfig())
    async with Journal.open(tmp_path / "journal.db", 10) as journal:
        intake = intake_of(journal, ValueTracker(TrackerConfig()), precedents=precedents)
        _, first = await intake.judge(written("short"))
        assert first is not None
        precedents.add(first.experience)
        findings, again = await intake.judge(written("short", created_at=NOW - 1))
        assert (findings.verdict.reason, again) == (Reason.COPIED, None)
        assert (await intake.judge(written("short", THIEF)))[1] is not None  # what anybody might have written


async def test_needless_length_is_not_learned_from_where_we_succeed(tmp_path: Path):
    precedents, tracker, ledger = Precedents(PoolConfig(max_length_ratio=4.0)), ValueTracker(TrackerConfig()), Ledger()
    async with Journal.open(tmp_path / "journal.db", 10) as journal:
        intake = intake_of(journal, tracker, precedents=precedents, ledger=ledger)

        async def scored(length: int) -> list[bool]:
            text = rollout("7" + "z" * (length - 1), FinishReason.LENGTH)
            sealed = seal(group(rollout("7"), text, ref=task_ref(7), origin=PEER.peer_id, sampling=LONG), PEER)
            received = Received(sender=PEER.peer_id, body=sealed.body, signature=sealed.signature)
            _, judged = await intake.judge(received)
            assert judged is not None
            return judged.experience.scored.tolist()

        assert await scored(1000) == [True, True]  # nothing to compare with
        for _ in range(4):
            precedents.add(own("0123456789", "0123456789"))
        assert await scored(1000) == [True, True]  # and no success that is ours
        for _ in range(50):
            tracker.observe(task(task_ref(7)), 1.0, VERSION)
        assert await scored(4 * 10 + 64) == [True, True]
        assert ledger.counters["overlong_rollouts"] == 0
        assert await scored(4 * 10 + 65) == [True, False]
        assert ledger.counters["overlong_rollouts"] == 1


async def test_only_own_successes_say_how_long_an_answer_is(tmp_path: Path):
    precedents = Precedents(PoolConfig())
    for _ in range(8):
        precedents.add(replace(own("x" * 400), own=False))
        precedents.add(replace(own("x" * 400), rewards=np.zeros(1, dtype=np.float32)))
        precedents.add(replace(own("x" * 400), scored=np.zeros(1, dtype=bool)))
    assert not precedents.overlong(task(), 1.0, [rollout("x" * 3000)]).any()
    for _ in range(7):
        precedents.add(own("7"))
    assert not precedents.overlong(task(), 1.0, [rollout("x" * 3000)]).any()
    precedents.add(own("7"))
    assert precedents.overlong(task(), 1.0, [rollout("x" * 3000), rollout("x" * 68), rollout("x" * 69)]).tolist() == [
        True,
        False,
        True,
    ]


def own(*texts: str) -> Experience:
    return Experience(
        id=GroupId("own"),
        group=group(*(rollout(text) for text in texts)),
        task=task(),
        rewards=np.ones(len(texts), dtype=np.float32),
        scored=np.ones(len(texts), dtype=bool),
        own=True,
        value=0.5,
        version=VERSION,
        arrived_at=0.0,
    )


async def test_ten_thousand_replays_are_refused_before_and_after_a_restart(tmp_path: Path):
    """Of what the journal has; what it has pruned is too old by then, or its texts are remembered."""
    replayed = [written(f"{i}", created_at=NOW - i) for i in range(20)]
    path = tmp_path / "journal.db"
    for life in range(2):
        precedents, ledger = Precedents(PoolConfig()), Ledger()
        async with Journal.open(path, 15) as journal:
            intake = intake_of(journal, ValueTracker(TrackerConfig()), precedents=precedents, ledger=ledger)
            if life == 0:
                for received in replayed:
                    _, judged = await intake.judge(received)
                    assert judged is not None
                    await journal.append(judged.signed, judged.experience.scores, own=False)
                    precedents.add(judged.experience)
            admitted = sum(ledger.admitted.values())
            for i in range(10_000 if life == 0 else 1000):
                await intake.judge(replayed[i % 20] if life == 0 else replayed[5 + i % 15])
            assert sum(ledger.admitted.values()) == admitted
            assert len(precedents._texts._digests) == (20 if life == 0 else 0)
            assert len(ledger.judgements) <= 1000


async def test_what_the_journal_pruned_is_too_old_after_a_restart(tmp_path: Path):
    old = written("old", created_at=NOW - 901)
    async with Journal.open(tmp_path / "journal.db", 1) as journal:
        findings, judged = await intake_of(journal, ValueTracker(TrackerConfig())).judge(old)
    assert (findings.verdict.reason, judged) == (Reason.STALE, None)


async def test_a_banned_origin_is_not_even_checked(tmp_path: Path):
    standing = Standing(lambda: 0.0)
    for _ in range(5):
        standing.strike(PEER.peer_id)
    async with Journal.open(tmp_path / "journal.db", 10) as journal:
        intake = intake_of(journal, ValueTracker(TrackerConfig()), banned=standing.banned)
        findings, judged = await intake.judge(written("text"))
    assert (findings.verdict.reason, judged) == (Reason.BANNED, None)
