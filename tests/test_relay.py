"""Passing on: what is offered and asked for, by a clock that is moved by hand; relays and readers over real sockets;
chains of real libp2p nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import swarm.net.relay as relay_module
import swarm.net.relay_reader as relay_reader_module
import swarm.net.relaying as relaying_module
from swarm.errors import LimitError, NetworkError, WireError
from swarm.limits import Limits
from swarm.net.base import Received
from swarm.net.exchange import P2PExchange
from swarm.net.frames import read_frame, write_frame
from swarm.net.memory import MemoryLog
from swarm.net.rates import Meter, Rate, Shares
from swarm.net.relay import (
    ASK_S,
    FIRST_OFFERS,
    FIRST_S,
    HOLD_S,
    MAX_ASKED,
    MAX_CANDIDATES,
    MAX_OFFERED,
    MAX_WISHES,
    SHELF_BYTES,
    Rules,
    Shelf,
    Wishes,
)
from swarm.net.relay_reader import RelayReader
from swarm.net.relaying import Relay
from swarm.net.settings import P2PSettings
from swarm.types import GroupId, PeerId, SignedGroup
from swarm.wire.codec import decode_group, seal
from swarm.wire.identity import GROUP_DOMAIN, Identity, check_signature
from swarm.wire.relay import (
    MAX_OFFERS,
    MAX_WANTS,
    Offer,
    Relayed,
    RelayPull,
    decode_relay_request,
    decode_relay_response,
    decode_wants,
    encode_offers,
    encode_relay_request,
    encode_relayed,
    encode_wants,
)
from tests.builders import MANIFEST, MEMBERSHIP, NOW, announcement, group, identity, task_ref

ME, ORIGIN = identity(1).peer_id, identity(2)
B, C, D = (identity(number).peer_id for number in (3, 4, 5))
RULES = Rules(me=ME, max_hops=6, max_age_s=100.0, max_clock_skew_s=50.0)
LIMITS = Limits(max_group_bytes=10_000)
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def made(index: int = 0, created_at: float = NOW, author: Identity = ORIGIN) -> SignedGroup:
    return seal(group(ref=task_ref(index), origin=author.peer_id, created_at=created_at), author)


def received(signed: SignedGroup, hops: int = 0, sender: PeerId = B) -> Received:
    return Received(sender=sender, body=signed.body, signature=signed.signature, hops=hops)


def offer_of(signed: SignedGroup, hops: int = 1) -> Offer:
    return Offer(
        id=signed.id,
        origin=signed.group.origin,
        hops=hops,
        size=len(signed.body),
        created_at=signed.group.created_at,
        source=signed.group.task.source,
    )


# What is offered ------------------------------------------------------------------------------------------------------


def shelf_of(*groups: SignedGroup, rate: float = 1000.0) -> Shelf:
    shelf = Shelf(RULES, rate, 0.0)
    for signed in groups:
        shelf.add(received(signed), signed, 0.1, 0.0, NOW)
    return shelf


def test_a_useful_group_is_offered_with_one_hop_more() -> None:
    signed = made(7)
    shelf = Shelf(RULES, 1.0, 0.0)
    shelf.add(received(signed, hops=2), signed, 0.1, 0.0, NOW)
    assert shelf.after(0, C, NOW) == [offer_of(signed, hops=3)]
    shelved = shelf.get(signed.id)
    assert shelved is not None
    assert (shelved.received.body, shelved.received.signature) == (signed.body, signed.signature)


@pytest.mark.parametrize(
    ("hops", "use", "created_at", "author", "offered"),
    [
        (0, 0.1, NOW, ORIGIN, True),
        (5, 0.1, NOW, ORIGIN, True),
        (6, 0.1, NOW, ORIGIN, False),
        (0, 0.0, NOW, ORIGIN, False),
        (0, 0.1, NOW - 100, ORIGIN, True),
        (0, 0.1, NOW - 101, ORIGIN, False),
        (0, 0.1, NOW + 50, ORIGIN, True),
        (0, 0.1, NOW + 51, ORIGIN, False),
        (0, 0.1, NOW, identity(1), False),
    ],
)
def test_what_is_passed_on(hops: int, use: float, created_at: float, author: Identity, offered: bool) -> None:
    signed = made(0, created_at, author)
    shelf = Shelf(RULES, 1.0, 0.0)
    shelf.add(received(signed, hops), signed, use, 0.0, NOW)
    assert (shelf.get(signed.id) is not None) is offered


def test_the_best_are_passed_on_where_the_rate_does_not_allow_all() -> None:
    shelf = Shelf(RULES, 1.0, 0.0)
    groups = [made(index) for index in range(6)]
    for signed, use in zip(groups, (0.1, 0.2, 0.9, 0.3, 0.8, 0.1), strict=True):
        shelf.add(received(signed), signed, use, 0.0, NOW)
    assert [offer.id for offer in shelf.after(0, C, NOW)] == [groups[0].id]
    assert shelf.fill(0.25, NOW) == pytest.approx(0.75)
    for now in (1.0, 2.0, 3.0):
        shelf.fill(now, NOW)
    assert [offer.id for offer in shelf.after(1, C, NOW)] == [groups[i].id for i in (2, 4, 3)]
    for now in (4.0, 5.0):
        shelf.fill(now, NOW)
    assert shelf.fill(6.0, NOW) is None


def test_so_many_candidates_wait_and_the_least_useful_go() -> None:
    shelf = Shelf(RULES, 1.0, 0.0)
    signed = made(0)
    for number in range(2 * MAX_CANDIDATES):
        shelf.add(received(signed), signed, 1.0 + number % 7, 0.0, NOW)
    assert len(shelf._candidates) == MAX_CANDIDATES
    assert min(use for use, _, _ in shelf._candidates) == 4


def test_candidates_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.net.relay.CANDIDATE_BYTES", 1000)
    shelf = Shelf(RULES, 1.0, 0.0)
    shelf.add(received(made(0)), made(0), 0.1, 0.0, NOW)  # goes on at once, and takes the rate with it
    for number in range(1, 50):
        signed = replace(made(number), body=bytes(300))
        shelf.add(received(signed), signed, 0.01 * number, 0.0, NOW)
    assert [use for use, _, _ in shelf._candidates] == pytest.approx([0.47, 0.48, 0.49])
    assert shelf._candidate_bytes == 900


def test_where_there_is_more_than_anybody_can_take_only_what_is_outstanding_goes_on() -> None:
    groups = [made(index) for index in range(66)]
    shelf = Shelf(replace(RULES, outstanding=1 / 16), 1000.0, 0.0)
    for number, signed in enumerate(groups[:64]):
        shelf.add(received(signed), signed, 0.001 * (number % 16), 0.0, NOW, short=True)
    offered = {offer.id for offer in shelf.after(0, C, NOW)}
    assert {signed.id for signed in groups[31:64:16]} <= offered, "the best of each sixteen"
    assert len(offered & {signed.id for signed in groups[32:64]}) <= 4
    shelf.add(received(groups[64]), groups[64], 0.9, 0.0, NOW, short=True)
    assert shelf.get(groups[64].id)
    shelf.add(received(groups[65]), groups[65], 0.001, 0.0, NOW, short=False)
    assert shelf.get(groups[65].id), "where there is room, everything useful"


def test_where_all_are_alike_all_go_on() -> None:
    groups = [made(index) for index in range(20)]
    shelf = Shelf(RULES, 1000.0, 0.0)
    for signed in groups:
        shelf.add(received(signed), signed, 0.25, 0.0, NOW, short=True)
    assert [offer.id for offer in shelf.after(0, C, NOW)] == [signed.id for signed in groups[15:]]


def test_who_has_seen_little_does_not_know_what_is_outstanding() -> None:
    shelf = Shelf(replace(RULES, outstanding=1 / 4), 1000.0, 0.0)
    groups = [made(index) for index in range(5)]
    for signed, use in zip(groups, (0.1, 0.2, 0.9, 0.8, 0.85), strict=True):
        shelf.add(received(signed), signed, use, 0.0, NOW, short=True)
    assert [offer.id for offer in shelf.after(0, C, NOW)] == [groups[4].id], "the second best of five, by now"


def test_the_best_of_our_own_are_offered_beside_the_log() -> None:
    shelf = Shelf(replace(RULES, outstanding=1 / 4), 1000.0, 0.0)
    ours = [made(index, author=identity(1)) for index in range(6)]
    for signed, use in zip(ours, (0.1, 0.2, 0.1, 0.1, 0.9, 0.0), strict=True):
        shelf.made(received(signed, sender=ME), signed, use, 0.0, NOW)
    [offer] = shelf.after(0, C, NOW)
    assert (offer.id, offer.origin, offer.hops) == (ours[4].id, ME, 1)
    shelf.add(received(made(7)), made(7), 0.95, 0.0, NOW, short=True)
    ninth = made(8, author=identity(1))
    shelf.made(received(ninth, sender=ME), ninth, 0.5, 0.0, NOW)
    assert shelf.head == 2, "peers' and ours are measured alike"


def test_a_reader_that_comes_begins_with_what_is_new() -> None:
    shelf = Shelf(RULES, 1000.0, 0.0)
    assert shelf.start(0.0) == 0
    for index in range(3):
        signed = made(index)
        shelf.add(received(signed), signed, 0.5, 20.0 * index, NOW)
    assert [shelf.start(at) for at in (40.0, FIRST_S, FIRST_S + 1, FIRST_S + 21, FIRST_S + 41)] == [0, 0, 1, 2, 3]
    for index in range(3, FIRST_OFFERS + 10):
        signed = made(index)
        shelf.add(received(signed), signed, 0.5, 50.0, NOW)
    assert shelf.start(50.0) == 10


def test_what_a_peer_made_itself_is_asked_for_only_if_its_log_has_to_wait() -> None:
    wishes = Wishes(RULES, lambda peer: False)
    own, other = replace(offer_of(made(0)), origin=B), offer_of(made(1))
    for offer in (own, other):
        wishes.offered(B, offer)
    assert wishes.choose(B, 8, 0.0, NOW, log_waits=False) == [other]
    assert wishes.choose(B, 8, 0.0, NOW, log_waits=True) == [other, own]


def test_candidates_that_waited_too_long_are_not_passed_on() -> None:
    shelf = shelf_of(made(0), made(1), made(2), rate=1.0)
    assert shelf.fill(200.0, NOW + 200) is None
    assert shelf.head == 1
    assert shelf.after(0, C, NOW + 200) == []


def test_the_same_group_is_on_the_shelf_once() -> None:
    signed = made(0)
    shelf = shelf_of(signed, signed)
    assert len(shelf.after(0, C, NOW)) == 1


def test_neither_the_origin_nor_whoever_gave_it_is_offered_a_group() -> None:
    shelf = shelf_of(made(0))
    assert [len(shelf.after(0, reader, NOW)) for reader in (ORIGIN.peer_id, B, C)] == [0, 0, 1]


def test_nothing_stays_longer_than_its_time_by_either_clock() -> None:
    ahead, now = made(0, NOW + 50), made(1, NOW)
    shelf = shelf_of(ahead, now)
    assert [offer.id for offer in shelf.after(0, C, NOW + 101)] == [ahead.id]
    shelf.fill(99.0, NOW + 99)
    assert shelf.get(ahead.id)
    shelf.fill(101.0, NOW + 101)
    assert shelf.get(ahead.id) is None
    assert shelf.get(now.id) is None


def test_the_shelf_is_bounded_in_groups_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.net.relay.SHELF_GROUPS", 5)
    groups = [made(index) for index in range(8)]
    shelf = shelf_of(*groups)
    assert [offer.id for offer in shelf.after(0, C, NOW)] == [signed.id for signed in groups[3:]]
    monkeypatch.setattr("swarm.net.relay.SHELF_GROUPS", 500)
    large = [replace(signed, body=bytes(SHELF_BYTES // 3)) for signed in groups]
    shelf = shelf_of(*large)
    assert [offer.id for offer in shelf.after(0, C, NOW)] == [signed.id for signed in groups[5:]]


# What is asked for ----------------------------------------------------------------------------------------------------


def wishes_of(peer: PeerId, *offers: Offer, excluded: Callable[[PeerId], bool] = lambda _: False) -> Wishes:
    wishes = Wishes(RULES, excluded)
    for offer in offers:
        wishes.offered(peer, offer)
    return wishes


def chosen(wishes: Wishes, peer: PeerId, now: float = 0.0, wall: float = NOW, limit: int = 100) -> list[GroupId]:
    return [offer.id for offer in wishes.choose(peer, limit, now, wall)]


def test_the_newest_offers_are_asked_for_first() -> None:
    offers = [offer_of(made(index)) for index in range(5)]
    wishes = wishes_of(B, *offers)
    assert chosen(wishes, B, limit=2) == [offers[4].id, offers[3].id]
    assert chosen(wishes, C) == []


@pytest.mark.parametrize(
    ("offer", "wanted"),
    [
        (offer_of(made(), hops=6), True),
        (offer_of(made(), hops=7), False),
        (offer_of(made(created_at=NOW - 100)), True),
        (offer_of(made(created_at=NOW - 101)), False),
        (offer_of(made(created_at=NOW + 51)), False),
        (offer_of(made(author=identity(1))), False),
        (offer_of(made(author=identity(9))), False),
    ],
)
def test_what_is_wanted(offer: Offer, wanted: bool) -> None:
    wishes = wishes_of(B, offer, excluded=lambda peer: peer == identity(9).peer_id)
    assert bool(chosen(wishes, B)) is wanted


def test_a_group_is_asked_of_one_peer_at_a_time_and_of_the_next_when_it_does_not_come() -> None:
    offer = offer_of(made())
    wishes = wishes_of(B, offer)
    wishes.offered(C, offer)
    wishes.ask(B, offer.id, 0.0)
    assert chosen(wishes, C, ASK_S - 0.1) == []
    assert chosen(wishes, C, ASK_S) == [offer.id]
    assert chosen(wishes, B, ASK_S) == [], "it had its chance"
    wishes.ask(C, offer.id, ASK_S)
    assert wishes.came(C, offer.id, ASK_S + 1)
    assert not wishes.came(B, offer.id, ASK_S + 2), "late, and a duplicate"


def test_a_group_that_came_is_not_asked_for_until_the_journal_must_know() -> None:
    offer = offer_of(made())
    wishes = wishes_of(B, offer)
    wishes.came(C, offer.id, 0.0)
    assert chosen(wishes, B, HOLD_S - 0.1) == []
    assert chosen(wishes, B, HOLD_S) == [offer.id]


def test_a_peer_that_leaves_or_has_it_no_more_makes_way_at_once() -> None:
    for undo in (lambda w, o: w.left(B), lambda w, o: w.missing(B, o.id)):
        offer = offer_of(made())
        wishes = wishes_of(B, offer)
        wishes.offered(C, offer)
        wishes.ask(B, offer.id, 0.0)
        undo(wishes, offer)
        assert chosen(wishes, C) == [offer.id]
    wishes.ask(C, offer.id, 0.0)
    wishes.missing(B, offer.id)
    assert chosen(wishes, D) == []
    wishes.offered(D, offer)
    assert chosen(wishes, D) == [], "B's word is not C's"


def test_what_had_a_wrong_signature_is_asked_of_others() -> None:
    """Whoever puts a wrong signature under a good body does not keep the good one away."""
    offer, other = offer_of(made(0)), offer_of(made(1))
    wishes = wishes_of(C, offer, other)
    wishes.came(B, offer.id, 0.0)
    wishes.came(D, other.id, 0.0)
    wishes.refused(B)
    assert chosen(wishes, C) == [offer.id]


def test_a_flood_of_offers_pushes_out_only_its_own() -> None:
    honest = offer_of(made())
    wishes = wishes_of(C, honest)
    for number in range(5 * MAX_OFFERED):
        wishes.offered(B, replace(honest, id=GroupId(f"{number:064x}")))
    assert len(chosen(wishes, B, limit=10_000)) == MAX_OFFERED
    assert chosen(wishes, C) == [honest.id]
    for number in range(2 * MAX_WISHES):
        wishes.ask(B, GroupId(f"{number:064x}"), 0.0)
    assert len(wishes._wishes) == MAX_WISHES


# On the wire ----------------------------------------------------------------------------------------------------------


def test_what_is_said_is_understood() -> None:
    offers = tuple(offer_of(made(index)) for index in range(MAX_OFFERS))
    assert decode_relay_response(encode_offers(offers)) == offers
    ids = [offer.id for offer in offers]
    assert decode_wants(encode_wants(ids)) == tuple(ids)
    for asked in (RelayPull(swarm="swarm", membership=bytes(32)), RelayPull(swarm="", deflate=True)):
        assert decode_relay_request(encode_relay_request(asked)) == asked
    for body in (b"body", b""):
        relayed = decode_relay_response(encode_relayed(Relayed(id=ids[0], body=body, signature=b"")))
        assert isinstance(relayed, Relayed)
        assert (relayed.id, relayed.body, relayed.signature) == (ids[0], body, b"")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hops": 0}, WireError),
        ({"hops": 256}, WireError),
        ({"size": 0}, WireError),
        ({"size": 2**32}, WireError),
        ({"created_at": float("nan")}, WireError),
        ({"origin": "\x1b[2J"}, WireError),
        ({"origin": "o" * 129}, LimitError),
        ({"source": "s" * 129}, LimitError),
        ({"id": "ab"}, WireError),
        ({"id": "no hex"}, WireError),
    ],
)
def test_an_offer_is_bounded(change: dict[str, object], error: type[WireError]) -> None:
    with pytest.raises(error):
        encode_offers([replace(offer_of(made()), **change)])  # type: ignore[arg-type]


def test_messages_are_bounded() -> None:
    offer = offer_of(made())
    with pytest.raises(LimitError):
        encode_offers([offer] * (MAX_OFFERS + 1))
    with pytest.raises(WireError):
        encode_wants([])
    with pytest.raises(WireError):
        encode_wants([offer.id] * (MAX_WANTS + 1))
    both = encode_offers([offer]) + encode_relayed(Relayed(id=offer.id, body=b"x", signature=b""))
    with pytest.raises(WireError, match="one of them"):
        decode_relay_response(both)
    with pytest.raises(WireError):
        decode_relay_response(b"\xff" * 30)


# Streams --------------------------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """A reader's end: what it wishes, knows and got."""

    wishes: Wishes = field(default_factory=lambda: Wishes(RULES, lambda _: False))
    known: set[GroupId] = field(default_factory=set)
    meter: Meter = field(default_factory=lambda: meter())
    got: list[Received] = field(default_factory=list)
    error: Exception | None = None

    @property
    def reader(self) -> RelayReader:
        async def known(id: GroupId) -> bool:
            return id in self.known

        return RelayReader(
            me=ME,
            membership=MEMBERSHIP,
            limits=LIMITS,
            wishes=self.wishes,
            meter=self.meter,
            known=known,
            clock=time.monotonic,
            wall=lambda: NOW,
        )

    async def read(self, peer: PeerId, stream: Stream) -> None:
        try:
            async with aclosing(self.reader.read(peer, *stream)) as groups:
                async for new in groups:
                    self.got.append(new)
        except (WireError, NetworkError) as error:
            self.error = error
        finally:
            stream[1].transport.abort()


