"""From a peer's bytes to a group of somebody else's that we may learn from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from node.algorithms import Truncated
from node.experience import Experience, Judged, rewards_of
from node.journal import GroupJournal
from node.ledger import Ledger
from node.logs import ids
from node.precedents import Precedents
from node.rl.tracker import ValueTracker
from swarm.limits import Limits
from swarm.manifest import Manifest
from swarm.membership import Membership
from swarm.net.base import Received
from swarm.tasks.base import Judge
from swarm.types import PeerId, PolicyVersion
from swarm.verify import Findings, verify

log = logging.getLogger(__name__)


class Intake:
    """Judges what peers send, and writes down what came of it."""

    def __init__(
        self,
        *,
        me: PeerId,
        manifest: Manifest,
        membership: Membership,
        limits: Limits,
        truncated: Truncated,
        judge: Judge,
        journal: GroupJournal,
        tracker: ValueTracker,
        version: Callable[[], PolicyVersion],
        ledger: Ledger,
        precedents: Precedents,
        banned: Callable[[PeerId], bool],
        wall_clock: Callable[[], float],
    ) -> None:
        self._me = me
        self._manifest = manifest
        self._membership = membership
        self._limits = limits
        self._truncated: Truncated = truncated
        self._judge = judge
        self._journal = journal
        self._tracker = tracker
        self._version = version
        self._ledger = ledger
        self._precedents = precedents
        self._banned = banned
        self._wall_clock = wall_clock

    async def judge(self, received: Received) -> tuple[Findings, Judged | None]:
        """What was found, and what may be learned from if the group was admitted."""
        findings = await verify(
            received,
            me=self._me,
            judge=self._judge,
            manifest=self._manifest,
            membership=self._membership,
            limits=self._limits,
            known=self._journal.known,
            now=self._wall_clock(),
            banned=self._banned,
            copied=self._precedents.copied,
        )
        signed, task = findings.signed, findings.task
        self._ledger.verdict(findings.origin, signed.id if signed else None, findings.verdict)
        about = ids(peer=findings.origin, group=signed.id if signed else "", sender=received.sender)
        log.debug("%s %s", findings.verdict.reason.value, findings.verdict.detail, extra=about)
        if not findings.verdict.admitted or signed is None or task is None:
            return findings, None
        version = self._version()
        value = self._tracker.value(task, version)
        rewards, scored = rewards_of(signed.group.rollouts, findings.scores, self._truncated)
        overlong = self._precedents.overlong(task, value, signed.group.rollouts)
        self._ledger.counters["overlong_rollouts"] += int(np.count_nonzero(scored & overlong))
        scored &= ~overlong
        experience = Experience(
            id=signed.id,
            group=signed.group,
            task=task,
            rewards=rewards,
            scored=scored,
            own=False,
            value=value,
            version=version,
            arrived_at=asyncio.get_running_loop().time(),
        )
        return findings, Judged(signed=signed, experience=experience)
