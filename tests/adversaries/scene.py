"""The scene: a victim, honest peers and adversaries, each with a libp2p daemon, in one event loop on loopback."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from node.algorithms import PoolConfig, ReceiverBaseline, TrackerConfig
from node.experience import Experience
from node.intake import Intake
from node.journal import Journal
from node.ledger import Ledger
from node.loops import gather
from node.pool import RolloutPool
from node.precedents import Precedents
from node.rl.foreign import receiver_demand
from node.rl.tracker import ValueTracker
from swarm.limits import Limits
from swarm.net.addressbook import AddressBook
from swarm.net.directory import Directory, Participant, open_directory
from swarm.net.exchange import P2PExchange
from swarm.net.memory import MemoryLog
from swarm.net.p2pd import StackConfig
from swarm.net.peertable import PeerTable
from swarm.net.rates import Meter, Rate, Shares
from swarm.net.settings import P2PSettings
from swarm.net.stack import Stack, StreamHandler, open_stack
from swarm.net.standing import Standing
from swarm.net.streams import PULL, Publisher
from swarm.tasks.base import Judge
from swarm.types import Announcement, PeerId, PolicyVersion, Reason, SignedGroup
from swarm.wire.identity import Identity
from tests.adversaries.made import made
from tests.builders import MANIFEST, MEMBERSHIP, EchoJudge, announcement, task

DEADLINE_S = 60.0
HEARTBEAT_S = 1.0
LISTEN = ("/ip4/127.0.0.1/tcp/0",)
LIMITS = Limits()


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - other processes set no events
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None


# The victim -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Victim:
    """A node without a model: it gathers, judges, keeps and passes on."""

    identity: Identity
    exchange: P2PExchange
    journal: Journal
    pool: RolloutPool
    precedents: Precedents
    standing: Standing
    ledger: Ledger
    tracker: ValueTracker
    kept: list[Experience]
    """Everything of peers that came into the pool."""

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    async def works(self, indices: Iterable[int]) -> None:
        """As if it had sampled a group for each of these tasks, all of it right; there must be room in the pool."""
        for index in indices:
            signed = made(self.identity, index, str(index))
            await self.journal.append(signed, (1.0,), own=True)
            own = Experience(
                id=signed.id,
                group=signed.group,
                task=task(signed.group.task),
                rewards=np.ones(1, dtype=np.float32),
                scored=np.ones(1, dtype=bool),
                own=True,
                value=0.5,
                version=PolicyVersion(0),
                arrived_at=asyncio.get_running_loop().time(),
            )
            await self.pool.put_own(own)

    async def step(self) -> Counter[PeerId]:
        """Whose groups a step would be made of, by their origin, our own included."""
        clock = asyncio.get_running_loop().time
        config = ReceiverBaseline()
        drawn = await self.pool.draw(
            PolicyVersion(0), clock, lambda task: 0.25, lambda group, value: receiver_demand(group, value, config)
        )
        return Counter(experience.group.origin for experience in drawn)

    def admitted(self, origin: PeerId) -> int:
        """Groups, and kept."""
        return len(self.of(origin))

    def refused(self, origin: PeerId) -> Mapping[str, int]:
        """Reason -> groups."""
        return self.ledger.refusals_of(origin)

    def refused_for(self, origin: PeerId, reason: Reason) -> int:
        return self.ledger.refused[origin, reason]

    def of(self, origin: PeerId) -> Sequence[Experience]:
        return [experience for experience in self.kept if experience.group.origin == origin]


class _WatchedPool(RolloutPool):
    kept: list[Experience]

    def put_foreign(self, experience: Experience) -> None:
        self.kept.append(experience)
        super().put_foreign(experience)


@asynccontextmanager
async def victim_in(
    directory: Path, *seeds: str, judge: Judge | None = None, pool: PoolConfig | None = None, **settings: object
) -> AsyncIterator[Victim]:
    """Gathers as long as the context is open. `settings`: of its exchange."""
    identity = identity_in(directory)
    standing, ledger = Standing(time.monotonic), Ledger()
    config = pool or PoolConfig()
    precedents, tracker = Precedents(config), ValueTracker(TrackerConfig())
    async with Journal.open(directory / "journal.db", 10_000) as journal:
        exchange = P2PExchange(
            P2PSettings.model_validate(
                {"listen": LISTEN, "initial_peers": seeds, "heartbeat_s": HEARTBEAT_S, **settings}
            ),
            identity=identity,
            identity_path=directory / "identity.key",
            membership=MEMBERSHIP,
            log=journal,
            cursors=journal,
            limits=LIMITS,
            peers_file=directory / "peers.json",
            known=journal.known,
            standing=standing,
            rng=random.Random(0),
        )
        intake = Intake(
            me=identity.peer_id,
            manifest=MANIFEST,
            membership=MEMBERSHIP,
            limits=LIMITS,
            truncated="scored",
            judge=judge or EchoJudge(),
            journal=journal,
            tracker=tracker,
            version=lambda: PolicyVersion(0),
            ledger=ledger,
            precedents=precedents,
            banned=standing.banned,
            wall_clock=time.time,
        )
        waiting = _WatchedPool(
            config,
            random.Random(0),
            ledger.counters,
            standing,
            precedents,
            heard=lambda experience: tracker.hear(experience, PolicyVersion(0)),
        )
        waiting.kept = []
        async with exchange:
            await exchange.announce(announcement(identity, name="victim"))
            gathering = asyncio.create_task(gather(exchange, intake, journal, waiting))
            try:
                yield Victim(
                    identity=identity,
                    exchange=exchange,
                    journal=journal,
                    pool=waiting,
                    precedents=precedents,
                    standing=standing,
                    ledger=ledger,
                    tracker=tracker,
                    kept=waiting.kept,
                )
                assert not gathering.done(), "nothing that a peer does ends the loop"
            finally:
                gathering.cancel()
                await asyncio.wait({gathering})


# Everybody else -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peer:
    """In the directory as it should be; what it serves is another matter."""

    identity: Identity
    stack: Stack
    directory: Directory
    log: MemoryLog

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    def publish(self, *groups: SignedGroup) -> None:
        for group in groups:
            self.log.append(group)

    def work(self, indices: Iterable[int]) -> None:
        """What an honest node makes: a group for each of these tasks."""
        self.publish(*(made(self.identity, index) for index in indices))


@asynccontextmanager
async def peer_in(
    directory: Path,
    *seeds: str,
    serve: Mapping[str, StreamHandler] | None = None,
    says: Callable[[Announcement], Announcement] = lambda announcement: announcement,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Peer]:
    """`serve`: handlers by protocol, beside or instead of an honest publisher of its log. `says`: what it makes of its
    announcement. `clock`: unix seconds, for what it announces."""
    identity = identity_in(directory)
    log = MemoryLog(capacity=4096)
    plenty = Meter(Shares(Rate(groups=1e6, bytes=1e9), 1.0, time.monotonic()), time.monotonic)
    member = Participant(
        membership=MEMBERSHIP,
        identity=identity,
        heartbeat_s=HEARTBEAT_S,
        seeds=seeds,
        table=PeerTable(identity.peer_id, HEARTBEAT_S, time.monotonic),
        book=AddressBook(directory / "peers.json"),
        announcement=lambda: says(replace(announcement(identity, name=directory.name), addresses=())),
        renewed=asyncio.Event(),
        rng=random.Random(1),
        clock=clock,
    )
    config = StackConfig(identity_path=directory / "identity.key", listen=LISTEN)
    async with open_stack(config) as stack, open_directory(stack, member) as its_directory:
        handlers = {PULL: Publisher(MEMBERSHIP, log, LIMITS, plenty).serve} | dict(serve or {})
        for protocol, handler in handlers.items():
            await stack.serve(protocol, handler)
        running = asyncio.create_task(its_directory.run())
        try:
            yield Peer(identity=identity, stack=stack, directory=its_directory, log=log)
        finally:
            running.cancel()
            await asyncio.wait({running})


def identity_in(directory: Path) -> Identity:
    """Made there if there is none, so that a peer's groups can be made before it is."""
    directory.mkdir(exist_ok=True)
    return Identity.load_or_create(directory / "identity.key")
