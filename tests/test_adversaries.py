"""What becomes of peers that misbehave (tests/adversaries), while an honest one is followed. Real libp2p daemons.

Every test ends with the same words: all of the honest peer's groups arrived and were admitted, no callback had the
event loop for long, nothing that an adversary can make grow grew beyond its bound.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest

import swarm.net.following as following_module
import swarm.net.frames as frames_module
import swarm.net.p2pd as p2pd_module
import swarm.net.relay as relay_module
import swarm.net.relay_reader as relay_reader_module
from node.algorithms import PoolConfig
from swarm.net.following import QUEUE_GROUPS
from swarm.net.frames import end
from swarm.net.peertable import SOURCE_SHARE, VIEW
from swarm.net.relay import MAX_OFFERED, MAX_WISHES
from swarm.net.relaying import RELAY
from swarm.net.stack import StreamHandler
from swarm.net.standing import MAX_PEERS, Standing
from swarm.net.streams import MAX_STREAMS_PER_PEER, PULL
from swarm.types import PeerId, Reason, SignedGroup
from swarm.wire.identity import Identity
from tests.adversaries import (
    flood,
    forged_signature,
    free_rider,
    garbage,
    huge,
    logprobs,
    lying_relay,
    record_spam,
    replay,
    slow_loris,
    sybils,
    texts,
    wrong_prompts,
)
from tests.adversaries.made import made, raw
from tests.adversaries.scene import Peer, Victim, identity_in, peer_in, until, victim_in
from tests.builders import EchoJudge, task

pytestmark = pytest.mark.network

STRIKES = 5
"""In quick succession, and a peer is banned (`swarm.net.standing`)."""
GROUPS = 20
LOOP_S = 0.1
"""CPU time that one callback may take."""


@pytest.fixture(autouse=True)
def busiest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No callback of the event loop, ours or a peer's, takes more than LOOP_S of CPU time."""
    worst = 0.0
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        nonlocal worst
        started = time.thread_time()
        run(handle)
        worst = max(worst, time.thread_time() - started)

    gc.collect()
    gc.freeze()  # as the daemon does: what there is now is not looked at again
    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    yield
    gc.unfreeze()
    assert worst < LOOP_S


