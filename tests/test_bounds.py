"""Whatever lives as long as the node is bounded, and where a stranger chooses how large an entry is, in bytes.

`BOUNDS` is the list of all attributes that grow: a new one has no line here, and the test fails until it has a bound
and says what it is. The large ones among them are filled with the worst that a stranger can bring, and weighed.
"""

from __future__ import annotations

import ast
import gc
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node.algorithms import PoolConfig, TrackerConfig
from node.experience import Experience
from node.ledger import Ledger
from node.metrics import MetricsLog
from node.pool import RolloutPool
from node.precedents import Precedents
from node.rl.tracker import ValueTracker
from swarm.limits import Limits
from swarm.near_duplicates import MAX_DIGESTS, MAX_GROUPS, NearDuplicates
from swarm.net.base import Received
from swarm.net.peertable import PeerTable
from swarm.net.relay import MAX_CANDIDATES, Rules, Shelf, Wishes
from swarm.net.standing import MAX_PEERS, Standing
from swarm.types import Announcement, GroupId, PeerId, PolicyVersion, Reason, Rollout, RolloutGroup, Verdict
from swarm.wire.codec import MAX_ANNOUNCEMENT_BYTES, decode_announcement, decode_group, encode_announcement, seal
from swarm.wire.relay import Offer
from tests.builders import NOW, announcement, cell_value, group, identity, rollout, task, task_ref, turn

ROOT = Path(__file__).parents[1]
MIB = 1 << 20