def meter(groups: float = 1e6) -> Meter:
    return Meter(Shares(Rate(groups=groups, bytes=1e9), 1.0, time.monotonic()), time.monotonic)


def relay_of(shelf: Shelf, stream_s: float = 60.0) -> Relay:
    return Relay(MEMBERSHIP, shelf, meter(), time.monotonic, lambda: NOW, stream_s)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[Stream, Stream]]:
    arrived: asyncio.Queue[Stream] = asyncio.Queue()
    async with await asyncio.start_unix_server(lambda *stream: arrived.put_nowait(stream), path):
        near, far = await asyncio.open_unix_connection(path), await arrived.get()
        try:
            yield near, far
        finally:
            for _, writer in (near, far):
                writer.transport.abort()


@asynccontextmanager
async def reading(path: Path, relay: Relay, reading: Reading, peer: PeerId = B) -> AsyncIterator[None]:
    """The reader reads from the relay as long as this is open."""
    async with connected(path) as (near, far):
        serving = asyncio.create_task(relay.serve(ME, *far))
        task = asyncio.create_task(reading.read(peer, near))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            far[0].feed_eof()
            async with asyncio.timeout(5):
                await serving


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other ends set no events
            await asyncio.sleep(0.01)


def monotonic_shelf(*groups: SignedGroup, rate: float = 1000.0) -> Shelf:
    shelf = Shelf(RULES, rate, time.monotonic())
    for signed in groups:
        shelf.add(received(signed, sender=C), signed, 0.1, time.monotonic(), NOW)
    return shelf


