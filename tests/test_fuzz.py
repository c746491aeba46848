"""The short version of `python -m tests.fuzz` (docs/fuzzing.md): some seconds of it, always the same inputs."""

import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from swarm.errors import LimitError
from swarm.types import Reason
from swarm.wire.codec import decode_group
from swarm.wire.v1 import exchange_pb2 as pb
from tests.fuzz import __main__ as command
from tests.fuzz import loop, seeds, watch
from tests.fuzz.mutation import encode, parse
from tests.fuzz.targets import LIMITS, TARGETS, Target, ours, verdict
from tests.fuzz.watch import DefectError, Watch

INPUTS = 320
WATCHED = 8
"""Every so many of them is timed, which takes longer than all else."""
SMALL = 20_000
"""Bytes: far from where one input may take too long, on whatever machine this runs."""
FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

#: What the inputs come to, among other things: the fuzzer gets behind the first checks.
REACHED = {
    "group": {"decoded", "WireError"},
    "group-again": {"same", "WireError"},
    "check": {"admitted", "bad_tokens", "bad_sampling", "WireError"},
    "entry": {"same", "WireError"},
    "packed": {"unpacked", "plain", "WireError", "LimitError"},
    "entry-verdict": {"admitted", "bad_signature", "malformed", "WireError"},
    "signed-verdict": {"admitted", "bad_tokens", "bad_sampling", "malformed"},
    "announcement": {"decoded", "SignatureMismatch", "WireError"},
    "signed-announcement": {"believed", "WireError"},
    "record": {"believed", "refused"},
    "pull": {"same", "WireError"},
    "credit": {"decoded", "LimitError"},
    "relay-request": {"decoded", "WireError"},
    "relay-response": {"decoded", "WireError"},
    "wants": {"decoded", "WireError"},
    "frame": {"NetworkError", "LimitError"},
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_damage_to_a_message_hurts(target: Target) -> None:
    watched = Watch(target)
    inputs = islice(loop.inputs(target.seeds(), 1, min(SMALL, target.max_bytes)), INPUTS)
    outcomes = {watched(data) if i % WATCHED == 0 else target.run(data) for i, data in enumerate(inputs)}
    assert watched.inputs == INPUTS / WATCHED
    assert REACHED[target.name] <= outcomes


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_bytes_hurt(target: Target) -> None:
    @FEW
    @given(st.binary(max_size=200))
    def any_bytes(data: bytes) -> None:
        target.run(data)

    any_bytes()


INTEGER = st.sampled_from([0, 1, 2, 3, 64, 2**31 - 1, 2**31, 2**32 - 1])
SCALARS: dict[int, SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    FieldDescriptor.TYPE_BYTES: st.sampled_from([b"", bytes(2), bytes(16), bytes(32), b"\xff" * 3]),
    FieldDescriptor.TYPE_UINT32: INTEGER,
    FieldDescriptor.TYPE_UINT64: INTEGER | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 5),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
}


def messages(kind: type[Message]) -> SearchStrategy[Message]:
    """Any values that the fields of a message can have."""

    def values(field: Any) -> SearchStrategy[Any]:
        inner = field.message_type
        value = SCALARS[field.type] if inner is None else messages(GetMessageClass(inner))
        return st.lists(value, max_size=3) if field.is_repeated else value

    choices = {field.name: values(field) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=choices).map(lambda chosen: kind(**chosen))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pb.RolloutGroup, "group-again"),
        (pb.RolloutGroup, "signed-verdict"),
        (pb.PullResponse, "entry-verdict"),
        (pb.Announcement, "signed-announcement"),
        (pb.PullRequest, "pull"),
    ],
)
def test_no_value_of_a_field_hurts(kind: type[Message], name: str) -> None:
    @FEW
    @given(messages(kind), st.sampled_from(TARGETS[name].seeds()))
    def any_message(message: Message, seed: bytes) -> None:
        """By itself, and merged into a good one."""
        TARGETS[name].run(b"\x08\x01" + message.SerializeToString())
        TARGETS[name].run(seed + message.SerializeToString())

    any_message()