#: Attribute -> what bounds it. "Ours": how much there is of it is the operator's choice, in his config or his swarm.
BOUNDS = {
    # What strangers fill
    "node/waiting.py Waiting._queues": "pool.foreign_capacity groups and pool.foreign_mib",
    "node/waiting.py Waiting._sizes": "one number for each of those queues",
    "node/journal.py Journal._ids": "journal.max_groups ids of 64 digits",
    "node/journal.py Journal._pending": "one group of a stranger's at a time (`gather` waits for it), and our own",
    "node/journal.py Journal._room": "a semaphore of MAX_PENDING",
    "node/journal.py Journal._cursors": "MAX_PEERS positions",
    "node/journal.py Journal._unsaved": "MAX_PEERS positions",
    "node/supervision.py Part._failures": "one number for each failure that is allowed, and one; at least 64",
    "node/logs.py Repeats._kinds": "MAX_KINDS of three numbers",
    "node/ledger.py Ledger.admitted": "max_origins",
    "node/ledger.py Ledger.refused": "max_origins times the reasons that there are",
    "node/ledger.py Ledger.judgements": "max_verdicts of MAX_TEXT characters",
    "node/ledger.py Ledger._origins": "max_origins",
    "node/ledger.py Ledger._reasons": "the reasons that there are",
    "node/ledger.py Ledger._warnings": "max_warnings of MAX_TEXT characters",
    "node/ledger.py Ledger._unreported": "two numbers",
    "swarm/near_duplicates.py NearDuplicates._digests": "MAX_DIGESTS numbers",
    "swarm/near_duplicates.py NearDuplicates._sketches": "MAX_GROUPS of SKETCH numbers",
    "node/precedents.py Precedents._lengths": "RECENT numbers for each source of the swarm",
    "node/rl/gate.py GateMemory._recent": "foreign_gate.window numbers",
    "node/rl/gate.py ForeignGate._own": "a number for each rollout of a step",
    "node/rl/gate.py ForeignGate._peers": "a number for each rollout of a step",
    "node/rl/gate.py ForeignGate._bits_per_byte": "a number for each rollout of a step",
    "node/rl/tracker.py ValueTracker._sources": "the swarm's sources",
    "node/rl/tracker.py ValueTracker._cells": "tracker.max_prompts",
    "node/rl/tracker.py ValueTracker._prompts": "tracker.max_prompts digests",
    "node/rl/tracker.py ValueTracker._peer_sources": "tracker.max_prompts",
    "node/rl/tracker.py ValueTracker._peer_cells": "tracker.max_prompts",
    "node/quotas.py _Kind._of_origin": "lives for one draw: the origins in the pool",
    "node/quotas.py _Kind._of_lineage": "lives for one draw",
    "swarm/tasks/judge.py ProcessJudge._tasks": "TASKS_KEPT tasks of our own sources, which made their texts",
    "swarm/net/addressbook.py AddressBook._ports": "the addresses that we listen at",
    "swarm/net/addressbook.py AddressBook._peers": "MAX_ADDRESSES of MAX_ADDRESS_CHARS",
    "swarm/net/dht.py _Meter._buckets": "MAX_PEERS",
    "swarm/net/holders.py Holders._found": "our own keys of the last two minutes, a few holders each",
    "swarm/net/dialback.py _Allowance._peers": "MAX_PEERS",
    "swarm/net/following.py Following.queue": "QUEUE_GROUPS of limits.max_group_bytes, undecoded (32 MB)",
    "swarm/net/following.py Following._positions": "MAX_PEERS positions",
    "swarm/net/limiter.py StreamLimiter._callers": "MAX_PEERS",
    "swarm/net/peertable.py PeerTable._known": "VIEW announcements of MAX_ANNOUNCEMENT_BYTES on the wire",
    "swarm/net/peertable.py PeerTable._members": "a few shares for each of those",
    "swarm/net/places.py Places._taken": "MAX_STREAMS",
    "swarm/net/rates.py Shares._peers": "MAX_PEERS",
    "swarm/net/rates.py Shares._waiting": "one for each stream that is open",
    "swarm/net/rates.py Meter._turns": "one for each stream that is open",
    "swarm/net/records.py RecordRules._checked": "4096 announcements of MAX_ANNOUNCEMENT_BYTES on the wire",
    "swarm/net/records.py RecordRules._keys": "4096 keys",
    "swarm/net/records.py RecordRules._offsets": "64 numbers",
    "swarm/net/relay.py Shelf._uses": "USES numbers",
    "swarm/net/relay.py Shelf._candidates": "MAX_CANDIDATES and CANDIDATE_BYTES",
    "swarm/net/relay.py Shelf._shelved": "SHELF_GROUPS and SHELF_BYTES",
    "swarm/net/relay.py Wishes._offers": "MAX_OFFERED for each peer that is followed",
    "swarm/net/relay.py Wishes._wishes": "MAX_WISHES",
    "swarm/net/relaying.py _Wanted.ids": "MAX_ASKED + MAX_WANTS ids, and the stream ends",
    "swarm/net/selection.py Uses._peers": "MAX_PEERS",
    "swarm/net/selection.py Seats._places": "exchange.follow",
    "swarm/net/stack.py Stack._serving": "MAX_SERVED streams, each of which ends within its time",
    "swarm/net/stack.py Stack._left_behind": "calls under a deadline, of which the stack's end is the last",
    "swarm/net/standing.py Standing._offences": "MAX_PEERS",
    "swarm/net/standing.py Standing._earned": "MAX_PEERS",
    "swarm/net/standing.py Standing._lineages": "MAX_PEERS",
    "swarm/net/storage.py RecordStorage._shards": "MAX_RECORDS of MAX_ANNOUNCEMENT_BYTES",
    # What is ours alone
    "node/alarms.py Alarms._averages": "the rules",
    "node/alarms.py Alarms._held": "the rules",
    "node/alarms.py Alarms._active": "the rules",
    "node/backlog.py Backlog._ranges": "one for each start in a row that did not come to the end of its replay",
    "node/backlog.py Backlog._untaken": "what the checkpoint says",
    "node/bootstrap.py _Seed._said": "texts of our own",
    "node/engine/optimizer.py Masters._trained": "the parameters that are trained",
    "node/engine/passes.py Passes._found": "lives for one step: a number for each of its tokens",
    "node/engine/ranks/processes.py Processes._processes": "learner.devices",
    "node/engine/shared.py SharedTensors._places": "the tensors that there is room for",
    "node/engine/transformers.py TransformersGenerator._requests": "MAX_WAITING requests of ours",
    "node/engine/vllm/generator.py VllmGenerator._slots": "a semaphore",
    "node/engine/vllm/handoff.py Adapters._users": "adapters with requests in flight",
    "node/engine/vllm/handoff.py Adapters._retired": "adapters with requests in flight",
    "node/engine/vllm/process.py Engine._processes": "the engine's processes",
    "node/engine/vllm/transport.py MemoryTransport.init_info": "what the engine is told",
    "node/engine/vllm/transport.py CudaIpcTransport._offered": "the weights of one version",
    "node/evaluation.py Evaluation._tasks": "eval.tasks_per_family of each family",
    "node/holds.py Holds._reasons": "one for each holder",
    "node/journal.py Journal._untaken": "appends under way, and those that were cancelled",
    "node/journal_file.py JournalFile._damaged": "journal.max_groups numbers",
    "node/learning.py Learning._drawn": "two batches",
    "node/ledger.py Ledger.counters": "COUNTERS",
    "node/ledger.py Ledger.metrics": "the metrics of a step",
    "node/ledger.py Ledger.held_out": "the families of tasks",
    "node/metrics.py LoopDelay._lags": "a minute of ticks",
    "node/metrics.py MetricsLog._waiting": "max_waiting lines and max_waiting_bytes",
    "node/pool.py RolloutPool._own": "pool.own_capacity groups of our own",
    "node/resources.py Growth._lowest": "WINDOWS numbers",
    "node/resources.py Resources._active": "the gauges",
    "node/resources.py Resources._gauges": "the gauges",
    "node/time_account.py TimeAccount._pieces": "PIECES times the activities",
    "node/time_account.py TimeAccount._under_way": "the activities",
    # In one process, for tests and solo runs: all who use them are ours
    "swarm/net/memory.py MemoryLog._entries": "its capacity",
    "swarm/net/memory.py Hub._members": "who joined",
    "swarm/net/memory.py Hub._positions": "pairs of those",
    "swarm/net/memory.py MemoryExchange.verdicts": "who joined",
    "swarm/net/memory.py MemoryExchange._followed": "who joined",
    "swarm/net/memory.py MemoryExchange._offers": "one for each that is followed",
}
CONTAINERS = {"dict", "list", "set", "deque", "OrderedDict", "Counter", "defaultdict", "Queue", "Semaphore", "fromkeys"}
#: Commands that end, and the laboratory.
ELSEWHERE = ("node/lab/", "node/demo/", "node/doctor/", "node/commands/", "node/seed/", "swarm/wire/v1/")


