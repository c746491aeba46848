import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from swarm.errors import LimitError, ProtocolMismatch, SignatureMismatch, WireError
from swarm.limits import Limits
from swarm.net.base import LogEntry
from swarm.types import (
    Announcement,
    FinishReason,
    PolicyVersion,
    Role,
    Rollout,
    RolloutGroup,
    SampledTokens,
    SamplingParams,
    Turn,
    VersionSpan,
)
from swarm.wire.codec import (
    MAX_ANNOUNCEMENT_BYTES,
    Pull,
    decode_announcement,
    decode_entry,
    decode_group,
    decode_pull,
    encode_announcement,
    encode_entry,
    encode_group,
    encode_pull,
    seal,
)
from swarm.wire.identity import ANNOUNCEMENT_DOMAIN, GROUP_DOMAIN, check_signature
from swarm.wire.v1 import exchange_pb2 as pb
from tests.builders import announcement, cell_value, group, identity, signed, task_ref, tokens, turn

LIMITS = Limits()


def plain(value: Any) -> Any:
    """Something that `==` compares: dataclasses by field, arrays by dtype and element."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def decoded(original: RolloutGroup, limits: Limits = LIMITS) -> RolloutGroup:
    return decode_group(encode_group(original), bytes(64), limits).group


# Groups ---------------------------------------------------------------------------------------------------------------


@st.composite
def sampled_tokens(draw: DrawFn) -> SampledTokens:
    units = draw(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
    total = len(units)
    small = st.lists(st.integers(0, 2**31 - 1), min_size=total, max_size=total)
    cut = draw(st.integers(0, total - 1))
    version = st.integers(0, 2**63 - 1).map(PolicyVersion)
    lengths = [cut, total - cut] if cut else [total]
    return SampledTokens(
        logprobs=np.array(units, np.float32) / np.float32(-2048),
        byte_lengths=np.array(draw(small), np.int32),
        versions=tuple(VersionSpan(version=draw(version), length=length) for length in lengths),
        ids=np.array(draw(small), np.int32) if draw(st.booleans()) else None,
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SAMPLED_TURN = st.builds(
    Turn, role=st.just(Role.ASSISTANT), text=TEXT, finish=st.sampled_from(FinishReason), sampled=sampled_tokens()
)
PLAIN_TURN = st.builds(Turn, role=st.sampled_from(Role), text=TEXT)
ROLLOUT = st.builds(Rollout, turns=st.lists(SAMPLED_TURN | PLAIN_TURN, max_size=3).map(tuple))
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda x: float(str(np.float32(x))))
GROUP: SearchStrategy[RolloutGroup] = st.builds(
    group,
    ref=st.builds(task_ref, index=st.integers(0, 2**63 - 1), seed=st.integers(0, 2**63 - 1)),
    sampling=st.builds(
        SamplingParams,
        temperature=FLOAT32,
        top_p=FLOAT32,
        max_new_tokens=st.integers(0, 2**32 - 1),
        stop=st.lists(TEXT.filter(lambda text: len(text.encode()) <= 64), max_size=8).map(tuple),
    ),
    created_at=st.floats(min_value=0, allow_infinity=False, allow_nan=False),
).flatmap(lambda g: st.lists(ROLLOUT, max_size=3).map(lambda rollouts: replace(g, rollouts=tuple(rollouts))))


@given(GROUP)
def test_a_group_comes_back_as_it_went(original: RolloutGroup) -> None:
    assert plain(decoded(original)) == plain(original)


def test_the_bytes_are_pinned() -> None:
    """A change of them is a change of the protocol: other nodes cannot check our signatures any more."""
    example = signed()
    assert example.id == hashlib.sha256(example.body).hexdigest()
    assert example.id == "4636922491631faeca91a7cc243da738ae19c3bf3fe0bff471755c370ef5e614"
    assert (
        hashlib.sha256(example.signature).hexdigest()
        == "076de6d990b5f370b512d9da9a2e4043929540618a5700666085111b31787ae7"
    )


def test_stop_strings_add_to_the_bytes_and_change_none_of_the_others() -> None:
    without, stopping = encode_group(group()), encode_group(group(sampling=SamplingParams(stop=("é", "\n"))))
    message = pb.RolloutGroup.FromString(stopping)
    assert list(message.sampling.stop) == ["é", "\n"]
    del message.sampling.stop[:]
    assert message.SerializeToString(deterministic=True) == without


def test_a_sealed_group_is_signed_by_its_origin() -> None:
    example = signed(author=identity(5))
    check_signature(identity(5).peer_id, GROUP_DOMAIN, example.body, example.signature)
    with pytest.raises(WireError, match="cannot be signed"):
        seal(example.group, identity(6))


def test_logprobs_travel_in_2048ths_of_a_nat() -> None:
    """Unit step 1/2048, rounded to the nearest, saturating at 65535/2048 nats."""
    logprobs = np.array([0.0, -1 / 2048, -0.4 / 2048, -0.6 / 2048, -1.0, -31.99, -32.0, -1e30], np.float32)
    sent = replace(tokens("1234567"), logprobs=logprobs)
    received = decoded(group(Rollout(turns=(turn("1234567", sampled=sent),)))).rollouts[0].turns[0].sampled
    assert received is not None
    assert received.logprobs.dtype == np.float32
    assert (received.logprobs * -2048).tolist() == [0, 1, 0, 1, 2048, 65516, 65535, 65535]


def test_float32_does_not_show() -> None:
    sampling = SamplingParams(temperature=0.7, top_p=0.95, max_new_tokens=64)
    assert decoded(group(sampling=sampling)).sampling == sampling


def test_what_was_received_cannot_be_written_to() -> None:
    received = decoded(group()).rollouts[0].turns[0].sampled
    assert received is not None
    assert received.ids is not None
    for array in (received.logprobs, received.byte_lengths, received.ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def only_turn(original: Turn) -> RolloutGroup:
    return group(Rollout(turns=(original,)))


@pytest.mark.parametrize(
    ("unsendable", "complaint"),
    [
        (only_turn(turn(sampled=replace(tokens("0"), logprobs=np.array([-1, np.nan], np.float32)))), "finite"),
        (only_turn(turn(sampled=replace(tokens("0"), logprobs=np.array([-1, -np.inf], np.float32)))), "finite"),
        (only_turn(turn(sampled=replace(tokens("0"), logprobs=np.array([-1, 0.1], np.float32)))), "at most 0"),
        (only_turn(turn(sampled=replace(tokens("0"), logprobs=np.array([-1], np.float32)))), "2 byte lengths for 1"),
        (only_turn(turn(sampled=replace(tokens("0"), ids=np.array([1], np.int32)))), "1 ids for 2"),
        (only_turn(turn(sampled=replace(tokens("0"), versions=()))), "spans do not add up to 2"),
        (only_turn(turn(sampled=replace(tokens("0"), byte_lengths=np.array([2, -1], np.int32)))), "cannot be written"),
        (only_turn(turn(sampled=tokens("", FinishReason.ERROR))), "no tokens"),
        (only_turn(Turn(role=Role.USER, text="x", finish=FinishReason.STOP)), "if and only if it was sampled"),
        (only_turn(Turn(role=Role.USER, text="\ud800")), "cannot be written"),
        (group(ref=task_ref(seed=-1)), "task.seed -1"),
        (group(ref=task_ref(index=2**63)), "task.index"),
        (group(created_at=float("nan")), "created_at nan"),
        (group(sampling=SamplingParams(stop=("x",) * 9)), "stop strings 9: must be at most 8"),
        (group(sampling=SamplingParams(stop=("é" * 33,))), "stop string bytes 66: must be at most 64"),
        (group(sampling=SamplingParams(stop=("\ud800",))), "cannot be written"),
        (group(swarm="\x1b[2J"), r"swarm '\\x1b"),
    ],
)
def test_what_the_format_cannot_carry_is_not_sent(unsendable: RolloutGroup, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        encode_group(unsendable)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_group_bytes": 50},
        {"max_rollouts": 1},
        {"max_turns": 1},
        {"max_tokens": 3},
        {"max_text_bytes": 3},
    ],
)
def test_more_than_the_limits_is_a_limit_error(limits: dict[str, int]) -> None:
    two_turns = Rollout(turns=(turn("é"), turn("é")))  # 6 tokens, 4 bytes of text
    body = encode_group(group(two_turns, two_turns))
    assert decode_group(body, b"", LIMITS)
    with pytest.raises(LimitError, match="must be at most"):
        decode_group(body, b"", Limits.model_validate(limits))


@pytest.mark.parametrize(
    ("stop", "complaint"),
    [(["x"] * 9, "stop strings 9: must be at most 8"), (["x" * 65], "stop string bytes 65: must be at most 64")],
)
def test_stop_strings_are_few_and_short(stop: list[str], complaint: str) -> None:
    with pytest.raises(LimitError, match=complaint):
        decode_group(altered(sampling__stop=stop), b"", LIMITS)


def test_the_size_is_looked_at_before_anything_is_parsed() -> None:
    with pytest.raises(LimitError, match="group bytes 1000001"):
        decode_group(b"\xff" * 1_000_001, b"", LIMITS)


def test_version_spans_are_few() -> None:
    """They are the one part that is objects and not arrays: a group of nothing else would block the reader's loop."""
    spans = tuple(VersionSpan(version=PolicyVersion(i), length=1) for i in range(65))
    many = replace(tokens("x" * 64), versions=spans)
    with pytest.raises(LimitError, match="version spans 65"):
        encode_group(only_turn(turn("x" * 64, sampled=many)))
    with pytest.raises(LimitError, match="version spans 65"):
        decode_group(altered(**{TOKENS + "versions": [pb.VersionSpan(length=1)] * 65}), b"", LIMITS)
    assert decoded(only_turn(turn("x" * 63, sampled=replace(tokens("x" * 63), versions=spans[:64]))))


