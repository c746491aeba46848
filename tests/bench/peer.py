"""A node without a model: real identity, journal, judge's process, verdict, pool and libp2p exchange, on loopback."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from node.algorithms import PoolConfig, TrackerConfig
from node.experience import Experience
from node.intake import Intake
from node.journal import Journal
from node.ledger import Ledger
from node.pool import RolloutPool
from node.precedents import Precedents
from node.rl.tracker import ValueTracker
from swarm.limits import Limits
from swarm.manifest import Manifest
from swarm.membership import Membership
from swarm.net.base import GroupLog
from swarm.net.exchange import P2PExchange
from swarm.net.settings import P2PSettings
from swarm.net.standing import Standing
from swarm.tasks.base import SourceInfo, SourceSpec, held_out
from swarm.tasks.judge import ProcessJudge
from swarm.types import Announcement, PolicyVersion, RolloutGroup, TaskRef
from swarm.wire.identity import Identity
from tests.bench.texts import make_group

SPEC = SourceSpec(type="reasoning_gym", name="spell_backward")
LISTEN = ("/ip4/127.0.0.1/tcp/0",)
UNLIMITED = {
    "upload_mbit": 1e6,
    "upload_groups_per_s": 1e6,
    "download_mbit": 1e6,
    "download_groups_per_s": 1e6,
    "peer_share": 1.0,
}
"""Of `[exchange]`: every limit on transfer lifted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What a peer is made from."""

    intake: type[Intake] = Intake
    pool: type[RolloutPool] = RolloutPool
    pool_config: PoolConfig = field(default_factory=PoolConfig)
    settings: dict[str, float] | None = None
    """Of `[exchange]`, over the defaults."""
    log: Callable[[Journal], GroupLog] | None = None
    """What is published instead of the journal."""
    max_groups: int = 20_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peer:
    identity: Identity
    manifest: Manifest
    membership: Membership
    judge: ProcessJudge
    journal: Journal
    intake: Intake
    pool: RolloutPool
    exchange: P2PExchange
    ledger: Ledger
    tracker: ValueTracker

    @property
    def source(self) -> SourceInfo:
        return self.judge.sources[0]

    def announcement(self, head: int) -> Announcement:
        return Announcement(
            swarm=self.manifest.id,
            peer=self.identity.peer_id,
            addresses=(),
            epoch=self.journal.epoch,
            head=head,
            name="bench",
            model="none",
            tokenizer="none",
            issued_at=time.time(),
        )

    async def refs(self, seed: int) -> AsyncIterator[TaskRef]:
        """Tasks that are not held out, one after the other."""
        for index in range(1 << 30):
            source = self.source
            ref = TaskRef(source=source.name, version=source.version, config=source.config, seed=seed, index=index)
            if not held_out((await self.judge.task(ref)).prompt):
                yield ref

    def group(self, rng: random.Random, ref: TaskRef, rollouts: int, tokens: int) -> RolloutGroup:
        """Complete now."""
        group = make_group(
            rng, origin=self.identity.peer_id, swarm=self.manifest.id, task=ref, rollouts=rollouts, tokens=tokens
        )
        return replace(group, created_at=time.time())


@asynccontextmanager
async def open_peer(directory: Path, *initial_peers: str, parts: Parts | None = None) -> AsyncIterator[Peer]:
    parts = Parts() if parts is None else parts
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else is there to be held up
    async with AsyncExitStack() as stack:
        identity = Identity.load_or_create(directory / "identity.key")
        journal = await stack.enter_async_context(Journal.open(directory / "journal.sqlite", parts.max_groups))
        judge = await stack.enter_async_context(ProcessJudge([SPEC]))
        manifest = Manifest.of("bench", judge.sources)
        membership = Membership(swarm=manifest.id)
        standing, ledger, tracker = Standing(time.monotonic), Ledger(), ValueTracker(TrackerConfig())
        precedents = Precedents(parts.pool_config)

        def heard(experience: Experience) -> None:
            ledger.counters["own_groups"] += experience.own

        intake = parts.intake(
            me=identity.peer_id,
            manifest=manifest,
            membership=membership,
            limits=Limits(),
            truncated="scored",
            judge=judge,
            journal=journal,
            tracker=tracker,
            version=lambda: PolicyVersion(0),
            ledger=ledger,
            precedents=precedents,
            banned=standing.banned,
            wall_clock=time.time,
        )
        pool = parts.pool(parts.pool_config, random.Random(0), ledger.counters, standing, precedents, heard=heard)
        settings = P2PSettings.model_validate(
            {"listen": LISTEN, "initial_peers": initial_peers, "heartbeat_s": 2.0, **(parts.settings or {})}
        )
        exchange = P2PExchange(
            settings,
            identity=identity,
            identity_path=directory / "identity.key",
            membership=membership,
            log=parts.log(journal) if parts.log else journal,
            cursors=journal,
            limits=Limits(),
            peers_file=directory / "peers.json",
            known=journal.known,
            standing=standing,
        )
        await stack.enter_async_context(exchange)
        yield Peer(
            identity=identity,
            manifest=manifest,
            membership=membership,
            judge=judge,
            journal=journal,
            intake=intake,
            pool=pool,
            exchange=exchange,
            ledger=ledger,
            tracker=tracker,
        )