def makes_container(value: ast.expr) -> bool:
    if isinstance(value, ast.Dict):
        return not value.keys
    if isinstance(value, ast.List | ast.Set):
        return not value.elts
    if isinstance(value, ast.Call):
        maker = value.func.value if isinstance(value.func, ast.Subscript) else value.func
        return (maker.attr if isinstance(maker, ast.Attribute) else getattr(maker, "id", "")) in CONTAINERS
    return False


def attributes(path: str, source: str) -> Iterator[str]:
    """Of instances, that are made as something that grows."""
    for owner in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(owner):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and makes_container(node.value):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                        yield f"{path} {owner.name}.{target.attr}"


def test_everything_that_grows_has_a_bound() -> None:
    paths = [path.relative_to(ROOT).as_posix() for top in ("swarm", "node") for path in (ROOT / top).rglob("*.py")]
    found = {
        attribute
        for path in paths
        if not path.startswith(ELSEWHERE)
        for attribute in attributes(path, (ROOT / path).read_text())
    }
    assert sorted(found - BOUNDS.keys()) == [], "give it a bound, and say here which"
    assert sorted(BOUNDS.keys() - found) == [], "these are no more"


def unbounded_caches(source: str) -> list[str]:
    """Decorators and calls of functools that keep all that they ever returned."""
    names = {"cache", "lru_cache", "functools.cache", "functools.lru_cache"}
    found = []
    for node in ast.walk(ast.parse(source)):
        for decorator in getattr(node, "decorator_list", ()):
            found += [ast.unparse(decorator)] if ast.unparse(decorator) in names - {"lru_cache"} else []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            sizes = [ast.unparse(k.value) for k in node.keywords if k.arg == "maxsize"] + [*map(ast.unparse, node.args)]
            found += [ast.unparse(node)] if not sizes or "None" in sizes else []
    return found


