"""How a batch is divided among devices, and that it comes through a pipe as it was."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from node.algorithms import AbsoluteGate, LearnerConfig, M2po, RecOneside
from node.engine.ranks.messages import LENGTHS, MAX_HEAD_BYTES, BrokenMessage, Message, frame_length, parsed
from node.engine.ranks.transit import rules_head, rules_of, share_message, share_of, updated_head, updated_of
from node.engine.updates import Rules, Share, Updated
from node.rl.lessons import Lesson, together
from node.rl.objective import Denominators
from node.rl.samples import PeerTokens, TokenRow
from node.rl.split import split
from swarm.types import PeerId


def row(prompt: int, length: int, *, own: bool = True, guided: bool = False) -> TokenRow:
    """`prompt` tokens of prompt, all of them that number."""
    ids = np.arange(length, dtype=np.int32)
    peer = PeerTokens(
        logprobs=np.array([-0.5, -1.5], dtype=np.float32), byte_lengths=np.array([length, length], dtype=np.int32)
    )
    return TokenRow(
        prompt_ids=np.full(prompt, prompt, dtype=np.int32),
        response_ids=ids,
        byte_lengths=2 + 0 * ids,
        behaviour=-0.25 * ids.astype(np.float32) if own else None,
        peer=None if own else peer,
        advantage=0.1 * length,
        reward=1 / 3,
        own=own,
        origin=PeerId("me" if own else "peer"),
        staleness=length % 3,
        truncated=length % 2 == 0,
        guidance=0.5 * ids.astype(np.float32) if guided else None,
    )


def lengths(parts: list[tuple[TokenRow, ...]]) -> list[list[tuple[int, int]]]:
    return [[(len(each.prompt_ids), len(each.response_ids)) for each in part] for part in parts]


def test_one_device_has_all_in_their_order() -> None:
    rows = [row(2, 5), row(3, 1), row(2, 9)]
    assert split(rows, 1) == [tuple(rows)]


def test_rollouts_of_a_prompt_stay_together_and_the_largest_go_first() -> None:
    """Tokens with their prompts: 2 x (4 + 4) = 16 of the first, 5 + 9 = 14, 2 + 3 = 5; 35 in all."""
    rows = [row(4, 4), row(5, 9), row(4, 4), row(2, 3)]
    assert lengths(split(rows, 2)) == [[(4, 4), (4, 4)], [(5, 9), (2, 3)]]


def test_a_prompt_with_more_than_a_devices_part_is_cut() -> None:
    rows = [row(2, 6) for _ in range(5)]
    assert [len(part) for part in split(rows, 2)] == [3, 2]
    assert [len(part) for part in split(rows, 5)] == [1] * 5


def test_a_device_may_have_nothing() -> None:
    assert [len(part) for part in split([row(2, 6)], 3)] == [1, 0, 0]
    assert split([], 2) == [(), ()]


def test_a_share_comes_through_as_it_was() -> None:
    rows = (row(2, 3), row(2, 4, guided=True), row(6, 2, own=False), row(1, 7))
    share = Share(rows=rows, denominators=Denominators(tokens=40, samples=6), staleness=1 / 7, scale=0.3, lr_scale=0.5)
    frame = share_message(share, {"op": "step", "version": 3}).frame()
    assert frame_length(frame) == len(frame)
    message = parsed(frame)
    assert (message.head["op"], message.head["version"]) == ("step", 3)
    there = share_of(message)
    for name in ("denominators", "staleness", "scale", "lr_scale"):
        assert getattr(there, name) == getattr(share, name)
    for ours, theirs in zip(rows, there.rows, strict=True):
        for field in fields(TokenRow):
            if field.name != "peer":
                np.testing.assert_equal(getattr(theirs, field.name), getattr(ours, field.name))
        assert (theirs.peer is None) == (ours.peer is None)
        if ours.peer is not None and theirs.peer is not None:
            np.testing.assert_array_equal(theirs.peer.logprobs, ours.peer.logprobs)
            np.testing.assert_array_equal(theirs.peer.byte_lengths, ours.peer.byte_lengths)


def test_an_empty_share_comes_through() -> None:
    share = Share(rows=(), denominators=Denominators(tokens=1, samples=1), staleness=0.0, scale=1.0)
    assert share_of(parsed(share_message(share, {}).frame())).rows == ()


def test_rules_and_results_come_through_as_they_were() -> None:
    rules = Rules(
        objective=M2po(budget=0.1),
        foreign=RecOneside(floor=0.7),
        foreign_gate=AbsoluteGate(max_bits_per_byte=3.0),
        learner=LearnerConfig(lr=3e-4, devices=(0, 2)),
        temperature=0.8,
        autocast=True,
    )
    assert rules_of(parsed(Message(head=rules_head(rules)).frame()).head) == rules
    lessons = {PeerId("a"): Lesson(learned=0.1, refused=0.2, gated=3)}
    updated = Updated(changed=False, metrics={"loss": 1 / 3, "grad_norm": float("inf")}, lessons=lessons)
    assert updated_of(parsed(Message(head=updated_head(updated)).frame()).head) == updated


def test_lessons_of_parts_add_up() -> None:
    first = {PeerId("a"): Lesson(learned=1.0, refused=0.5, gated=1), PeerId("b"): Lesson(learned=0, refused=0, gated=0)}
    second = {PeerId("a"): Lesson(learned=0.25, refused=0.0, gated=2)}
    assert together([first, second]) == {
        "a": Lesson(learned=1.25, refused=0.5, gated=3),
        "b": Lesson(learned=0, refused=0, gated=0),
    }


def test_what_is_no_message_is_refused() -> None:
    assert frame_length(b"\0\0\0") is None
    with pytest.raises(BrokenMessage, match="bytes"):
        frame_length(LENGTHS.pack(MAX_HEAD_BYTES + 1, 0))
    with pytest.raises(BrokenMessage, match="no JSON object"):
        parsed(LENGTHS.pack(2, 0) + b"[]")
    with pytest.raises(BrokenMessage, match="no JSON:"):
        parsed(LENGTHS.pack(2, 0) + b"{]")
