"""Where a stop string ends a turn: exact in bytes, whatever the tokens are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine.stop import end_at_stop
from node.engine.text import HfTextCodec
from node.seed.tokenizer import make_tokenizer
from swarm.types import FinishReason, end_of_stop

CODEC = HfTextCodec(make_tokenizer(("ab\n", "\nc"), 256))


def ids_of(text: str) -> np.ndarray:
    return CODEC.encode(text, FinishReason.STOP)


@pytest.mark.parametrize(
    ("text", "stop", "end"),
    [
        ("abc", (), None),
        ("abc", ("d",), None),
        ("abc", ("a",), 1),
        ("abc", ("bc",), 3),
        ("aéb", ("é",), 3),  # ends in its second byte
        ("é", ("e", "é"), 2),
        ("abcd", ("abcd", "bc"), 3),  # the one that ends first, not the one that begins first
        ("xax", ("x",), 1),
    ],
)
def test_the_stop_string_that_ends_first_counts(text: str, stop: tuple[str, ...], end: int | None) -> None:
    assert end_of_stop(text, stop) == end
    assert end_at_stop(ids_of(text), CODEC, stop) == end


def test_a_token_is_kept_whole() -> None:
    ids = ids_of("x<answer>y")
    assert CODEC.decode(ids)[1].tolist() == [1, 8, 1, 0]
    assert [end_at_stop(ids, CODEC, (stop,)) for stop in ("x", "<", "ans", "x<", "r>y", "y")] == [1, 2, 2, 2, 3, 3]


def test_a_stop_string_may_span_tokens_and_begin_within_one() -> None:
    ids = ids_of("ab\n\nc")
    assert len(ids) == 3
    assert end_at_stop(ids, CODEC, ("\n\n",)) == 2
    assert end_at_stop(ids, CODEC, ("\n",)) == 1


def test_what_is_not_utf8_yet_ends_nothing() -> None:
    ids = np.array([0xC3, 0xA9, 0xC3, ord("!")], np.int32)  # "é", then half of another
    assert end_at_stop(ids[:1], CODEC, ("é",)) is None
    assert end_at_stop(ids, CODEC, ("é",)) == 2
    assert end_at_stop(ids, CODEC, ("!",)) == 4


def test_nothing_sampled_completes_nothing() -> None:
    assert end_at_stop(np.empty(0, np.int32), CODEC, ("a",)) is None
    assert end_at_stop(np.array([CODEC.eos_id], np.int32), CODEC, ("a",)) is None


PIECES = ["a", "b", "\n", "é", "🐝"]


def any_stop(pieces: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.lists(st.sampled_from(pieces), min_size=1, max_size=3).map("".join), max_size=3)


TOKENS = [*(byte for piece in PIECES for byte in piece.encode()), *range(256, CODEC.vocab_size)]


@given(st.lists(st.sampled_from(TOKENS), max_size=20), any_stop(PIECES))
def test_it_is_the_shortest_beginning_that_has_one(sampled: list[int], stop: list[str]) -> None:
    ids = np.array(sampled, np.int32)
    beginnings = (CODEC.decode(ids[:length])[0] for length in range(1, len(ids) + 1))
    lengths = (length for length, text in enumerate(beginnings, 1) if any(piece in text for piece in stop))
    assert end_at_stop(ids, CODEC, stop) == next(lengths, None)


@given(st.lists(st.sampled_from(TOKENS), max_size=20), any_stop([*PIECES, "\ufffd"]))
def test_what_is_left_is_completed_by_its_last_token(sampled: list[int], stop: list[str]) -> None:
    """As those who receive it check, even where the cut leaves half a character at the end."""
    ids = np.array(sampled, np.int32)
    length = end_at_stop(ids, CODEC, stop)
    if length is not None:
        text, byte_lengths = CODEC.decode(ids[:length])
        end = end_of_stop(text, stop)
        assert end is not None
        assert end > int(byte_lengths[:-1].sum())
