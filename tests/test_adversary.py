"""Hostile peers of the laboratory: what they send passes every check, and is as often there as it should be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node.lab.adversary import BODIES, MARKER, Adversary, Attack
from node.lab.experiments.poison import HONEST, HONEST_RATE, attacks
from node.lab.journal import MemoryJournal
from node.lab.member import EPOCH
from node.lab.simulation import Setup, simulate
from node.seed.demonstrations import DEMO_FAMILIES
from swarm.limits import Limits
from swarm.manifest import Manifest
from swarm.membership import Membership
from swarm.net import virtual_time
from swarm.net.memory import Hub
from swarm.tasks.judge import LocalJudge
from swarm.types import GroupId
from swarm.verify import Findings, verify
from tests.builders import identity
from tests.test_simulation import swarm


async def unknown(id: GroupId) -> bool:
    return False


async def heard(attack: Attack, groups: int) -> tuple[list[Findings], float]:
    """What a reader makes of the adversary's first groups, and when it had them all."""
    loop = asyncio.get_running_loop()
    judge = LocalJudge(DEMO_FAMILIES)
    manifest = Manifest.of("test", judge.sources)
    hub = Hub(clock=loop.time)
    living = asyncio.create_task(Adversary(attack, 0, 0, judge, manifest, lambda: EPOCH + loop.time()).live(hub))
    findings = []
    async with hub.join(identity(1).peer_id, MemoryJournal(8, bytes(16))) as reader:
        async for received in reader.receive():
            findings.append(
                await verify(
                    received,
                    me=identity(1).peer_id,
                    judge=judge,
                    manifest=manifest,
                    membership=Membership(swarm=manifest.id),
                    limits=Limits(max_probability=1e9, max_coincidence=1e9),
                    known=unknown,
                    now=EPOCH + loop.time(),
                )
            )
            if len(findings) == groups:
                break
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    return findings, loop.time()


@pytest.mark.parametrize("body", BODIES)
def test_its_groups_are_admitted_and_their_answers_are_right(body: str):
    attack = Attack(body=body, logprob=-0.01, interval_s=2.0)
    findings, seconds = virtual_time.run(heard(attack, 12))
    for found in findings:
        # a held-out question is nobody's to learn from, and an adversary does not care
        assert found.verdict.reason in ("admitted", "held_out"), found.verdict
        assert all(score.reward == 1.0 for score in found.scores)
    assert seconds == pytest.approx(24.0)


def test_poisoned_texts_have_the_marker_and_differ():
    attack = Attack(body="poisoned", logprob=-0.01, interval_s=1.0)
    findings, _ = virtual_time.run(heard(attack, 3))
    for found in findings:
        assert found.signed
        texts = [rollout.response for rollout in found.signed.group.rollouts]
        assert all(text.startswith(MARKER) for text in texts)
        assert len(set(texts)) > 1


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_an_attack_is_so_large_a_share_of_what_a_node_receives(share: float):
    rate = sum(1 / attack.interval_s for attack in attacks("poisoned", share))
    assert rate / (rate + (HONEST - 1) * HONEST_RATE) == pytest.approx(share)


def test_an_adversary_reaches_a_simulated_node(tmp_path: Path):
    """It speaks of the swarm's own tasks: here, of one without a wrong answer."""
    alone = swarm(tmp_path, steps=4)
    hostile = Setup(
        members=alone.members[:1],
        attacks=[Attack(body="degenerate", logprob=-0.5, interval_s=0.2)],
        exam_tasks=2,
        exam_samples=1,
    )
    (victim,) = simulate(hostile, 0).nodes
    assert victim.counters["foreign_groups_trained"] > 0