def altered(**fields: Any) -> bytes:
    """A good group's bytes with some fields overwritten: `a__0__b=value` sets `a[0].b`."""
    message = pb.RolloutGroup.FromString(signed().body)
    for path, value in fields.items():
        target: Any = message
        *parents, name = path.split("__")
        for parent in parents:
            target = target[int(parent)] if parent.isdigit() else getattr(target, parent)
        if isinstance(value, list):
            del getattr(target, name)[:]
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)
    return message.SerializeToString()


TURN = "rollouts__0__turns__0__"
TOKENS = TURN + "sampled__"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({TURN + "role": 0}, "role 0 is unknown"),
        ({TURN + "role": 99}, "role 99 is unknown"),
        ({TURN + "finish": 0}, "finish reason 0"),
        ({TURN + "finish": 99}, "finish reason 99"),
        ({TOKENS + "logprobs": b""}, "no tokens"),
        ({TOKENS + "logprobs": b"123"}, "must be even"),
        ({TOKENS + "byte_lengths": [1]}, "1 byte lengths for 2 tokens"),
        ({TOKENS + "byte_lengths": [1, 2**31]}, "byte length 2147483648"),
        ({TOKENS + "ids": [1, 2, 3]}, "3 ids for 2 tokens"),
        ({TOKENS + "ids": [1, 2**32 - 1]}, "token id 4294967295"),
        ({TOKENS + "versions": []}, "spans do not add up to 2"),
        ({TOKENS + "versions": [pb.VersionSpan(length=3)]}, "spans do not add up to 2"),
        ({TOKENS + "versions": [pb.VersionSpan(length=2), pb.VersionSpan()]}, "spans do not add up to 2"),
        ({TOKENS + "versions": [pb.VersionSpan(length=2, version=2**63)]}, "version 9223372036854775808"),
        ({"task__seed": 2**64 - 1}, "task.seed"),
        ({"task__config": "x" * 4097}, "task.config characters 4097"),
        ({"created_at": float("inf")}, "created_at inf"),
        ({"model": "x" * 129}, "model characters 129"),
        ({"tokenizer": "\u202e"}, "must be printable"),
    ],
)
def test_malformed_groups_are_refused_with_a_reason(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        decode_group(altered(**fields), b"", LIMITS)


def test_finish_without_tokens_is_refused() -> None:
    message = pb.RolloutGroup.FromString(signed().body)
    message.rollouts[0].turns[0].ClearField("sampled")
    with pytest.raises(WireError, match="not sampled has a finish reason"):
        decode_group(message.SerializeToString(), b"", LIMITS)


def test_another_protocol_is_told_apart() -> None:
    with pytest.raises(ProtocolMismatch, match="protocol 2: ours is 1"):
        decode_group(altered(protocol=2), b"", LIMITS)
    with pytest.raises(ProtocolMismatch, match="protocol 0"):
        decode_group(b"", b"", LIMITS)


@given(st.binary(max_size=300), st.binary(max_size=80))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(body: bytes, signature: bytes) -> None:
    with pytest.raises(WireError):
        decode_group(body, signature, LIMITS)


@given(st.data())
def test_mutated_bytes_raise_nothing_but_wire_errors(data: st.DataObject) -> None:
    body = bytearray(signed().body)
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    try:
        received = decode_group(bytes(body), b"", LIMITS)
    except WireError:
        return
    for each in received.group.rollouts:
        for sampled in (t.sampled for t in each.turns if t.sampled is not None):
            assert len(sampled) == len(sampled.byte_lengths) == sum(span.length for span in sampled.versions)


# Announcements --------------------------------------------------------------------------------------------------------


VALUES = (cell_value("rg/spell", 0.3, mass=12.5, difficulty='{"word_len":4}'), cell_value("rg/sort", 1.0, mass=0.0))


def test_an_announcement_comes_back_as_it_went() -> None:
    original = announcement(identity(3), head=7, name="Zoë's node", values=VALUES)
    assert decode_announcement(encode_announcement(original, identity(3))) == original


def test_an_announcements_bytes_are_pinned() -> None:
    data = encode_announcement(announcement(head=7), identity())
    assert hashlib.sha256(data).hexdigest() == "8706fb13db1ff0ac04e08af0c65c699f771ba93e2612f48b298fd5b5c0a2582a"
    data = encode_announcement(announcement(head=7, values=VALUES), identity())
    assert hashlib.sha256(data).hexdigest() == "a83fb17510a50a11d7787b58aa4d74d2e9debd82302ae096591697e79d826e2f"


def test_a_peer_that_says_nothing_of_its_worth_is_understood() -> None:
    data = encode_announcement(announcement(head=7), identity())
    assert not pb.Announcement.FromString(pb.SignedAnnouncement.FromString(data).body).values
    assert decode_announcement(data) == announcement(head=7)


def test_values_for_which_there_is_no_room_are_cut_off_at_the_end() -> None:
    many = tuple(cell_value("s" * 100, n / 64, difficulty=str(n)) for n in range(64))
    full = replace(announcement(), addresses=("/a" * 100,), values=many)
    data = encode_announcement(full, identity())
    kept = decode_announcement(data)
    assert kept == replace(full, values=many[: len(kept.values)])
    assert 5 < len(kept.values) < 64
    one = 2 + pb.CellValue(source="s" * 100, difficulty="63", value=0.5, mass=1.0).ByteSize()
    assert MAX_ANNOUNCEMENT_BYTES - one < len(data) <= MAX_ANNOUNCEMENT_BYTES
    assert encode_announcement(kept, identity()) == data


def test_64_short_values_fit() -> None:
    many = replace(announcement(), values=(cell_value("a", 0.5),) * 64)
    assert decode_announcement(encode_announcement(many, identity())) == many


def test_the_largest_announcement_is_small() -> None:
    full = replace(announcement(), name="n" * 64, model="m" * 128, tokenizer="t" * 128, addresses=("/a" * 60,) * 8)
    assert len(encode_announcement(full, identity())) <= MAX_ANNOUNCEMENT_BYTES
    with pytest.raises(LimitError, match="announcement bytes"):
        encode_announcement(replace(full, addresses=("/a" * 128,) * 8), identity())


def unchecked(original: Announcement) -> bytes:
    """Signed by its peer, whatever is in it."""
    a = original
    body = pb.Announcement(
        protocol=1,
        swarm=a.swarm,
        peer=a.peer,
        addresses=a.addresses,
        epoch=a.epoch,
        head=a.head,
        name=a.name,
        model=a.model,
        tokenizer=a.tokenizer,
        issued_at=a.issued_at,
        values=[pb.CellValue(source=v.source, difficulty=v.difficulty, value=v.value, mass=v.mass) for v in a.values],
    ).SerializeToString(deterministic=True)
    signature = identity().sign(ANNOUNCEMENT_DOMAIN, body)
    return pb.SignedAnnouncement(body=body, signature=signature).SerializeToString()


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (replace(announcement(), name="n" * 65), "name characters 65"),
        (replace(announcement(), name="\x1b]0;owned\x07"), "name .* must be printable"),
        (replace(announcement(), name="a\nb"), "must be printable"),
        (replace(announcement(), name="\u202egpj.exe"), "must be printable"),
        (replace(announcement(), addresses=("/a",) * 9), "addresses 9"),
        (replace(announcement(), addresses=("x" * 257,)), "address characters 257"),
        (replace(announcement(), addresses=("/a\r",)), "must be printable"),
        (replace(announcement(), epoch=b"short"), "epoch of 5 bytes"),
        (replace(announcement(), head=2**63), "head"),
        (replace(announcement(), issued_at=float("nan")), "issued_at nan"),
        (replace(announcement(), issued_at=float("inf")), "issued_at inf"),
        (replace(announcement(), issued_at=-1.0), "issued_at -1"),
        (announcement(values=(cell_value("a", 0.5),) * 65), "values 65: must be at most 64"),
        (announcement(values=(cell_value("a" * 129, 0.5),)), "source of a value characters 129"),
        (announcement(values=(cell_value("a", 0.5, difficulty="d" * 201),)), "difficulty of a value characters 201"),
        (announcement(values=(cell_value("a", 0.5, difficulty="\x1b"),)), "difficulty of a value .* must be printable"),
        (announcement(values=(cell_value("a", 1.5),)), "value 1.5: must be from 0 to 1"),
        (announcement(values=(cell_value("a", -0.5),)), "value -0.5"),
        (announcement(values=(cell_value("a", float("nan")),)), "value nan"),
        (announcement(values=(cell_value("a", 0.5, mass=-1.0),)), "mass of a value -1"),
        (announcement(values=(cell_value("a", 0.5, mass=float("inf")),)), "mass of a value inf"),
        (announcement(values=(cell_value("a", 0.5, mass=float("nan")),)), "mass of a value nan"),
    ],
)
def test_a_bad_announcement_is_neither_made_nor_read(bad: Announcement, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        encode_announcement(bad, identity())
    with pytest.raises(WireError, match=complaint):
        decode_announcement(unchecked(bad))


def test_an_announcement_speaks_for_its_signer_only() -> None:
    with pytest.raises(WireError, match="cannot be signed"):
        encode_announcement(announcement(identity(2)), identity(1))
    with pytest.raises(SignatureMismatch):
        decode_announcement(unchecked(announcement(identity(2))))


@given(st.binary(max_size=200))
def test_arbitrary_announcements_raise_nothing_but_wire_errors(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_announcement(data)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_no_bit_of_an_announcement_can_be_changed_unnoticed(position: int, difference: int) -> None:
    original = announcement(values=VALUES)
    data = bytearray(encode_announcement(original, identity()))
    data[position % len(data)] ^= difference
    try:
        received = decode_announcement(bytes(data))
    except (WireError, SignatureMismatch):
        return
    assert received == original


# Pulling --------------------------------------------------------------------------------------------------------------


def test_a_pull_comes_back_as_it_went() -> None:
    for epoch, deflate in ((b"e" * 16, True), (b"", False)):
        pull = Pull(swarm="swarm", epoch=epoch, cursor=7, max_groups=32, deflate=deflate)
        assert decode_pull(encode_pull(pull)) == pull


def test_who_cannot_unpack_asks_as_it_always_did() -> None:
    pull = Pull(swarm="swarm", epoch=b"", cursor=7, max_groups=32)
    assert encode_pull(pull) == b"\x0a\x05swarm\x18\x07\x20\x20"
    assert encode_pull(replace(pull, deflate=True)) == encode_pull(pull) + b"\x38\x01"


def test_a_response_comes_back_as_it_went() -> None:
    example = signed()
    entry = LogEntry(cursor=9, body=example.body, signature=example.signature)
    epoch, received = decode_entry(encode_entry(b"e" * 16, entry))
    assert epoch == b"e" * 16
    assert (received.cursor, received.body, received.signature) == (9, example.body, example.signature)


@pytest.mark.parametrize(
    "bad",
    [
        pb.PullRequest(max_groups=0),
        pb.PullRequest(max_groups=1025),
        pb.PullRequest(max_groups=1, epoch=b"e" * 17),
        pb.PullRequest(max_groups=1, cursor=2**63),
        pb.PullRequest(max_groups=1, swarm="s" * 129),
    ],
)
def test_a_bad_pull_is_refused(bad: pb.PullRequest) -> None:
    with pytest.raises(WireError):
        decode_pull(bad.SerializeToString())
    with pytest.raises(WireError):
        encode_pull(Pull(swarm=bad.swarm, epoch=bad.epoch, cursor=bad.cursor, max_groups=bad.max_groups))


@pytest.mark.parametrize(
    "bad",
    [
        pb.PullResponse(),
        pb.PullResponse(epoch=b"e" * 16),
        pb.PullResponse(epoch=b"e" * 15, cursor=1),
        pb.PullResponse(epoch=b"e" * 16, cursor=2**63),
        pb.PullResponse(epoch=b"e" * 16, cursor=1, group=pb.SignedGroup(signature=bytes(65))),
    ],
)
def test_a_bad_response_is_refused(bad: pb.PullResponse) -> None:
    with pytest.raises(WireError):
        decode_entry(bad.SerializeToString())