@pytest.mark.parametrize("what", sorted(seeds.bombs(1000)))
@pytest.mark.parametrize("name", ["group", "signed-verdict"])
def test_no_group_is_expensive(what: str, name: str) -> None:
    """A quarter of the size that a node takes, in the time that the whole may take."""
    Watch(TARGETS[name])(seeds.bombs(LIMITS.max_group_bytes // 4)[what])


# What fuzzing has found -----------------------------------------------------------------------------------------------


def test_stop_strings_are_counted_before_they_are_read() -> None:
    body = seeds.bombs(500_000)["stop strings"]
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match="stop strings 2"):
            decode_group(body, bytes(64), LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("value", "admitted"), [(2**31 - 1, True), (2**31, False), (2**32 - 1, False)])
def test_numbers_are_taken_up_to_the_largest_int32(value: int, admitted: bool) -> None:
    message = pb.RolloutGroup.FromString(seeds.group_bodies()[0])
    message.rollouts[0].turns[0].sampled.ids[0] = value
    if admitted:
        sampled = decode_group(message.SerializeToString(), bytes(64), LIMITS).group.rollouts[0].turns[0].sampled
        assert sampled is not None
        assert sampled.ids is not None
        assert sampled.ids[0] == value
    else:
        with pytest.raises(LimitError, match=f"token id {value}"):
            decode_group(message.SerializeToString(), bytes(64), LIMITS)


# The fuzzer itself ----------------------------------------------------------------------------------------------------


def made_up(run: Any) -> Target:
    return Target("made-up", run, lambda: [b"a", b"b"], max_bytes=100)


def test_an_input_that_takes_too_long_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes) -> str:
        return str(sum(range(300_000))) if data == b"b" else "quick"

    monkeypatch.setattr(watch, "CPU_S", 0.001)
    watched = Watch(made_up(slow))
    assert watched(b"a") == "quick"
    with pytest.raises(DefectError, match="CPU seconds, at most"):
        watched(b"b")


def test_an_input_that_takes_too_long_once_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = iter([("a", 0.2), ("a", 0.3), ("a", 0.01), ("a", 0.2)])
    monkeypatch.setattr(watch, "timed", lambda run, data: next(attempts))
    watched = Watch(made_up(str))
    watched(b"a")
    assert watched.slowest_s == 0.01


def test_an_input_that_takes_too_much_memory_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DefectError, match="bytes traced"):
        Watch(made_up(lambda data: str(len(bytes(600_000)))))(b"")
    peaks = iter([0, watch.RESIDENT_BYTES + 1])
    monkeypatch.setattr(watch, "resident_peak", lambda: next(peaks))
    with pytest.raises(DefectError, match="bytes resident"):
        Watch(made_up(str))(b"")


def test_an_input_that_never_ends_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(data: bytes) -> str:
        while True:
            pass

    monkeypatch.setattr(watch, "HANG_CPU_S", 0.05)
    with pytest.raises(DefectError, match="hangs"):
        Watch(made_up(hang))(b"")


def test_the_same_number_makes_the_same_inputs() -> None:
    def first(number: int) -> list[bytes]:
        return list(islice(loop.inputs(seeds.group_bodies(), number, SMALL), 200))

    assert first(1) == first(1) != first(2)
    assert len(set(first(1))) > 150
    assert max(map(len, first(1))) <= SMALL


@pytest.mark.parametrize("data", [*seeds.group_bodies(), *seeds.entries(), *seeds.signed_announcements()])
def test_a_message_is_its_fields(data: bytes) -> None:
    fields = parse(data)
    assert fields
    assert encode(fields) == data


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05a", b"\x0b", b"\x00\x00", b"\x09\x00", b"\x08" + b"\x80" * 11])
def test_bytes_that_are_no_message_have_no_fields(data: bytes) -> None:
    assert parse(data) is None


def test_what_is_repaired_is_ours_whatever_it_was() -> None:
    other = replace(next(seeds.groups()), swarm="another swarm", created_at=0.0, membership=b"")
    body = seeds.encode_group(other)
    assert ours(body) != body
    signature = seeds.AUTHOR.sign(b"swarm/v1/group\0", ours(body))
    assert verdict(ours(body), signature) == Reason.ADMITTED
    assert verdict(body, seeds.AUTHOR.sign(b"swarm/v1/group\0", body)) == Reason.WRONG_SWARM


def test_a_defect_is_saved_with_its_input(tmp_path: Path) -> None:
    def run(data: bytes) -> str:
        if b"b" in data:
            raise RuntimeError("b is too much")
        return "fine"

    report = loop.fuzz(made_up(run), number=1, most=100, seconds=60, failures=tmp_path)
    assert report.inputs == 2
    assert "RuntimeError: b is too much" in report.defect
    assert (tmp_path / "made-up-2").read_bytes() == b"b"


def test_the_command_reports_every_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["pull", "record", "--engine", "blind", "--inputs", "20", "--corpus", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["fuzz", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("pull", "record"))] == [
        ["pull", "20"],
        ["record", "20"],
    ]
    assert lines[-1] == "40 inputs, 0 targets with a defect"