@pytest.fixture(autouse=True)
def clean(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No misbehaviour is an error of ours, and no daemon is left."""
    yield
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert not [child for child in psutil.Process().children(recursive=True) if child.name() == "p2pd"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that failed is tried again at once."""
    monkeypatch.setattr(following_module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(following_module, "LAST_RETRY_S", 0.1)


class Scene:
    """One victim, one honest peer, and whoever else comes."""

    def __init__(self, stack: AsyncExitStack, directory: Path, victim: Victim, honest: Peer) -> None:
        self.stack, self.directory, self.victim, self.honest = stack, directory, victim, honest

    def identity(self, name: str = "evil") -> Identity:
        return identity_in(self.directory / name)

    async def enter(
        self,
        *groups: SignedGroup,
        name: str = "evil",
        serve: Mapping[str, StreamHandler] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Peer:
        """An adversary with these groups in its log, or with its own manners."""
        seeds = self.victim.exchange.addresses
        peer = await self.stack.enter_async_context(peer_in(self.directory / name, *seeds, serve=serve, clock=clock))
        peer.publish(*groups)
        return peer

    @property
    def address(self) -> tuple[PeerId, Sequence[str]]:
        return self.victim.peer, self.victim.exchange.addresses

    async def hears_all(self, count: int = GROUPS) -> None:
        """`count` more of the honest peer's groups are made, arrive and are admitted; it is held nothing against."""
        before = self.victim.admitted(self.honest.peer)
        first = self.honest.log.head
        self.honest.work(range(first, first + count))
        await until(lambda: self.victim.admitted(self.honest.peer) == before + count, "the honest peer's groups")
        assert not self.victim.standing.banned(self.honest.peer)
        assert not self.victim.standing.excluded(self.honest.peer)

    async def excludes(self, peer: PeerId) -> None:
        await until(lambda: self.victim.standing.banned(peer), "the ban")
        await until(lambda: peer not in self.victim.exchange._following._table._followed, "the end of following")


@asynccontextmanager
async def scene(
    directory: Path, judge: EchoJudge | None = None, pool: PoolConfig | None = None, **settings: object
) -> AsyncIterator[Scene]:
    """`settings`: of the victim's exchange."""
    async with (
        victim_in(directory / "victim", judge=judge, pool=pool, **settings) as victim,
        peer_in(directory / "honest", *victim.exchange.addresses) as honest,
        AsyncExitStack() as stack,
    ):
        it = Scene(stack, directory, victim, honest)
        await it.hears_all()
        yield it
        await it.hears_all()
        assert_bounded(victim)


def assert_bounded(victim: Victim) -> None:
    exchange = victim.exchange
    assert exchange._following.queue.qsize() <= QUEUE_GROUPS
    assert len(exchange.peers()) <= VIEW
    wishes = exchange._relay_reader._wishes
    assert all(len(offers) <= MAX_OFFERED for offers in wishes._offers.values())
    assert len(wishes._wishes) <= MAX_WISHES
    assert len(victim.standing._offences) <= MAX_PEERS
    assert len(victim.ledger.judgements) <= 1000


# Groups that are refused ----------------------------------------------------------------------------------------------


Forge = Callable[[Identity], list[SignedGroup]]
FORGERIES: Mapping[str, tuple[tuple[Forge, Reason], ...]] = {
    "garbage and wrong signatures": (
        (garbage.bodies, Reason.MALFORMED),
        (lambda author: garbage.unsigned(), Reason.MALFORMED),
        (forged_signature.wrong, Reason.BAD_SIGNATURE),
    ),
    "questions of one's own": (
        (wrong_prompts.another_source, Reason.UNKNOWN_TASK),
        (wrong_prompts.another_config, Reason.UNKNOWN_TASK),
        (wrong_prompts.no_such_task, Reason.UNKNOWN_TASK),
    ),
    "forged log-probs and dates": (
        (logprobs.high, Reason.IMPLAUSIBLE),
        (logprobs.low, Reason.IMPLAUSIBLE),
        (lambda author: replay.from_tomorrow(author, 12), Reason.FROM_FUTURE),
    ),
}


@pytest.mark.parametrize("kinds", FORGERIES.values(), ids=FORGERIES)
async def test_whoever_sends_what_no_honest_peer_sends_is_banned_with_the_fifth_group(
    tmp_path: Path, kinds: tuple[tuple[Forge, Reason], ...]
) -> None:
    async with scene(tmp_path) as it:
        evils = [
            await it.enter(*forge(it.identity(f"evil {number}")), name=f"evil {number}")
            for number, (forge, _) in enumerate(kinds)
        ]
        for evil, (_, reason) in zip(evils, kinds, strict=True):
            await it.excludes(evil.peer)
            refused = it.victim.refused(evil.peer)
            assert set(refused) <= {reason, Reason.BANNED}
            # A ban is looked at after a group's form, and before what costs more.
            assert refused[reason] == STRIKES or (reason is Reason.MALFORMED and refused[reason] > STRIKES)
            assert (it.victim.admitted(evil.peer), it.victim.of(evil.peer)) == (0, [])


async def test_who_forges_an_origin_is_blamed_and_the_origin_is_not(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        evil = await it.enter(*forged_signature.in_the_name_of(it.honest.identity, it.identity()))
        await it.excludes(evil.peer)
        assert it.victim.refused_for(evil.peer, Reason.BAD_SIGNATURE) >= STRIKES
        assert it.victim.refused(it.honest.peer) == {}


async def test_replays_and_copies_are_kept_once_and_cost_nobody_but_their_time(tmp_path: Path) -> None:
    """Others' groups again and again; one's own with another date; somebody's long texts as one's own."""
    async with scene(tmp_path) as it:
        it.honest.publish(made(it.honest.identity, 800, *replay.prose(800)))
        await until(lambda: it.victim.admitted(it.honest.peer) == GROUPS + 1, "what is going to be stolen")
        theirs = [raw(entry.body, entry.signature) for entry in await it.honest.log.read(0, 100)]
        replaying = await it.enter(*replay.again(theirs, 10), name="replaying")
        thief = await it.enter(replay.stolen(it.identity("thief"), 800), name="thief")
        liar = await it.enter(*replay.redated(it.identity("liar"), 12), name="liar")
        victim = it.victim
        await until(lambda: victim.refused_for(it.honest.peer, Reason.DUPLICATE) >= 60, "replays")
        await until(lambda: victim.refused(thief.peer) == {Reason.COPIED: 1}, "the stolen group")
        await until(lambda: victim.refused(liar.peer) == {Reason.COPIED: 11}, "new dates")
        assert victim.admitted(liar.peer) == 1
        assert len({experience.id for experience in victim.kept}) == len(victim.kept) == GROUPS + 2
        assert not any(victim.standing.banned(evil.peer) for evil in (replaying, thief, liar))


async def test_a_flood_of_old_groups_is_refused_unread_and_crowds_out_nobody(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        evil = await it.enter(*replay.old(it.identity(), 64))
        await until(lambda: it.victim.refused_for(evil.peer, Reason.STALE) >= 64, "the first of it")
        evil.publish(*replay.old(evil.identity, 200))
        await it.hears_all()
        await until(lambda: it.victim.refused_for(evil.peer, Reason.STALE) >= 200, "more of it")
        assert it.victim.of(evil.peer) == []


async def test_a_question_a_truth_and_rewards_that_are_sent_along_change_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        evil = await it.enter(*(wrong_prompts.its_own_truth(it.identity(), index) for index in range(8)))
        await until(lambda: it.victim.admitted(evil.peer) == 8, "its groups")
        for experience in it.victim.of(evil.peer):
            assert experience.task == task(experience.group.task)
            assert experience.scores == [0.0]


# Texts that should not be learned from ----------------------------------------------------------------------------


async def test_of_texts_that_are_empty_or_too_long_for_what_they_say_nothing_is_learned_or_passed_on(
    tmp_path: Path,
) -> None:
    """Where the victim knows how long an answer is. The honest peer's answers are as long as its own."""
    config = PoolConfig(own_groups=12, own_capacity=12, foreign_groups=48, newcomer_share=1.0, peer_share=1.0)
    async with scene(tmp_path, texts.LenientJudge(), config) as it:
        victim = it.victim
        await victim.works(range(100, 112))
        kinds = {"empty": texts.empty, "repeated": texts.repeated, "poisoned": texts.poisoned}
        evils = [await it.enter(*make(it.identity(name), 10), name=name) for name, make in kinds.items()]
        for evil in evils:
            await until(lambda peer=evil.peer: victim.admitted(peer) == 10, "its groups")
            assert [experience.use for experience in victim.of(evil.peer)] == [0.0] * 10 or evil is evils[0]
        assert victim.ledger.counters["overlong_rollouts"] == 2 * 2 * 10
        drawn = await victim.step()
        assert drawn == {victim.peer: 12, it.honest.peer: GROUPS}
        shelved = victim.exchange._relay._shelf._shelved.values()
        assert {shelf.offer.origin for shelf in shelved} & {evil.peer for evil in evils[1:]} == set()


async def test_who_has_not_taught_us_anything_gets_a_newcomers_share_whatever_it_sends(tmp_path: Path) -> None:
    """Poison that is no longer than an answer may be, and answers without work: what bounds them is their share."""
    config = PoolConfig(own_groups=8, own_capacity=8, foreign_groups=16)
    async with scene(tmp_path, texts.LenientJudge(), config) as it:
        it.victim.standing.credit(it.honest.peer, Standing.TRUSTED + 1)
        poisoner = await it.enter(*texts.poisoned(it.identity("poisoner"), 20), name="poisoner")
        lazy = await it.enter(*texts.without_work(it.identity("lazy"), 20), name="lazy")
        liar = await it.enter(*logprobs.modest(it.identity("liar"), 20), name="liar")
        for evil in (poisoner, lazy, liar):
            await until(lambda peer=evil.peer: it.victim.admitted(peer) == 20, "its groups")
        await it.victim.works(range(100, 108))
        drawn = await it.victim.step()
        assert drawn[it.victim.peer] == 8
        assert sum(drawn[evil.peer] for evil in (poisoner, lazy, liar)) <= 4
        assert drawn[it.honest.peer] >= 4


# Many, and in the way -------------------------------------------------------------------------------------------------


async def test_fifty_identities_of_one_operator_share_what_a_newcomer_gets(tmp_path: Path) -> None:
    config = PoolConfig(own_groups=8, own_capacity=8, foreign_groups=16, foreign_capacity=200)
    async with scene(tmp_path, pool=config) as it:
        it.victim.standing.credit(it.honest.peer, Standing.TRUSTED + 1)
        authors = sybils.identities(50)
        operator = await it.enter(made(it.identity()))
        await until(lambda: it.victim.admitted(operator.peer) == 1, "being followed")
        operator.publish(*sybils.groups(authors, 2))
        await until(lambda: sum(it.victim.admitted(author.peer_id) for author in authors) == 100, "their groups")
        assert it.victim.pool.level.newcomers == config.foreign_capacity // 4, "they push out each other"
        await it.victim.works(range(100, 108))
        drawn = await it.victim.step()
        assert sum(drawn[author.peer_id] for author in authors) + drawn[operator.peer] <= 4
        assert drawn[it.honest.peer] >= 4


async def test_a_view_full_of_identities_that_are_nowhere_keeps_no_honest_peer_out(tmp_path: Path) -> None:
    """They are announced before the honest peer comes, boast, and are not where they say: each gets one try."""
    async with (
        victim_in(tmp_path / "victim") as victim,
        peer_in(tmp_path / "operator", *victim.exchange.addresses) as operator,
    ):
        announcing = asyncio.create_task(sybils.keep_announced(operator, sybils.identities(60)))
        await until(lambda: len(victim.exchange.peers()) > 40, "a crowd")
        async with peer_in(tmp_path / "honest", *victim.exchange.addresses) as honest:
            honest.work(range(GROUPS))
            await until(lambda: victim.admitted(honest.peer) == GROUPS, "the honest peer's groups")
        assert len(victim.exchange.peers()) <= SOURCE_SHARE + 2
        assert_bounded(victim)
        await end(announcing)


async def test_junk_in_the_directory_hides_nobody(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        spammer = await it.enter(name="spammer")
        known = it.victim.exchange._table.get(it.honest.peer)
        assert known is not None
        taken = await record_spam.spam(spammer, it.victim.peer, known, stores=300)
        assert taken == 0
        renewed = known.issued_at
        await until(lambda: _issued_at(it.victim, it.honest.peer) > renewed, "the honest peer's next heartbeat")
        now = it.victim.exchange._table.get(it.honest.peer)
        assert now is not None
        assert (now.addresses, now.head) == (known.addresses, known.head)
        assert len(it.victim.exchange.peers()) <= 2


def _issued_at(victim: Victim, peer: PeerId) -> float:
    announcement = victim.exchange._table.get(peer)
    return 0.0 if announcement is None else announcement.issued_at


async def test_who_lives_in_another_day_is_not_seen(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        liar = await it.enter(*(made(it.identity(), index) for index in range(5)), clock=lambda: time.time() + 86_400)
        second = _issued_at(it.victim, it.honest.peer) + 2.5
        await until(lambda: _issued_at(it.victim, it.honest.peer) > second, "some of the honest peer's heartbeats")
        assert it.victim.exchange._table.get(liar.peer) is None
        assert it.victim.admitted(liar.peer) == 0


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_streams_of_garbage_and_messages_too_large_are_cut_and_their_senders_given_up(tmp_path: Path) -> None:
    process = psutil.Process()
    async with scene(tmp_path) as it:
        before = process.memory_info().rss
        handlers = {
            "messages": garbage.messages,
            "noise": garbage.noise,
            "endless": huge.endless,
            "too large": huge.too_large,
            "bomb": huge.bomb,
            "disguised bomb": huge.disguised_bomb,
        }
        evils = [await it.enter(name=name, serve={PULL: handler}) for name, handler in handlers.items()]
        for evil in evils:
            # not only left alone for a while, as who is slow is: nobody says that by mistake
            await until(lambda peer=evil.peer: it.victim.standing.banned(peer), "the ban")
            assert it.victim.refused(evil.peer) == {}, "nothing of it came so far"
        assert process.memory_info().rss - before < 64 << 20


@pytest.mark.usefixtures("impatient")
async def test_the_slow_are_given_up_and_keep_no_place_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishers that drip or say nothing, and 60 half-begun streams: the honest peer still reads the victim's log."""
    monkeypatch.setattr(frames_module, "GRACE_S", 0.2)
    async with scene(tmp_path) as it:
        dripping = await it.enter(name="dripping", serve={PULL: slow_loris.drip})
        silent = await it.enter(name="silent", serve={PULL: slow_loris.say_nothing})
        writers = await slow_loris.besiege(dripping.stack, it.victim.peer, PULL, 60)
        await it.victim.works(range(100, 110))
        started = time.monotonic()
        brought = await free_rider.take(it.honest.stack, *it.address, streams=1, until=10)
        assert [len(entries) for entries in brought] == [10]
        assert time.monotonic() - started < 5
        assert len(it.victim.exchange._publisher._streams) <= 2 * MAX_STREAMS_PER_PEER
        await until(lambda: it.victim.standing.excluded(dripping.peer), "giving it up")
        assert not it.victim.standing.banned(dripping.peer), "slow is no offence"
        assert not it.victim.standing.excluded(silent.peer), "nor is having nothing to say"
        for writer in writers:
            writer.transport.abort()


async def test_who_takes_all_and_gives_nothing_gets_no_more_than_others_and_earns_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        await it.victim.works(range(100, 160))
        rider = await it.enter()
        greedy, modest = await asyncio.gather(
            free_rider.take(rider.stack, *it.address, streams=8, until=60),
            free_rider.take(it.honest.stack, *it.address, streams=1, until=60),
        )
        assert sum(bool(entries) for entries in greedy) <= MAX_STREAMS_PER_PEER
        assert [len(entries) for entries in modest] == [60]
        assert it.victim.standing.trust(rider.peer) == 0.0


# Too many of them -----------------------------------------------------------------------------------------------------


async def test_connections_that_nobody_uses_are_closed_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 120 identities, with room for 32. The honest peer keeps its own, and a newcomer gets one."""
    monkeypatch.setattr(p2pd_module, "GRACE_S", 1)
    async with scene(tmp_path, connections=32) as it:
        stack = it.victim.exchange._stack
        assert stack is not None
        before = (await stack.connections())[it.honest.peer]
        port = it.victim.exchange.addresses[0].split("/")[4]
        writers = await flood.connect("127.0.0.1", int(port), 120)
        assert len(await stack.connections()) > 100
        await it.hears_all()
        newcomer = await it.enter(made(it.identity("newcomer")), name="newcomer")
        await until(lambda: it.victim.admitted(newcomer.peer) == 1, "the newcomer's group")
        async with asyncio.timeout(30):
            while len(await stack.connections()) > 32:  # noqa: ASYNC110 - the daemon has no event for it
                await asyncio.sleep(0.5)
        assert (await stack.connections())[it.honest.peer] == before
        for writer in writers:
            writer.transport.abort()


async def test_who_opens_streams_without_end_is_hung_up_on_and_others_are_served(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        await it.victim.works(range(100, 110))
        stack = it.victim.exchange._stack
        assert stack is not None
        hung_up = list[PeerId]()
        hang_up = stack._hang_up

        async def noted(peer: PeerId) -> None:
            hung_up.append(peer)
            await hang_up(peer)

        stack._hang_up = noted  # type: ignore[method-assign]
        flooder = await it.enter(name="flooder")
        flooding = asyncio.create_task(flood.open_streams(flooder.stack, it.victim.peer, PULL, 400))
        await it.hears_all()
        brought = await free_rider.take(it.honest.stack, *it.address, streams=1, until=10)
        assert [len(entries) for entries in brought] == [10]
        await flooding
        assert set(hung_up) == {flooder.peer}
        assert len(it.victim.exchange._publisher._streams) <= 2 * MAX_STREAMS_PER_PEER


# Relays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_relay_that_sends_something_else_or_nothing_is_banned_and_others_have_the_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three offer what the honest peer is about to publish, before it does."""
    monkeypatch.setattr(relay_module, "ASK_S", 0.2)
    monkeypatch.setattr(relay_reader_module, "RECHECK_S", 0.1)
    async with scene(tmp_path) as it:
        theirs = [made(it.honest.identity, 300 + number) for number in range(40)]
        kinds = {
            "another body": lying_relay.of_other_bodies,
            "forgeries": lying_relay.of_forgeries,
            "nothing": lying_relay.of_nothing,
            "offers without end": lambda groups: lying_relay.flood(it.identity("somebody else")),
        }
        evils = [await it.enter(name=name, serve={RELAY: kind(theirs)}) for name, kind in kinds.items()]
        wishes = it.victim.exchange._relay_reader._wishes
        for evil in evils:
            await until(lambda peer=evil.peer: it.victim.standing.banned(peer), "the ban")
            assert len(wishes._offers.get(evil.peer, ())) <= MAX_OFFERED
        it.honest.publish(*theirs)
        await until(lambda: it.victim.admitted(it.honest.peer) == GROUPS + len(theirs), "all that was lied about")
        assert it.victim.refused(it.honest.peer) == {}


async def test_what_is_said_to_have_come_too_far_is_not_asked_for(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        third = Identity(bytes(range(1, 33)))
        far, near = [made(third, number) for number in range(10)], made(third, 50)
        handler = lying_relay.of_many_hops(far, near)
        relay = await it.enter(serve={RELAY: handler})
        await until(lambda: it.victim.admitted(third.peer_id) == 1, "the one that came near")
        assert [experience.id for experience in it.victim.of(third.peer_id)] == [near.id]
        assert not it.victim.standing.excluded(relay.peer)
