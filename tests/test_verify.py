import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import TaskTimeout
from swarm.limits import Limits
from swarm.net.base import INNOCENT, Received
from swarm.tasks.base import held_out
from swarm.types import (
    FinishReason,
    GroupId,
    PeerId,
    Reason,
    Role,
    Rollout,
    RolloutGroup,
    SamplingParams,
    Score,
    ScoreStatus,
    SignedGroup,
    Task,
    TaskRef,
    Turn,
)
from swarm.verify import CHECKS, UNDECODABLE, UNSIGNED, Context, Findings, check, verify
from swarm.wire.codec import encode_group, seal
from swarm.wire.v1 import exchange_pb2 as pb
from tests.builders import (
    MANIFEST,
    MEMBERSHIP,
    NOW,
    EchoJudge,
    group,
    identity,
    rollout,
    signed,
    task_ref,
    tokens,
    turn,
)

ME, AUTHOR, SENDER = identity(9).peer_id, identity(1), identity(2).peer_id
LIMITS = Limits()
CONTEXT = Context(me=ME, manifest=MANIFEST, membership=MEMBERSHIP, limits=LIMITS, now=NOW)


async def judged(
    what: SignedGroup | tuple[bytes, bytes],
    judge: Any = None,
    known: Sequence[GroupId] = (),
    limits: Limits = LIMITS,
    banned: Sequence[PeerId] = (),
    copied: str | None = None,
) -> Findings:
    body, signature = (what.body, what.signature) if isinstance(what, SignedGroup) else what

    async def is_known(id: GroupId) -> bool:
        return id in known

    return await verify(
        Received(sender=SENDER, body=body, signature=signature),
        me=ME,
        judge=judge or EchoJudge(),
        manifest=MANIFEST,
        membership=MEMBERSHIP,
        limits=limits,
        known=is_known,
        now=NOW,
        banned=lambda peer: peer in banned,
        copied=lambda group: copied,
    )


def sealed(original: RolloutGroup) -> SignedGroup:
    return seal(original, AUTHOR)


def unencoded(*rollouts: Rollout, **fields: Any) -> SignedGroup:
    """A group that the codec would not let pass, as if it had; its signature is that of another."""
    return replace(signed(), group=replace(group(*rollouts), **fields))


# Admission ------------------------------------------------------------------------------------------------------------


async def test_a_good_group_is_admitted_with_our_own_scores() -> None:
    result = await judged(sealed(group(rollout("7"), rollout("8"), rollout("?"), ref=task_ref(7))))
    assert result.verdict.admitted
    assert result.origin == AUTHOR.peer_id
    assert result.task is not None
    assert result.task.answer == "7"
    assert [score.reward for score in result.scores] == [1.0, 0.0, 0.0]
    assert [score.status for score in result.scores] == [ScoreStatus.OK, ScoreStatus.OK, ScoreStatus.FAILED]


async def test_several_turns_are_scored_by_the_last_of_the_assistant() -> None:
    conversation = Rollout(turns=(turn("9"), Turn(role=Role.USER, text="Sure?"), turn("7")))
    result = await judged(sealed(group(conversation, ref=task_ref(7))))
    assert [score.reward for score in result.scores] == [1.0]


async def test_a_reward_cannot_be_sent() -> None:
    """Unknown fields ride along under the signature and change nothing (a reward as field 99 of the group)."""
    body = encode_group(group()) + bytes([0x98, 0x06, 0x01])
    result = await judged((body, AUTHOR.sign(b"swarm/v1/group\0", body)))
    assert [score.reward for score in result.scores] == [1.0, 0.0]


# Refusals, in the order of the reasons --------------------------------------------------------------------------------


def test_the_reasons_are_in_the_order_of_the_checks() -> None:
    order = [*(reason for _, reason in UNDECODABLE), *(reason for reason, _ in CHECKS)]
    rest = [Reason.DUPLICATE, Reason.COPIED, Reason.HELD_OUT, Reason.UNSCORABLE]
    assert set(order[:3]) == set(list(Reason)[1:4])
    assert [Reason.ADMITTED, *list(Reason)[1:4], *order[3:], *rest] == list(Reason)
    assert set(list(Reason)[4:8]) == UNSIGNED


async def test_what_cannot_be_decoded_is_the_senders() -> None:
    good = signed()
    cases = {
        Reason.TOO_LARGE: (bytes(1_000_001), good.signature),
        Reason.MALFORMED: (b"\xff", good.signature),
        Reason.WRONG_PROTOCOL: (b"", b""),
    }
    for reason, what in cases.items():
        result = await judged(what)
        assert (result.verdict.reason, result.origin, result.signed) == (reason, SENDER, None)
        assert result.verdict.detail


