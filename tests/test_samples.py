from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from node.algorithms import (
    AdvantageConfig,
    ForeignConfig,
    GrpoAdvantage,
    GuidanceConfig,
    LearnerConfig,
    NoGuidance,
    ReceiverBaseline,
    RecOneside,
    SapoPlain,
    SpoAdvantage,
)
from node.experience import Experience
from node.rl.objective import Denominators
from node.rl.samples import RowPlan, build_rows
from swarm.types import (
    FinishReason,
    GroupId,
    PeerId,
    PolicyVersion,
    Role,
    Rollout,
    RolloutGroup,
    SampledTokens,
    SamplingParams,
    Task,
    TaskRef,
    Turn,
    VersionSpan,
)

STOP, LENGTH, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR
STOP_STRING = FinishReason.STOP_STRING
EOS, BOS, AB = 256, 257, 258


class ByteCodec:
    """A byte is a token; "ab" is one, too."""

    fingerprint = "bytes"
    eos_id = EOS
    vocab_size = 259

    def prompt(self, task: Task) -> np.ndarray:
        return np.array([BOS, *task.prompt.encode()], dtype=np.int32)

    def next_turn(self, message: str) -> np.ndarray:
        return np.array([*message.encode(), BOS], dtype=np.int32)

    def encode(self, text: str, finish: FinishReason) -> np.ndarray:
        ids = list(text.encode().replace(b"ab", b"\x00"))
        return np.array([AB if i == 0 else i for i in ids] + [EOS] * (finish is STOP), dtype=np.int32)

    def retrace(self, text: str, byte_lengths: np.ndarray, finish: FinishReason) -> np.ndarray | None:
        """One byte is that byte, two are "ab" or unknown, none is the end."""
        ends = np.cumsum(byte_lengths).tolist()
        pieces = [text.encode()[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if any(len(piece) > 1 and piece != b"ab" for piece in pieces):
            return None
        return np.array([AB if piece == b"ab" else piece[0] if piece else EOS for piece in pieces], dtype=np.int32)

    def decode(self, ids: np.ndarray) -> tuple[str, np.ndarray]:
        pieces = [b"" if i >= EOS and i != AB else b"ab" if i == AB else bytes([i]) for i in ids]
        return b"".join(pieces).decode("utf-8", "replace"), np.array([len(p) for p in pieces], dtype=np.int32)


def make_rollout(
    text: str, finish: FinishReason = STOP, *, ids: Sequence[int] | None = None, with_ids: bool = True, version: int = 0
) -> Rollout:
    array = ByteCodec().encode(text, finish) if ids is None else np.array(ids, dtype=np.int32)
    sampled = SampledTokens(
        logprobs=-np.arange(1, len(array) + 1, dtype=np.float32) / 10,
        byte_lengths=ByteCodec().decode(array)[1],
        versions=(VersionSpan(version=PolicyVersion(version), length=len(array)),),
        ids=array if with_ids else None,
    )
    return Rollout(turns=(Turn(role=Role.ASSISTANT, text=text, finish=finish, sampled=sampled),))


def make_group(
    rewards: Sequence[float],
    rollouts: Sequence[Rollout] | None = None,
    *,
    own: bool = True,
    value: float | None = None,
    scored: Sequence[bool] | None = None,
    tokenizer: str = "bytes",
    version: int = 0,
) -> Experience:
    ref = TaskRef(source="a", version="1", config="{}", seed=0, index=0)
    rollouts = rollouts or [make_rollout(f"answer {n}") for n in range(len(rewards))]
    return Experience(
        id=GroupId("c0ffee"),
        group=RolloutGroup(
            swarm="s",
            origin=PeerId("me" if own else "peer"),
            task=ref,
            rollouts=tuple(rollouts),
            model="m",
            tokenizer=tokenizer,
            sampling=SamplingParams(),
            created_at=0.0,
        ),
        task=Task(ref=ref, prompt="q?", answer="", difficulty="{}"),
        rewards=np.array(rewards, dtype=np.float32),
        scored=np.array(scored if scored is not None else [True] * len(rewards)),
        own=own,
        value=(0.5 if own else 0.0) if value is None else value,
        version=PolicyVersion(version),
        arrived_at=0.0,
    )


def build(
    *batch: Experience,
    advantage: AdvantageConfig = SpoAdvantage(),  # noqa: B008 (frozen)
    foreign: ForeignConfig = ReceiverBaseline(),  # noqa: B008 (frozen)
    guidance: GuidanceConfig = NoGuidance(),  # noqa: B008 (frozen)
    learner: LearnerConfig = LearnerConfig(),  # noqa: B008 (frozen)
    now: int = 5,
) -> RowPlan:
    return build_rows(batch, ByteCodec(), advantage, foreign, guidance, learner, PolicyVersion(now))


def test_an_own_rollout_keeps_what_was_sampled():
    rollouts = [make_rollout("xab", ids=[120, 97, 98, EOS], version=3), make_rollout("y", LENGTH, version=2)]
    plan = build(make_group([1, 0], rollouts), now=5)
    first, second = plan.rows
    assert first.prompt_ids.tolist() == [BOS, ord("q"), ord("?")]
    assert first.response_ids.tolist() == [120, 97, 98, EOS]
    assert first.byte_lengths.tolist() == [1, 1, 1, 0]
    assert first.behaviour is not None
    np.testing.assert_allclose(first.behaviour, [-0.1, -0.2, -0.3, -0.4])
    assert (first.own, first.peer, first.origin, first.reward, first.truncated) == (True, None, "me", 1.0, False)
    assert (first.staleness, second.staleness) == (2, 3)
    assert (second.response_ids.tolist(), second.truncated) == ([ord("y")], True)
    assert len(first) == 7


def test_a_response_that_a_stop_string_ended_is_whole_and_has_no_end_of_sequence():
    sampled = make_rollout("xab", STOP_STRING, ids=[120, 97, 98])
    mine, _ = build(make_group([1, 0], [sampled, make_rollout("y")])).rows
    (theirs,) = build(make_group([1], [sampled], own=False)).rows
    for row in (mine, theirs):
        assert (row.response_ids.tolist(), row.truncated) == ([120, 97, 98], False)
    (row,) = build(make_group([1], [make_rollout("xab", STOP_STRING)], own=False, tokenizer="other")).rows
    assert (row.response_ids.tolist(), row.byte_lengths.tolist(), row.truncated) == ([120, AB], [1, 2], False)


def test_own_advantages_are_whitened_around_the_frozen_value():
    plan = build(make_group([1], value=0.25), make_group([0], value=0.5))
    # 9 tokens each: mean .125, token-measure std .625 * sqrt(18/17).
    assert [row.advantage for row in plan.rows] == pytest.approx([np.sqrt(17 / 18), -np.sqrt(17 / 18)])
    assert plan.metrics["advantage_scale"] == pytest.approx(0.625 * np.sqrt(18 / 17))
    assert plan.metrics["calibration"] == pytest.approx(0.125)


def test_a_peers_success_is_worth_more_the_less_we_can():
    own = [make_group([1, 0]), make_group([1, 0])]
    for value in (0.0, 0.5):
        plan = build(*own, make_group([1, 1], own=False, value=value))
        foreign = [row for row in plan.rows if not row.own]
        expected = min((1 - value) / plan.metrics["advantage_scale"], 5)
        assert [row.advantage for row in foreign] == pytest.approx([expected] * 2)


def test_without_own_rollouts_a_peers_advantage_is_in_units_of_reward():
    plan = build(make_group([1, 0], own=False, value=0.25))
    assert [row.advantage for row in plan.rows] == [0.75]


def test_an_all_wrong_group_of_a_peer_is_not_trained_on():
    plan = build(make_group([0, 0], own=False))
    assert plan.rows == ()
    assert plan.denominators == Denominators(tokens=0, samples=0)
    assert plan.metrics["zero_advantage_share"] == 1.0


def test_rows_are_filtered_by_advantage_and_not_by_spread():
    plan = build(make_group([1, 1], value=0.1), make_group([0, 0], value=0.1), advantage=SpoAdvantage())
    assert len(plan.rows) == 4
    assert build(make_group([1, 1]), advantage=GrpoAdvantage()).rows == ()


def test_denominators_count_all_of_ours_and_what_peers_teach():
    solved = make_group([1, 1], value=1.0)
    plan = build(solved, make_group([1, 0]), make_group([1, 0], own=False, value=0.5))
    assert [row.own for row in plan.rows] == [True, True, False]
    assert plan.denominators == Denominators(tokens=5 * len("answer 0."), samples=5)


def test_a_peers_long_rollouts_weigh_nothing_where_they_teach_nothing_and_no_more_than_ours_where_they_do():
    ours = make_group([1, 0], [make_rollout("yes"), make_rollout("no")])
    own_tokens = len("yes.") + len("no.")
    for text, kept in (("x" * 1000, False), ("x" * (own_tokens - 1), True)):
        plan = build(ours, make_group([1, 0], [make_rollout(text), make_rollout("y" * 5000)], own=False))
        assert any(not row.own for row in plan.rows) is kept
        assert plan.denominators.tokens == own_tokens * (1 + kept)


def test_unscored_failed_and_empty_rollouts_are_no_evidence():
    rollouts = [make_rollout("a"), make_rollout("b"), make_rollout("c", ERROR), make_rollout("", LENGTH)]
    for own in (True, False):
        plan = build(make_group([1, 1, 1, 1], rollouts, own=own, scored=[True, False, True, True]))
        assert plan.denominators.samples == 1
        assert plan.metrics["rollouts_skipped"] == 3
    assert build(make_group([1, 1], own=False, scored=[False, False])).denominators.samples == 0


def test_an_empty_batch_has_no_rows():
    plan = build()
    assert plan.rows == ()
    assert (plan.denominators.tokens, plan.denominators.samples) == (0, 0)


def test_a_peers_ids_are_used_where_they_are_ours():
    plan = build(make_group([1], [make_rollout("xab", ids=[120, 97, 98, EOS])], own=False))
    (row,) = plan.rows
    assert row.response_ids.tolist() == [120, 97, 98, EOS]
    assert row.byte_lengths.tolist() == [1, 1, 1, 0]
    assert row.behaviour is None
    assert row.peer is not None
    np.testing.assert_allclose(row.peer.logprobs, [-0.1, -0.2, -0.3, -0.4])
    assert row.peer.byte_lengths.tolist() == [1, 1, 1, 0]


BYTES_OF_XAB = SampledTokens(
    logprobs=np.full(4, -0.5, dtype=np.float32),
    byte_lengths=np.array([1, 1, 1, 0], dtype=np.int32),
    versions=(VersionSpan(version=PolicyVersion(0), length=4),),
)


@pytest.mark.parametrize(
    "ids",
    [
        None,
        [120, 97, 99, EOS],  # another text
        [120, 97, 98, 98],  # no end
        [120, AB, EOS, EOS],  # two ends
        [120, EOS, AB, EOS],  # an end in the middle
        [120, 97, 98, 259],  # outside the vocabulary
        [120, 97, 98, -1],
    ],
)
def test_a_peers_ids_are_found_by_its_lengths_where_it_sent_none_that_can_be_used(ids: list[int] | None):
    sampled = replace(BYTES_OF_XAB, ids=None if ids is None else np.array(ids, dtype=np.int32))
    rollout = Rollout(turns=(Turn(role=Role.ASSISTANT, text="xab", finish=STOP, sampled=sampled),))
    (row,) = build(make_group([1], [rollout], own=False)).rows
    assert row.response_ids.tolist() == [120, 97, 98, EOS]
    assert row.byte_lengths.tolist() == [1, 1, 1, 0]
    assert row.peer is not None
    assert row.peer.byte_lengths.tolist() == [1, 1, 1, 0]


def test_a_peers_text_is_encoded_anew_where_its_lengths_name_no_tokens_of_ours():
    odd = replace(BYTES_OF_XAB, byte_lengths=np.array([2, 1, 0, 0], dtype=np.int32))
    rollout = Rollout(turns=(Turn(role=Role.ASSISTANT, text="xab", finish=STOP, sampled=odd),))
    (row,) = build(make_group([1], [rollout], own=False)).rows
    assert row.response_ids.tolist() == [120, AB, EOS]
    assert row.byte_lengths.tolist() == [1, 2, 0]


def test_a_peer_with_another_tokenizer_is_encoded_anew():
    rollouts = [make_rollout("xab", ids=[120, 97, 98, EOS]), make_rollout("yab", LENGTH, ids=[121, 97, 98])]
    first, second = build(make_group([1, 1], rollouts, own=False, tokenizer="other")).rows
    assert first.response_ids.tolist() == [120, AB, EOS]
    assert second.response_ids.tolist() == [121, AB]


def test_a_peers_staleness_is_counted_from_its_arrival():
    (row,) = build(make_group([1], [make_rollout("a", version=99)], own=False, version=2), now=5).rows
    assert row.staleness == 3


def test_the_same_text_of_a_peer_counts_once_where_the_rule_says_so():
    group = make_group([1, 1, 1, 0], [make_rollout(t) for t in ("a", "a", "b", "c")], own=False)
    assert [row.response_ids[0] for row in build(group).rows] == [ord("a"), ord("b")]
    assert len(build(group, foreign=RecOneside()).rows) == 3
    assert len(build(group, foreign=SapoPlain()).rows) == 4


def test_what_a_peer_made_unusable_is_skipped():
    turn = make_rollout("a").turns[0]
    wrong_lengths = replace(BYTES_OF_XAB, byte_lengths=np.array([1, 1, 2, 0], dtype=np.int32))
    rollouts = [
        Rollout(turns=(turn, Turn(role=Role.TOOL, text="t"), turn)),
        Rollout(turns=(Turn(role=Role.ASSISTANT, text="a"),)),
        Rollout(turns=()),
        Rollout(turns=(Turn(role=Role.ASSISTANT, text="xab", finish=STOP, sampled=wrong_lengths),)),
        make_rollout("long" * 10),
        make_rollout("good"),
    ]
    plan = build(make_group([1] * 6, rollouts, own=False), learner=LearnerConfig(tokens_per_micro_batch=20))
    assert [row.response_ids.tolist() for row in plan.rows] == [[*b"good", EOS]]
    assert plan.metrics["rollouts_skipped"] == 5


def test_an_own_group_that_cannot_be_trained_on_is_a_bug():
    turn = make_rollout("a").turns[0]
    with pytest.raises(ValueError, match="own group c0ffee: rollout 0 is not one sampled assistant turn"):
        build(make_group([1], [Rollout(turns=(turn, turn))]))
    with pytest.raises(ValueError, match="own group c0ffee: rollout 0 has no token ids"):
        build(make_group([1], [make_rollout("a", with_ids=False)]))


def test_metrics_describe_both_sides():
    own = make_group([1, 0], [make_rollout("abab"), make_rollout("a", LENGTH)], value=0.25)
    metrics = build(own, make_group([1], own=False, version=1), now=4).metrics
    assert metrics["own_rollouts"] == 2
    assert metrics["own_reward"] == 0.5
    assert metrics["own_length"] == 2.0
    assert metrics["own_staleness"] == 4.0
    assert metrics["own_truncated_share"] == 0.5
    assert metrics["calibration"] == 0.25
    assert (metrics["foreign_rollouts"], metrics["foreign_reward"], metrics["foreign_staleness"]) == (1, 1.0, 3.0)
    assert "foreign_reward" not in build(own).metrics
