"""The benchmarks of the exchange measure what they say. No time is asserted."""

from __future__ import annotations

import math
import random
from dataclasses import fields

import pytest

from swarm.limits import Limits
from swarm.net.memory import MemoryLog
from swarm.wire.codec import decode_group, encode_group
from tests.bench import exchange, genrl, ids, latency, slow_peer, slow_virtual, throughput, wire
from tests.bench.publisher import AHEAD, Ahead
from tests.bench.rounds import ROLLOUTS, Round
from tests.bench.statistics import Spread, spread
from tests.bench.texts import CUTS, KINDS, make_group
from tests.builders import MANIFEST, identity, signed, task_ref


def group(kind: str = "words", cut: str = "4 bytes", *, with_ids: bool = False, rollouts: int = 2):
    return make_group(
        random.Random(3),
        origin=identity().peer_id,
        swarm=MANIFEST.id,
        task=task_ref(),
        rollouts=rollouts,
        tokens=32,
        kind=kind,
        cut=cut,
        ids=with_ids,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", CUTS)
def test_tokens_of_every_kind_cover_their_text_and_survive_the_wire(kind: str, cut: str):
    made = group(kind, cut, with_ids=True)
    body = encode_group(made)
    read = decode_group(body, bytes(64), Limits()).group
    for rollout, again in zip(made.rollouts, read.rollouts, strict=True):
        (turn,), (other,) = rollout.turns, again.turns
        assert turn.sampled is not None
        assert other.sampled is not None
        assert turn.text == other.text
        assert len(turn.sampled) == rollout.num_sampled == 32
        assert turn.sampled.byte_lengths.sum() == len(turn.text.encode())
        assert other.sampled.ids is not None
        assert (other.sampled.ids == turn.sampled.ids).all()
    assert made.rollouts[0].response != made.rollouts[1].response


def test_what_a_token_costs_is_the_sum_of_its_parts():
    bare, with_ids = [group(rollouts=8)] * 3, [group(rollouts=8, with_ids=True)] * 3
    found = wire.costs(bare, with_ids)
    assert (found.text, found.logprobs, found.lengths) == (4.0, 2.0, 1.0)
    assert found.text + found.logprobs + found.lengths + found.rest == pytest.approx(found.plain)
    assert found.plain == (4 + len(wire.message_of(bare[0]))) / (8 * 32)
    assert 0 < found.packed < found.first < found.plain
    assert found.ids > 0


@pytest.mark.parametrize(("value", "size"), [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3)])
def test_numbers_are_as_long_as_protobuf_writes_them(value: int, size: int):
    assert wire.varint_bytes(value) == size


def test_the_wire_table_has_a_line_for_every_text_tokenization_and_size():
    lines = wire.report(tokens=8, groups=2).splitlines()
    assert len(lines) == 2 + len(KINDS) * len(CUTS) * 2
    assert {line.count("|") for line in lines} == {len(fields(wire.Cost)) + 4}


def test_ids_are_found_where_the_tokenizer_would_not_have_written_them():
    found = ids.measure("mixed", 0.1, turns=8, tokens=64)
    assert found.turns + found.cut == 1.0
    assert found.canonical < found.turns


def test_the_99th_percentile_is_a_value_that_was_seen():
    assert spread(range(1, 201)) == Spread(median=100.5, p99=198, most=200, count=200)
    assert spread([5.0]) == Spread(5.0, 5.0, 5.0, 1)


@pytest.mark.parametrize(("median", "p99", "said"), [(100, 500, "met"), (101, 500, "MISSED"), (100, 501, "MISSED")])
def test_a_latency_meets_its_target_or_not(median: float, p99: float, said: str):
    assert exchange.verdict(Spread(median, p99, 900.0, 10)).endswith(f": {said}")


def test_rates_are_those_of_the_rounds_after_the_first_lot(monkeypatch: pytest.MonkeyPatch):
    times = iter([10.0, 12.0, 13.0, 17.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(times))
    counter = throughput.Counter(groups=4, rounds=2)
    for seen in range(1, 13):
        counter.count()
        assert counter.over.is_set() == (seen == 12)
    assert counter.rates() == (2.0, 4.0)


async def test_a_flooded_log_is_read_whole_and_never_far_ahead():
    inner = MemoryLog(capacity=2 * AHEAD)
    for index in range(AHEAD + 40):
        inner.append(signed(index % 5))
    log, seen = Ahead(inner), []
    assert log.head == AHEAD
    while log.head < inner.head or not seen or seen[-1] < inner.head:
        cursor = seen[-1] if seen else 0
        assert await log.wait(cursor) > cursor
        seen += [entry.cursor for entry in await log.read(cursor, 16)]
        assert log.head == min(seen[-1] + AHEAD, inner.head)
    assert seen == list(range(1, AHEAD + 41))


def test_a_round_that_brought_too_little_has_failed():
    found = [Round(began=0, ended=1, groups=4), Round(began=1, ended=4, groups=4), Round(began=4, ended=5, groups=0)]
    whole = genrl.result("GenRL", found, groups=4, rounds=5)
    assert (whole.failed, whole.round_ms, whole.rollouts_per_s) == (3, 2000.0, ROLLOUTS * 8 / 4)
    nothing = genrl.result("GenRL", [], groups=4, rounds=5)
    assert (nothing.failed, nothing.rollouts_per_s) == (5, 0.0)
    assert math.isnan(nothing.round_ms)


def test_without_the_peers_environment_its_benchmark_says_so(capsys: pytest.CaptureFixture[str]):
    exchange.main(["genrl"])
    assert "skipped: --genrl-python" in capsys.readouterr().out


def test_in_virtual_time_a_slow_peer_costs_the_others_nothing():
    assert slow_virtual.losses(steps=4) == {"node-1": 0.0, "node-2": 0.0}


@pytest.mark.network
@pytest.mark.slow
async def test_in_real_time_those_who_trade_and_the_one_who_does_not_make_groups():
    (alone,) = await slow_peer.real_windows(seconds=2.0, slowed=(False,))
    assert not alone.slowed
    assert min(alone.alone, alone.others, alone.traded) > 0.0


@pytest.mark.network
@pytest.mark.slow
async def test_a_few_groups_go_from_one_process_to_anothers_pool():
    stages = await latency.measure(groups=3, rate=100.0, rollouts=2, tokens=8)
    assert tuple(stages) == latency.STAGES
    assert {found.count for found in stages.values()} == {3}
    assert all(found.median >= 0 for found in stages.values())
    whole = stages["all"]
    assert max(found.most for found in stages.values()) == whole.most


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("through", ["exchange", "pool"])
async def test_a_short_flood_is_counted(through: str):
    rates = await throughput.measure(through=through, rounds=1, groups=20, rollouts=2, tokens=8)
    assert len(rates.groups_per_s) == 1
    assert rates.groups_per_s[0] > 0