async def test_what_is_offered_is_asked_for_and_comes_then_the_news(tmp_path: Path) -> None:
    groups = [made(index) for index in range(20)]
    relay, end = relay_of(monotonic_shelf(*groups)), Reading()
    async with reading(tmp_path / "s", relay, end):
        await until(lambda: len(end.got) == 20)
        assert {(r.body, r.signature) for r in end.got} == {(g.body, g.signature) for g in groups}
        assert {(r.sender, r.hops) for r in end.got} == {(B, 1)}
        news = made(20)
        relay.add(received(news, hops=3, sender=C), news, 0.5)
        await until(lambda: len(end.got) == 21)
        assert (end.got[-1].body, end.got[-1].hops) == (news.body, 4)
    assert end.error is None


async def test_what_a_relay_made_itself_comes_from_it_too(tmp_path: Path) -> None:
    relay = relay_of(Shelf(replace(RULES, outstanding=1.0), 1000.0, time.monotonic()))
    end, own = Reading(), made(0)
    async with reading(tmp_path / "s", relay, end):
        relay.made(received(own, sender=C), own, 0.5)
        await until(lambda: len(end.got) == 1)
        assert (end.got[0].body, end.got[0].hops) == (own.body, 1)
    assert end.error is None


async def test_a_newcomer_is_offered_the_newest(tmp_path: Path) -> None:
    groups = [made(index) for index in range(FIRST_OFFERS + 10)]
    end = Reading()
    async with reading(tmp_path / "s", relay_of(monotonic_shelf(*groups), stream_s=0.5), end):
        await until(lambda: len(end.got) >= FIRST_OFFERS)
        await asyncio.sleep(0.6)  # the stream is over
        assert {r.body for r in end.got} == {g.body for g in groups[10:]}


