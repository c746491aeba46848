"""Copies are found, whoever sends them and however he calls them; what is only alike by chance is none."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from swarm.near_duplicates import (
    COPIED_SHARE,
    MAX_BYTES,
    MAX_GROUPS_PER_TASK,
    MIN_BYTES,
    SKETCH,
    NearDuplicates,
    shared,
)
from swarm.types import FinishReason, Role, Rollout, RolloutGroup, Turn
from tests.builders import group, identity, task_ref

VICTIM, THIEF = identity(1).peer_id, identity(2).peer_id


def prose(seed: int, words: int = 200) -> str:
    """About 1 kB for 200 words."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 6))) for _ in range(words))


def of(*texts: str, origin: str = VICTIM, index: int = 0) -> RolloutGroup:
    rollouts = [Rollout(turns=(Turn(role=Role.ASSISTANT, text=t, finish=FinishReason.STOP),)) for t in texts]
    return group(*rollouts, ref=task_ref(index), origin=origin)  # type: ignore[arg-type]


TEXTS = [prose(seed) for seed in range(8)]


def knowing(*groups: RolloutGroup) -> NearDuplicates:
    memory = NearDuplicates(salt=1)
    for one in groups:
        memory.remember(one)
    return memory


def test_an_origin_cannot_send_its_responses_again() -> None:
    memory = knowing(of("7", "8", "seven"))
    assert memory.complaint(of("seven", "7", "8")) == "the same responses to the same task came from it before"
    assert memory.complaint(of("7", "8", "seven", "7")) is None
    assert memory.complaint(of("7", "8seven", "")) is None
    assert memory.complaint(of("7", "8", "seven", index=1)) is None


def test_short_texts_are_nobodys() -> None:
    short = "x" * (MIN_BYTES - 1)
    assert knowing(of("7", short)).complaint(of("7", short, origin=THIEF)) is None


def test_a_long_copy_is_found_whoever_sends_it_under_whatever_id() -> None:
    memory = knowing(of(*TEXTS))
    assert memory.complaint(of(*TEXTS, origin=THIEF)) == "100% of its texts came before, for the same task"
    assert memory.complaint(of(*TEXTS[4:], *TEXTS[:4], origin=THIEF)) is not None
    assert memory.complaint(of(*TEXTS[:2], origin=THIEF)) is not None
    assert memory.complaint(of(*TEXTS, origin=THIEF, index=1)) is None  # to another task it is not even an answer


def test_a_retouched_copy_is_found_and_a_group_of_its_own_is_not() -> None:
    memory = knowing(of(*TEXTS))
    retouched = [f"Well, {text[:500]}?{text[501:]}" for text in TEXTS]
    assert memory.complaint(of(*retouched, origin=THIEF)) is not None
    assert memory.complaint(of(*(prose(seed) for seed in range(100, 108)), origin=THIEF)) is None
    half = [*TEXTS[:4], *(prose(seed) for seed in range(100, 104))]
    assert memory.complaint(of(*half, origin=THIEF)) is None
    # Two honest nodes that begin alike and go on differently.
    alike = [text[: len(text) // 2] + prose(200 + i, 100) for i, text in enumerate(TEXTS)]
    assert memory.complaint(of(*alike, origin=THIEF)) is None


def test_the_estimate_is_the_share_of_common_shingles() -> None:
    memory = NearDuplicates(salt=1)
    whole = memory._sketch(of(*TEXTS))
    for copies in range(9):
        mixed = memory._sketch(of(*TEXTS[:copies], *(prose(100 + i) for i in range(8 - copies))))
        assert len(mixed) == SKETCH
        assert shared(mixed, whole) == pytest.approx(copies / 8, abs=0.13)  # three standard deviations of 128 draws


def test_a_text_that_repeats_itself_is_still_like_itself() -> None:
    memory = knowing(of("na " * 500 + prose(1, 30)))
    assert memory.complaint(of("na " * 500 + prose(1, 30), origin=THIEF)) is not None
    assert memory.complaint(of("na " * 500 + prose(2, 30), origin=THIEF)) is None


def test_texts_without_end_cost_no_more_than_their_beginning() -> None:
    memory = NearDuplicates(salt=1)
    begun = prose(1, 2000)
    assert len(begun.encode()) > MAX_BYTES
    np.testing.assert_array_equal(memory._sketch(of(begun)), memory._sketch(of(begun[:MAX_BYTES])))


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    memory = NearDuplicates(salt=1, max_groups=4, max_digests=4)
    for index in range(6):
        memory.remember(of(prose(index), index=index))
    assert (len(memory._digests), memory._num_sketches, len(memory._sketches)) == (4, 4, 4)
    assert memory.complaint(of(prose(1), index=1)) is None
    assert memory.complaint(of(prose(2), index=2)) is not None
    memory = NearDuplicates(salt=1)
    for seed in range(3 * MAX_GROUPS_PER_TASK):
        memory.remember(of(prose(seed)))
    assert memory._num_sketches == len(next(iter(memory._sketches.values()))) == MAX_GROUPS_PER_TASK


def test_hashes_cannot_be_foreseen() -> None:
    sketches = [NearDuplicates()._sketch(of(*TEXTS)) for _ in range(2)]
    assert shared(*sketches) < COPIED_SHARE