STOP_STRING = FinishReason.STOP_STRING


def stopped(text: str, *stop: str) -> RolloutGroup:
    """A rollout of one token per byte that is said to have ended with one of the stop strings."""
    return group(rollout(text, STOP_STRING), sampling=SamplingParams(stop=stop))


def certain(*texts: str) -> RolloutGroup:
    """All of them said to have been certain."""
    return group(*(Rollout(turns=(turn(text, sampled=tokens(text, logprob=0.0)),)) for text in texts))


REFUSED = [
    (Reason.WRONG_SWARM, group(swarm="f" * 32), "made for swarm ffff"),
    (Reason.STALE, group(created_at=NOW - 901), "901 s old: at most 900"),
    (Reason.FROM_FUTURE, group(created_at=NOW + 601), "601 s from now: at most 600"),
    (Reason.UNKNOWN_TASK, group(ref=task_ref(source="test/other")), "test/other"),
    (Reason.UNKNOWN_TASK, group(ref=replace(task_ref(), version="2")), "not in this swarm"),
    (Reason.UNKNOWN_TASK, group(ref=replace(task_ref(), config='{"size":9}')), "not in this swarm"),
    (Reason.UNKNOWN_TASK, group(ref=task_ref(1000)), "no task 1000"),
    (Reason.BAD_SAMPLING, group(sampling=SamplingParams(temperature=0.0)), "temperature 0.0"),
    (Reason.BAD_SAMPLING, group(sampling=SamplingParams(temperature=10.5)), "temperature 10.5"),
    (Reason.BAD_SAMPLING, group(sampling=SamplingParams(temperature=float("nan"))), "temperature nan"),
    (Reason.BAD_SAMPLING, group(sampling=SamplingParams(top_p=0.0)), "top_p 0.0"),
    (Reason.BAD_SAMPLING, group(sampling=SamplingParams(top_p=1.5)), "top_p 1.5"),
    (Reason.BAD_SAMPLING, group(sampling=SamplingParams(max_new_tokens=0)), "max_new_tokens 0"),
    (Reason.BAD_SAMPLING, group(sampling=SamplingParams(max_new_tokens=2**31)), "max_new_tokens 2147483648"),
    (Reason.BAD_TOKENS, replace(group(), rollouts=()), "no rollouts"),
    (Reason.BAD_TOKENS, group(Rollout(turns=())), "rollout 0: must start with the assistant"),
    (Reason.BAD_TOKENS, group(rollout(), Rollout(turns=(Turn(role=Role.USER, text="x"),))), "rollout 1: must start"),
    (Reason.BAD_TOKENS, group(Rollout(turns=(Turn(role=Role.ASSISTANT, text="x"),))), "turns are sampled"),
    (Reason.BAD_TOKENS, group(Rollout(turns=(turn(), replace(turn(), role=Role.TOOL)))), "turns are sampled"),
    (Reason.BAD_TOKENS, group(rollout("x" * 64)), "65 tokens: from 1 to max_new_tokens 64"),
    (Reason.BAD_TOKENS, group(Rollout(turns=(turn("ab", sampled=tokens("a")),))), "tokens of 1 bytes for a text of 2"),
    (Reason.BAD_TOKENS, group(Rollout(turns=(turn("é", sampled=tokens("e")),))), "tokens of 1 bytes for a text of 2"),
    (
        Reason.BAD_TOKENS,
        group(Rollout(turns=(turn("ab", FinishReason.STOP, tokens("ab", FinishReason.LENGTH)),))),
        "finish stop",
    ),
    (Reason.BAD_SAMPLING, group(sampling=SamplingParams(stop=("x", ""))), "an empty stop string"),
    (Reason.BAD_TOKENS, stopped("ab"), "none of the group's 0 stop strings"),
    (Reason.BAD_TOKENS, stopped("ab", "c", "ba"), "none of the group's 2 stop strings"),
    (Reason.BAD_TOKENS, stopped("abc", "c", "b"), "a token before the last one completed a stop string"),
    (Reason.BAD_TOKENS, stopped("abab", "ab"), "a token before the last one completed a stop string"),
    (
        Reason.BAD_TOKENS,  # an end-of-sequence token after the stop string
        replace(stopped("ab", "ab"), rollouts=(Rollout(turns=(turn("ab", STOP_STRING, tokens("ab")),)),)),
        "a token before the last one completed a stop string",
    ),
    (Reason.IMPLAUSIBLE, certain("a", "b"), "distinct responses of a total probability of 2"),
    (Reason.UNSCORABLE, group(rollout("?"), rollout("?")), "no answer"),
]