async def test_what_is_known_is_not_asked_for(tmp_path: Path) -> None:
    groups = [made(index) for index in range(4)]
    end = Reading(known={groups[0].id, groups[3].id})
    end.wishes.came(C, groups[1].id, time.monotonic())
    async with reading(tmp_path / "s", relay_of(monotonic_shelf(*groups), stream_s=0.3), end):
        await asyncio.sleep(0.5)
    assert [r.body for r in end.got] == [groups[2].body]


async def test_two_relays_offer_and_one_sends(tmp_path: Path) -> None:
    groups = [made(index) for index in range(30)]
    end = Reading()
    async with (
        reading(tmp_path / "b", relay_of(monotonic_shelf(*groups)), end, B),
        reading(tmp_path / "d", relay_of(monotonic_shelf(*groups)), end, D),
    ):
        await until(lambda: len(end.got) >= 30)
        await asyncio.sleep(0.2)
    assert sorted(r.body for r in end.got) == sorted(g.body for g in groups)


async def test_no_more_is_asked_for_than_there_is_an_appetite_for(tmp_path: Path) -> None:
    end = Reading(meter=meter(groups=10))
    async with reading(tmp_path / "s", relay_of(monotonic_shelf(*[made(index) for index in range(30)])), end):
        await until(lambda: len(end.got) == 8)
        await asyncio.sleep(0.4)
        assert len(end.got) <= 16
        await until(lambda: len(end.got) == 30)


