from __future__ import annotations

import re
from pathlib import Path

import pytest

import node
from node.alarms import Alarm
from node.engine.base import StepReport
from node.ledger import COUNTERS, MAX_TEXT, OTHER, SHOWN_ORIGINS, Ledger
from swarm.types import GroupId, PeerId, PolicyVersion, Reason, Verdict
from swarm.wire.v1 import node_pb2

ADMITTED = Verdict(reason=Reason.ADMITTED)
STALE = Verdict(reason=Reason.STALE, detail="1000 s old")
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def filled(ledger: Ledger, **gauges: float) -> node_pb2.NodeStatus:
    status = node_pb2.NodeStatus()
    ledger.fill(status, gauges)
    return status


def test_verdicts_are_counted_by_origin_and_reason() -> None:
    ledger = Ledger()
    for origin, verdict in ((A, ADMITTED), (A, ADMITTED), (A, STALE), (B, STALE)):
        ledger.verdict(origin, GroupId("g"), verdict)
    ledger.verdict(B, None, Verdict(reason=Reason.MALFORMED))
    status = filled(ledger)
    assert dict(status.admitted) == {"a": 2}
    assert dict(status.refused) == {"stale": 2, "malformed": 1}
    assert ledger.refused[A, Reason.STALE] == 1
    assert ledger.refusals_of(B) == {"stale": 1, "malformed": 1}
    assert ledger.refusals_of(C) == {}


def test_origins_beyond_the_bound_share_one_account() -> None:
    ledger = Ledger(max_origins=2)
    for origin in (A, B, C, PeerId("d"), A):
        ledger.verdict(origin, None, ADMITTED)
        ledger.verdict(origin, None, STALE)
    assert dict(ledger.admitted) == {"a": 2, "b": 1, OTHER: 2}
    assert ledger.refusals_of(OTHER) == {"stale": 2}
    assert dict(filled(ledger).refused) == {"stale": 5}


def test_a_status_names_the_largest_origins_and_adds_up_the_rest() -> None:
    ledger = Ledger()
    ledger.admitted.update({PeerId(f"p{i}"): i + 1 for i in range(SHOWN_ORIGINS + 2)})
    shown = dict(filled(ledger).admitted)
    assert len(shown) == SHOWN_ORIGINS + 1
    assert shown[OTHER] == 1 + 2
    assert sum(shown.values()) == ledger.admitted.total()


def test_the_newest_verdicts_come_first_and_the_oldest_go() -> None:
    now = 10.0
    ledger = Ledger(max_verdicts=3, clock=lambda: now)
    for i in range(5):
        now += 1
        ledger.verdict(A, GroupId(f"g{i}"), STALE)
    records = ledger.verdict_records(limit=2)
    assert [(r.group, r.reason, r.detail, r.age_s) for r in records] == [
        ("g4", "stale", "1000 s old", 0.0),
        ("g3", "stale", "1000 s old", 1.0),
    ]
    assert [record.group for record in ledger.verdict_records(limit=100)] == ["g4", "g3", "g2"]
    assert ledger.verdict_records(limit=0) == []


def test_strangers_texts_are_bounded_and_harmless() -> None:
    ledger = Ledger()
    ledger.verdict(PeerId("\udc80p"), None, Verdict(reason=Reason.MALFORMED, detail="\x1b[2J" + "x" * 10_000))
    (record,) = ledger.verdict_records(limit=1)
    assert record.origin == "\ufffdp"
    assert record.detail == "\ufffd[2J" + "x" * (MAX_TEXT - 4)


def test_a_step_replaces_the_metrics_of_the_one_before() -> None:
    ledger = Ledger()
    ledger.step(7, StepReport(version=PolicyVersion(8), metrics={"loss": 1.0, "entropy": 2.0}))
    ledger.step(8, StepReport(version=PolicyVersion(9), metrics={"loss": 0.5}))
    status = filled(ledger, pool_own=3)
    assert (status.steps, status.policy_version) == (8, 9)
    assert dict(status.metrics) == {"loss": 0.5, "pool_own": 3.0}


def test_an_evaluation_replaces_the_one_before() -> None:
    ledger = Ledger()
    ledger.evaluated(50, {"sudoku": 0.25, "gone": 1.0})
    ledger.evaluated(100, {"sudoku": 0.5})
    status = filled(ledger)
    assert (dict(status.held_out), status.held_out_step) == ({"sudoku": 0.5}, 100)


def test_the_share_that_is_refused_is_of_what_came_since_it_was_asked() -> None:
    ledger = Ledger()
    assert ledger.take_refused_share() == {}
    for verdict in (ADMITTED, STALE, STALE, STALE):
        ledger.verdict(A, None, verdict)
    assert ledger.take_refused_share() == {"refused_share": 0.75}
    assert ledger.take_refused_share() == {}
    ledger.verdict(A, None, ADMITTED)
    assert ledger.take_refused_share() == {"refused_share": 0.0}


def test_a_status_has_the_alarms_as_they_are() -> None:
    ledger = Ledger()
    ledger.alarms = [Alarm(name="ess_share", text="few count", value=0.2, threshold=0.3, since_step=7)]
    (alarm,) = filled(ledger).alarms
    assert (alarm.name, alarm.text, alarm.value, alarm.threshold, alarm.since_step) == (
        "ess_share",
        "few count",
        0.2,
        0.3,
        7,
    )


def test_warnings_are_counted_not_repeated_and_the_oldest_goes() -> None:
    ledger = Ledger(max_warnings=2)
    for text in ("disk", "clock", "disk", "nat"):
        ledger.warn(text)
    assert ledger.warnings == ["disk (2 times)", "nat"]
    assert list(filled(ledger).warnings) == ledger.warnings


def test_counters_start_at_zero_and_go_on_from_a_checkpoint() -> None:
    ledger = Ledger()
    assert dict(filled(ledger).counters) == dict.fromkeys(COUNTERS, 0)
    ledger.counters["own_groups"] += 2
    ledger.restore({"own_groups": 40, "counted_by_an_older_version": 1})
    assert ledger.counters["own_groups"] == 42
    assert "counted_by_an_older_version" not in ledger.counters


@pytest.mark.parametrize("path", sorted(Path(node.__path__[0]).glob("*.py")), ids=lambda path: path.name)
def test_every_counter_that_is_counted_is_explained(path: Path) -> None:
    counted = set(re.findall(r"""counters\["(\w+)"\]""", path.read_text()))
    assert counted <= COUNTERS.keys()