@pytest.mark.parametrize(("reason", "bad", "detail"), REFUSED)
async def test_a_signed_group_is_refused_for(reason: Reason, bad: RolloutGroup, detail: str) -> None:
    result = await judged(sealed(bad))
    assert result.verdict.reason is reason
    assert detail in result.verdict.detail
    assert result.origin == (SENDER if reason in UNSIGNED else AUTHOR.peer_id)
    assert (result.task, result.scores) == (None, ())


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        (unencoded(Rollout(turns=(turn(sampled=tokens("0", logprob=0.5)),))), "finite and at most 0"),
        (unencoded(Rollout(turns=(turn(sampled=tokens("0", logprob=float("nan"))),))), "finite and at most 0"),
        (unencoded(Rollout(turns=(turn(sampled=tokens("0", logprob=float("-inf"))),))), "finite and at most 0"),
        (
            unencoded(Rollout(turns=(turn(sampled=replace(tokens("0"), byte_lengths=np.array([2, -1]))),))),
            "must not be negative",
        ),
        (unencoded(Rollout(turns=(turn("", sampled=tokens("", FinishReason.LENGTH)),))), "0 tokens"),
    ],
)
def test_groups_that_did_not_come_off_the_wire_are_checked_the_same(bad: SignedGroup, detail: str) -> None:
    verdict = check(bad, CONTEXT)
    assert verdict.reason is Reason.BAD_TOKENS
    assert detail in verdict.detail


@pytest.mark.parametrize(
    ("text", "lengths", "stop"),
    [
        ("ab", [1, 1], ("b",)),
        ("ab", [1, 1], ("ab", "c")),
        ("aXbc", [1, 3], ("X",)),  # what the last token has beyond the stop string
        ("aé", [1, 0, 2], ("é",)),
        ("aaa", [1, 1, 1], ("aaa",)),
    ],
)
async def test_a_turn_may_end_with_the_token_that_completes_a_stop_string(
    text: str, lengths: list[int], stop: tuple[str, ...]
) -> None:
    sampled = replace(tokens("x" * len(lengths), STOP_STRING), byte_lengths=np.array(lengths, np.int32), ids=None)
    ended = Rollout(turns=(turn(text, STOP_STRING, sampled),))
    assert not ended.truncated
    assert (await judged(sealed(group(ended, sampling=SamplingParams(stop=stop))))).verdict.admitted


async def test_limits_of_age_and_clock_are_inclusive() -> None:
    for created_at in (NOW - 900, NOW + 600):
        assert (await judged(sealed(group(created_at=created_at)))).verdict.admitted


async def test_a_forged_origin_is_not_held_responsible() -> None:
    """The body names an honest victim; whoever handed it over answers for it."""
    body = encode_group(group(origin=identity(3).peer_id))
    result = await judged((body, AUTHOR.sign(b"swarm/v1/group\0", body)))
    assert (result.verdict.reason, result.origin) == (Reason.BAD_SIGNATURE, SENDER)
    assert Reason.BAD_SIGNATURE not in INNOCENT


@pytest.mark.parametrize("origin", [ME, "", "somebody", "12D3KooW" + "1" * 44])
async def test_an_origin_that_cannot_be(origin: str) -> None:
    body = encode_group(group(origin=PeerId(origin) or PeerId("-")))
    result = await judged((body, identity(9).sign(b"swarm/v1/group\0", body)))
    assert (result.verdict.reason, result.origin) == (Reason.WRONG_ORIGIN, SENDER)


async def test_a_changed_body_is_not_signed() -> None:
    good = signed()
    message = pb.RolloutGroup.FromString(good.body)
    message.rollouts[0].turns[0].text = "1"
    result = await judged((message.SerializeToString(), good.signature))
    assert result.verdict.reason is Reason.BAD_SIGNATURE


async def test_a_group_that_we_have_is_a_duplicate_and_costs_no_scoring() -> None:
    good, judge = signed(), EchoJudge()
    result = await judged(good, judge, known=[good.id])
    assert (result.verdict.reason, result.origin) == (Reason.DUPLICATE, AUTHOR.peer_id)
    assert judge.asked == 0