async def test_a_relay_has_its_own_limits_and_says_what_it_has_no_more(tmp_path: Path) -> None:
    async with connected(tmp_path / "s") as ((reader, writer), far):
        groups = [made(index) for index in range(2)]
        serving = asyncio.create_task(relay_of(monotonic_shelf(*groups), stream_s=0.5).serve(ME, *far))
        await write_frame(writer, encode_relay_request(RelayPull(swarm=MANIFEST.id)))
        offers = decode_relay_response(await read_frame(reader, 20_000, 5))
        assert offers == tuple(offer_of(signed) for signed in groups)
        await write_frame(writer, encode_wants([GroupId("00" * 32), groups[0].id]))
        gone, here = [decode_relay_response(await read_frame(reader, 20_000, 5)) for _ in range(2)]
        assert isinstance(gone, Relayed)
        assert isinstance(here, Relayed)
        assert (gone.body, here.body) == (b"", groups[0].body)
        assert await read_frame(reader, 20_000, 5) == b""
        await serving


@pytest.mark.parametrize(
    "frames",
    [
        [encode_relay_request(RelayPull(swarm="another"))],
        [b"\xff" * 40],
        [bytes(5000)],
        [encode_relay_request(RelayPull(swarm=MANIFEST.id)), b"\xff" * 40],
        [encode_relay_request(RelayPull(swarm=MANIFEST.id)), *[encode_wants([GroupId("00" * 32)] * MAX_WANTS)] * 20],
    ],
)
async def test_readers_that_are_none_are_left(tmp_path: Path, frames: list[bytes]) -> None:
    async with connected(tmp_path / "s") as ((_, writer), far):
        for frame in frames:
            await write_frame(writer, frame)
        async with asyncio.timeout(5):
            await relay_of(monotonic_shelf()).serve(ME, *far)