def test_every_cache_has_a_size() -> None:
    sources = [path.read_text() for top in ("swarm", "node") for path in (ROOT / top).rglob("*.py")]
    assert [found for source in sources for found in unbounded_caches(source)] == []
    bad = "@cache\ndef f(): ...\n@lru_cache(maxsize=None)\ndef g(): ...\n@lru_cache(maxsize=4)\ndef h(): ..."
    assert unbounded_caches(bad) == ["cache", "lru_cache(maxsize=None)"]


def test_an_attribute_that_grows_is_found() -> None:
    source = "class A:\n def __init__(self):\n  self.a: dict[str, int] = {}\n  self.b = deque[int]()\n  self.c = 1\n"
    assert list(attributes("x.py", source)) == ["x.py A.a", "x.py A.b"]


# The worst that a stranger can bring ----------------------------------------------------------------------------------


def weighed(fill: Callable[[], object]) -> float:
    """MiB that what `fill` returns takes."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = fill()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / MIB if kept is not None else 0.0
    finally:
        tracemalloc.stop()


def worst_group(index: int) -> RolloutGroup:
    """As large in memory as 1 MB on the wire can be made, about: texts of which one character makes all others wide."""
    text = "x" * 30_000 + "\N{GRINNING FACE}"
    heavy = turn(text)
    assert heavy.sampled is not None
    rollouts = tuple(Rollout(turns=(replace(heavy),)) for _ in range(5))
    return replace(group(ref=task_ref(index), origin=identity(2).peer_id, created_at=NOW), rollouts=rollouts)


def decoded(number: int, author: int = 2) -> Experience:
    """One that came over the wire: nothing of it is shared with another one."""
    sealed = seal(worst_group(number), identity(author))
    signed = decode_group(sealed.body, sealed.signature, Limits())
    return Experience(
        id=signed.id,
        group=signed.group,
        task=task(task_ref(number)),
        rewards=np.zeros(5, np.float32),
        scored=np.ones(5, bool),
        own=False,
        value=0.5,
        version=PolicyVersion(0),
        arrived_at=0.0,
    )


def test_the_pools_bound_is_what_it_takes() -> None:
    def fill() -> RolloutPool:
        config = PoolConfig(foreign_mib=32.0, distinct=False)
        ledger = Ledger()
        precedents = Precedents(config)
        pool = RolloutPool(
            config, random.Random(0), ledger.counters, Standing(lambda: 0.0), precedents, lambda experience: None
        )
        for number in range(60):
            pool.put_foreign(decoded(number))
        assert ledger.counters["dropped_groups"] > 20
        return pool

    assert 5 < weighed(fill) < 32, "a quarter of it is the newcomers'"


def test_a_footprint_is_no_less_than_what_a_group_takes() -> None:
    sizes = list[int]()

    def fill() -> list[Experience]:
        groups = [decoded(number) for number in range(8)]
        sizes.extend(one.size for one in groups)
        return groups

    assert weighed(fill) <= sum(sizes) / MIB * 1.05


def test_relayed_groups_are_kept_as_they_came() -> None:
    def fill() -> Shelf:
        rules = Rules(me=identity(1).peer_id, max_hops=6, max_age_s=100.0, max_clock_skew_s=50.0)
        shelf = Shelf(rules, 20.0, 0.0)
        for number in range(2 * MAX_CANDIDATES):
            sealed = seal(group(ref=task_ref(number), origin=identity(2).peer_id, created_at=NOW), identity(2))
            body = sealed.body + bytes(400_000)
            received = Received(sender=identity(3).peer_id, body=body, signature=sealed.signature)
            shelf.add(received, replace(sealed, group=worst_group(0)), 0.1, number * 0.1, NOW)
        return shelf

    assert weighed(fill) < 70, "32 MB on the shelf and 32 MB before it"


def largest_announcement(number: int) -> Announcement:
    """Of one peer among thousands, as it comes out of MAX_ANNOUNCEMENT_BYTES."""
    values = tuple(cell_value("s" * 60, 0.5, difficulty="d" * 30 + str(n)) for n in range(16))
    addresses = tuple(f"/ip4/10.{number >> 16}.{number >> 8 & 255}.{number & 255}/tcp/{port}" for port in range(1, 5))
    mine = replace(announcement(identity(2), name="n" * 64, values=values), addresses=addresses)
    encoded = encode_announcement(mine, identity(2))
    assert len(encoded) > 0.9 * MAX_ANNOUNCEMENT_BYTES
    return replace(decode_announcement(encoded), peer=PeerId(f"peer-{number}"))


def test_the_view_of_peers() -> None:
    def fill() -> PeerTable:
        table = PeerTable(identity(1).peer_id, 30.0, lambda: 0.0, random.Random(0))
        for number in range(1200):
            table.announced(largest_announcement(number), told_by=PeerId(f"source-{number % 50}"))
        return table

    assert weighed(fill) < 16


def test_tables_of_peers_and_of_what_they_sent() -> None:
    def standing() -> Standing:
        kept = Standing(lambda: 0.0)
        for number in range(MAX_PEERS + 500):
            peer = PeerId(f"{number:052d}")
            kept.strike(peer)
            kept.credit(peer, 1.0)
            kept.reached(peer, f"/ip4/11.{number >> 8 & 255}.{number & 255}.1/tcp/1")
        return kept

    def ledger() -> Ledger:
        kept = Ledger()
        reasons = [reason for reason in Reason if reason is not Reason.ADMITTED]
        for number in range(11_000):
            verdict = Verdict(reason=reasons[number % len(reasons)], detail="x" * 1000)
            kept.verdict(PeerId(f"{number:052d}"), GroupId("g" * 64), verdict)
        return kept

    def wishes() -> Wishes:
        rules = Rules(me=identity(1).peer_id, max_hops=6, max_age_s=100.0, max_clock_skew_s=50.0)
        kept = Wishes(rules, lambda _: False)
        for number in range(6000):
            offer = Offer(
                id=GroupId(f"{number:064d}"),
                origin=PeerId(f"{number:052d}"),
                hops=1,
                size=1000,
                created_at=NOW,
                source="s" * 128,
            )
            kept.offered(PeerId(f"{number % 4:052d}"), offer)
            kept.came(PeerId(f"{number % 4:052d}"), offer.id, float(number))
        return kept

    assert weighed(standing) < 8
    assert weighed(ledger) < 16
    assert weighed(wishes) < 8


def test_near_duplicates_and_the_tracker() -> None:
    def texts() -> NearDuplicates:
        kept, rng = NearDuplicates(salt=1, max_groups=MAX_GROUPS // 16, max_digests=MAX_DIGESTS // 16), random.Random(0)
        for number in range(MAX_DIGESTS // 12):
            text = rng.randbytes(120).hex()
            kept.remember(replace(group(ref=task_ref(number)), rollouts=(rollout(text),)))
        return kept

    def tracker() -> ValueTracker:
        kept = ValueTracker(TrackerConfig(max_prompts=4000))
        for number in range(6000):
            kept.observe(replace(task(task_ref(number)), difficulty=f'{{"n":{number}}}'), 1.0, PolicyVersion(number))
        return kept

    assert weighed(texts) < 40 / 16, "a sixteenth of what it may have"
    assert weighed(tracker) < 4


@pytest.mark.parametrize("lines", [200])
def test_lines_that_wait_for_a_disk(tmp_path: Path, lines: int) -> None:
    def fill() -> MetricsLog:
        log = MetricsLog(tmp_path / "metrics.jsonl", max_waiting_bytes=4 * MIB)
        for number in range(lines):
            log.append({"step": number, "text": "x" * 100_000})
        return log

    assert weighed(fill) < 5