async def test_a_banned_origin_is_dropped_before_its_signature_is_checked_and_nobody_is_blamed() -> None:
    """Anybody can say that a group is theirs."""
    body = encode_group(group(origin=AUTHOR.peer_id))
    forged = (body, identity(5).sign(b"swarm/v1/group\0", body))
    result = await judged(forged, banned=[AUTHOR.peer_id])
    assert (result.verdict.reason, result.origin) == (Reason.BANNED, SENDER)
    assert Reason.BANNED in INNOCENT
    assert (await judged(signed(), banned=[SENDER])).verdict.admitted  # it only handed over what another signed


async def test_a_copy_costs_no_scoring_and_its_victim_nothing() -> None:
    """Who comes second is not told from who was robbed."""
    judge = EchoJudge()
    result = await judged(signed(), judge, copied="100% of its texts came before")
    assert (result.verdict.reason, result.verdict.detail) == (Reason.COPIED, "100% of its texts came before")
    assert judge.asked == 0
    assert Reason.COPIED in INNOCENT


async def test_what_was_refused_for_anything_else_is_not_compared() -> None:
    result = await judged(sealed(group(created_at=NOW - 901)), copied="a copy")
    assert result.verdict.reason is Reason.STALE
    assert (await judged(good := signed(), known=[good.id], copied="a copy")).verdict.reason is Reason.DUPLICATE


def test_every_reason_is_given_by_a_check_or_a_look_up() -> None:
    given = {reason for reason, _ in CHECKS} | {reason for _, reason in UNDECODABLE}
    later = {Reason.ADMITTED, Reason.DUPLICATE, Reason.COPIED, Reason.HELD_OUT, Reason.UNSCORABLE}
    assert given | later == set(Reason)


async def test_refused_groups_cost_neither_a_look_up_nor_scoring() -> None:
    judge = EchoJudge()
    for reason, bad, _ in REFUSED:
        if reason not in (Reason.UNKNOWN_TASK, Reason.UNSCORABLE):
            refused = sealed(bad)
            assert (await judged(refused, judge, known=[refused.id])).verdict.reason is reason
    assert judge.asked == 0


@dataclass
class OneQuestion(EchoJudge):
    prompt: str = ""

    async def task(self, ref: TaskRef) -> Task:
        return replace(await super().task(ref), prompt=self.prompt)

    async def score(self, task: Task, responses: Sequence[str]) -> list[Score]:
        raise AssertionError("a held-out question must not be scored")


async def test_held_out_questions_are_refused_before_they_are_scored() -> None:
    prompt = next(text for text in map(str, range(100)) if held_out(text))
    result = await judged(signed(), OneQuestion(prompt=prompt))
    assert (result.verdict.reason, result.origin) == (Reason.HELD_OUT, AUTHOR.peer_id)


class Slow(EchoJudge):
    async def task(self, ref: TaskRef) -> Task:
        raise TaskTimeout("making the task took more than 10 s")


async def test_a_task_that_cannot_be_made_in_time_is_unscorable() -> None:
    result = await judged(signed(), Slow())
    assert result.verdict.reason is Reason.UNSCORABLE
    assert result.verdict.reason not in INNOCENT


@given(st.integers(64, 2**29 - 1), st.binary(max_size=64))
def test_a_field_that_we_do_not_know_changes_nothing(number: int, payload: bytes) -> None:
    """A claimed reward is such a field: of bytes, appended under the signature."""
    plain = encode_group(group())
    body = plain + _varint(number << 3 | 2) + _varint(len(payload)) + payload
    result = asyncio.run(judged((body, AUTHOR.sign(b"swarm/v1/group\0", body))))
    assert result.verdict.admitted
    assert [score.reward for score in result.scores] == [1.0, 0.0]
    assert result.signed is not None
    assert encode_group(result.signed.group) == plain


def _varint(value: int) -> bytes:
    high, low = divmod(value, 128)
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


@given(st.data())
def test_nothing_that_a_peer_sends_escapes(data: st.DataObject) -> None:
    """Mutated bodies, signed as they are: past the signature, whatever they say."""
    body = bytearray(signed().body)
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    result = asyncio.run(judged((bytes(body), AUTHOR.sign(b"swarm/v1/group\0", bytes(body)))))
    assert result.verdict.reason in Reason
    assert result.verdict.admitted == (result.task is not None)
    if result.verdict.admitted:
        assert result.signed is not None
        assert len(result.scores) == len(result.signed.group.rollouts) > 0