async def test_a_want_that_waited_too_long_is_answered_with_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaying_module, "WANT_S", -1.0)
    groups = [made(index) for index in range(3)]
    end = Reading()
    async with reading(tmp_path / "s", relay_of(monotonic_shelf(*groups), stream_s=0.3), end):
        await asyncio.sleep(0.5)
    assert not end.got
    assert not end.wishes._wishes, "free to be asked of others"


async def liar(stream: Stream, *answers: bytes) -> None:
    """A relay that says all that, whatever it is asked for, and waits."""
    reader, writer = stream
    await read_frame(reader, 4096, 5)
    for answer in answers:
        await write_frame(writer, answer)
    await reader.read()


async def told(path: Path, end: Reading, *answers: bytes) -> None:
    async with connected(path) as (near, far):
        lying = asyncio.create_task(liar(far, *answers))
        async with asyncio.timeout(5):
            await end.read(B, near)
        lying.cancel()
        await asyncio.wait({lying})


def sent(signed: SignedGroup, **change: object) -> bytes:
    relayed = Relayed(id=signed.id, body=signed.body, signature=signed.signature)
    return encode_relayed(replace(relayed, **change))  # type: ignore[arg-type]


HONEST, OTHER = made(1), made(2)  # of one size


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([sent(HONEST)], "not asked for"),
        ([encode_offers([offer_of(HONEST)]), sent(OTHER)], "not asked for"),
        ([b"\xff" * 20], "no RelayResponse"),
        ([bytes(20_000)], "at most"),
        ([encode_offers([replace(offer_of(HONEST), hops=6)]), sent(HONEST), sent(HONEST)], "not asked for"),
    ],
)
async def test_what_no_relay_may_say(tmp_path: Path, answers: list[bytes], words: str) -> None:
    end = Reading()
    await told(tmp_path / "s", end, *answers)
    assert isinstance(end.error, WireError)
    assert words in str(end.error)


@pytest.mark.parametrize(
    "answer",
    [sent(OTHER, id=HONEST.id), sent(HONEST, body=HONEST.body + b"x"), sent(HONEST, body=bytes(10_100))],
)
async def test_a_body_that_is_not_what_was_offered_is_a_lie(tmp_path: Path, answer: bytes) -> None:
    end = Reading()
    async with connected(tmp_path / "s") as (near, (reader, writer)):
        task = asyncio.create_task(end.read(B, near))
        await read_frame(reader, 4096, 5)
        await write_frame(writer, encode_offers([offer_of(HONEST)]))
        assert decode_wants(await read_frame(reader, 4096, 5)) == (HONEST.id,)
        await write_frame(writer, answer)
        async with asyncio.timeout(5):
            await task
    assert isinstance(end.error, WireError)
    assert not end.got
    end.wishes.offered(C, offer_of(HONEST))
    assert chosen(end.wishes, C, time.monotonic()) == [HONEST.id], "asked of somebody else at once"


async def test_whoever_offers_and_sends_nothing_earns_a_strike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the groups come from somebody else."""
    for module, name in ((relay_module, "ASK_S"), (relay_reader_module, "RECHECK_S")):
        monkeypatch.setattr(module, name, 0.1)
    end = Reading()
    await told(tmp_path / "s", end, encode_offers([offer_of(HONEST)]))
    assert isinstance(end.error, WireError)
    assert "offered and not sent" in str(end.error)
    async with reading(tmp_path / "c", relay_of(monotonic_shelf(HONEST)), end, D):
        await until(lambda: [r.sender for r in end.got] == [D])


async def test_one_that_is_only_slow_earns_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends something in time; the rest may come late."""
    for module, name in ((relay_module, "ASK_S"), (relay_reader_module, "RECHECK_S")):
        monkeypatch.setattr(module, name, 0.2)
    end = Reading()
    async with connected(tmp_path / "s") as (near, (reader, writer)):
        task = asyncio.create_task(end.read(B, near))
        await read_frame(reader, 4096, 5)
        await write_frame(writer, encode_offers([offer_of(HONEST), offer_of(OTHER)]))
        assert set(decode_wants(await read_frame(reader, 4096, 5))) == {HONEST.id, OTHER.id}
        await asyncio.sleep(0.05)
        await write_frame(writer, sent(HONEST))
        await asyncio.sleep(0.4)
        await write_frame(writer, sent(OTHER))
        await write_frame(writer, b"")
        await task
    assert end.error is None
    assert [r.body for r in end.got] == [HONEST.body, OTHER.body]


async def test_a_flood_of_offers_is_read_at_its_own_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_reader_module, "OFFERS_PER_S", 64.0)
    end = Reading(meter=meter(groups=1e-9))
    offers = encode_offers([offer_of(made(index)) for index in range(MAX_OFFERS)])
    heard = []
    monkeypatch.setattr(end.wishes, "offered", lambda peer, offer: heard.append(offer))
    async with connected(tmp_path / "s") as (near, far):
        lying = asyncio.create_task(liar(far, *[offers] * 100))
        task = asyncio.create_task(end.read(B, near))
        await asyncio.sleep(0.5)
        assert MAX_OFFERS <= len(heard) <= 3 * MAX_OFFERS
        for each in (lying, task):
            each.cancel()
        await asyncio.wait({lying, task})


async def test_only_so_much_is_asked_of_one_relay_at_a_time(tmp_path: Path) -> None:
    end = Reading()
    async with connected(tmp_path / "s") as (near, (reader, writer)):
        task = asyncio.create_task(end.read(B, near))
        await read_frame(reader, 4096, 5)
        await write_frame(writer, encode_offers([offer_of(made(index)) for index in range(MAX_OFFERS)]))
        asked: list[GroupId] = []
        while len(asked) < MAX_ASKED:
            asked += decode_wants(await read_frame(reader, 4096, 5))
        with pytest.raises(NetworkError, match="in time"):
            await read_frame(reader, 4096, 0.2)
        assert len(set(asked)) == MAX_ASKED
        task.cancel()
        await asyncio.wait({task})


# Real nodes -----------------------------------------------------------------------------------------------------------


class NoCursors:
    def cursor(self, peer: PeerId) -> tuple[bytes, int]:
        return b"", 0

    def set_cursor(self, peer: PeerId, epoch: bytes, cursor: int) -> None: ...


class Node:
    """Receives, admits what is signed and new, thanks for it. `shuns`: peers that it never has a stream with."""

    def __init__(self, exchange: P2PExchange, identity: Identity, log: MemoryLog) -> None:
        self.exchange, self.identity, self.log = exchange, identity, log
        self.got: list[Received] = []
        self.known: set[GroupId] = set()
        self.shuns: set[PeerId] = set()

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    async def live(self) -> None:
        async for new in self.exchange.receive():
            signed = decode_group(new.body, new.signature, Limits())
            check_signature(signed.group.origin, GROUP_DOMAIN, new.body, new.signature)
            self.got.append(new)
            self.known.add(signed.id)
            self.exchange.thank(new, signed, use=0.25)

    def publish(self, index: int, age: float = 0.0) -> None:
        self.log.append(made(index, time.time() - age, self.identity))

    def indices(self) -> list[int]:
        return [decode_group(r.body, r.signature, Limits()).group.task.index for r in self.got]


@asynccontextmanager
async def node(directory: Path, *peers: str, shuns: tuple[Node, ...] = (), **settings: object) -> AsyncIterator[Node]:
    directory.mkdir()  # noqa: ASYNC240 - a test has nothing else to do
    author = Identity.load_or_create(directory / "identity.key")
    log = MemoryLog()

    async def known(id: GroupId) -> bool:
        return id in it.known

    exchange = P2PExchange(
        P2PSettings.model_validate(
            {"listen": ("/ip4/127.0.0.1/tcp/0",), "initial_peers": peers, "heartbeat_s": 1.0, **settings}
        ),
        identity=author,
        identity_path=directory / "identity.key",
        membership=MEMBERSHIP,
        log=log,
        cursors=NoCursors(),
        limits=Limits(),
        peers_file=directory / "peers.json",
        known=known,
    )
    it = Node(exchange, author, log)
    for other in shuns:
        exchange._standing.rest(other.peer, 3600)
    async with exchange:
        await exchange.announce(replace(announcement(author, name=directory.name), addresses=()))
        task = asyncio.create_task(it.live())
        try:
            yield it
        finally:
            task.cancel()
            await asyncio.wait({task})


@pytest.mark.network
async def test_who_cannot_reach_the_origin_gets_its_groups_from_others_once(tmp_path: Path) -> None:
    """A - B - C and A - D - C; C and A never have a stream. A rest is no ban: A's groups are welcome from others."""
    async with (
        node(tmp_path / "a", relay_groups=True) as a,
        node(tmp_path / "b", *a.exchange.addresses) as b,
        node(tmp_path / "d", *a.exchange.addresses) as d,
        node(tmp_path / "c", *b.exchange.addresses, *d.exchange.addresses, shuns=(a,)) as c,
    ):
        for index in range(5):
            a.publish(index)
        await until(lambda: sorted(c.indices()) == [0, 1, 2, 3, 4], 30)
        assert sorted(b.indices()) == sorted(d.indices()) == [0, 1, 2, 3, 4]
        assert {r.sender for r in c.got} <= {b.peer, d.peer}
        assert {r.hops for r in c.got} == {1}
        started = time.monotonic()
        a.publish(5)
        await until(lambda: 5 in c.indices(), 20)
        assert time.monotonic() - started < 5
        a.publish(6, age=Limits().max_age_s / 2 + 1)
        a.publish(7)
        await until(lambda: 7 in c.indices(), 20)
        await until(lambda: 6 in b.indices(), 20)
        assert sorted(c.indices()) == [0, 1, 2, 3, 4, 5, 7], "once each, and nothing old"


@pytest.mark.network
async def test_the_chain_ends_where_the_hops_do(tmp_path: Path) -> None:
    """A - B - C - D in a line. D takes what one has passed on; C is the second."""
    async with (
        node(tmp_path / "a") as a,
        node(tmp_path / "b", *a.exchange.addresses) as b,
        node(tmp_path / "c", *b.exchange.addresses, shuns=(a,)) as c,
        node(tmp_path / "d", *c.exchange.addresses, shuns=(a, b)) as d,
        node(tmp_path / "e", *c.exchange.addresses, shuns=(a, b, d), relay_max_hops=1) as e,
        node(tmp_path / "f", *c.exchange.addresses, shuns=(a, b, d), relay_groups=False) as f,
    ):
        c.publish(9)
        a.publish(1)
        await until(lambda: 1 in c.indices() and 1 in d.indices(), 30)
        [to_d] = [r for r in d.got if r.sender == c.peer and r.hops]
        assert to_d.hops == 2
        await until(lambda: 9 in e.indices() and 9 in f.indices(), 20)
        assert e.indices() == f.indices() == [9]
