"""The text codec over tokenizers made here: byte-level, metaspace with byte fallback, and one of neither kind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from builders import task as build_task
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from node.engine.text import HfTextCodec, load_codec
from node.engine.token_bytes import byte_alphabet, token_bytes
from node.seed.tokenizer import make_tokenizer
from swarm.errors import PolicyError
from swarm.types import FinishReason, Task

MESSAGES = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CHAT = MESSAGES + "{% if add_generation_prompt %}[assistant]{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
DROPS_SYSTEM = CHAT.replace("[{{ m.role }}]{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% endif %}")


def wrap(tokenizer: Tokenizer, template: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"eos_token": "<eos>"} | special))
    fast.chat_template = template
    return fast


def byte_level(
    template: str | None = None, merges: tuple[tuple[str, str], ...] = (("a", "b"), ("ab", "c"))
) -> HfTextCodec:
    """Ids 0-255 are the bytes; then the merges; then <eos>, <user>, <think>, où."""
    return HfTextCodec(wrap(byte_level_backend(merges), template))


def byte_level_backend(merges: tuple[tuple[str, str], ...]) -> Tokenizer:
    vocabulary = {**byte_alphabet(), **{left + right: 256 + n for n, (left, right) in enumerate(merges)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<user>", special=True)])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("où", normalized=False)])
    return backend


EOS, USER, THINK, OU = 258, 259, 260, 261


def metaspace() -> HfTextCodec:
    """As Llama 2's: a space is put in front, characters without a token become byte tokens."""
    pieces = ["<unk>", "<s>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcxyz,.", "ab", "▁ab"]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    merges = [("a", "b"), ("▁", "ab")]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return HfTextCodec(wrap(backend, bos_token="<s>"))


def word_pieces() -> HfTextCodec:
    pieces = ["[UNK]", "<eos>", "swim", "##ming", "##s", "dog", "é"]
    backend = Tokenizer(models.WordPiece(vocab={piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    return HfTextCodec(wrap(backend))


BYTES, METASPACE, WORDS = byte_level(), metaspace(), word_pieces()


def reference(codec: HfTextCodec, ids: list[int]) -> str:
    text = codec._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def question(prompt: str) -> Task:
    return Task(ref=build_task().ref, prompt=prompt, answer="", difficulty="{}")


def test_encoding_is_canonical_and_ends_where_the_policy_did() -> None:
    assert BYTES.encode("abc!", FinishReason.STOP).tolist() == [257, ord("!"), EOS]
    assert BYTES.encode("abc!", FinishReason.LENGTH).tolist() == [257, ord("!")]
    assert BYTES.encode("", FinishReason.STOP).dtype == np.int32


def test_a_token_is_credited_with_the_characters_that_it_completes() -> None:
    ids = BYTES.encode("a🐝b", FinishReason.STOP)
    text, lengths = BYTES.decode(ids)
    assert text == "a🐝b"
    assert lengths.tolist() == [1, 0, 0, 0, 4, 1, 0]
    assert lengths.dtype == np.int32


@pytest.mark.parametrize(
    ("ids", "text", "lengths"),
    [
        ([0xFF, ord("a")], "\ufffda", [3, 1]),
        ([0xF0, 0x9F, ord("a")], "\ufffda", [0, 0, 4]),
        ([ord("a"), 0xF0, 0x9F], "a\ufffd", [1, 0, 3]),
        ([ord("a"), 0xF0, 0x9F, EOS], "a\ufffd", [1, 0, 3, 0]),
        ([0xF0, THINK], "\ufffd<think>", [0, 10]),
        ([EOS], "", [0]),
        ([], "", []),
        ([EOS, ord("a"), EOS, ord("b")], "ab", [0, 1, 0, 1]),
        ([999_999, ord("a")], "a", [0, 1]),
    ],
)
def test_what_is_not_utf8_is_replaced_and_still_adds_up(ids: list[int], text: str, lengths: list[int]) -> None:
    decoded, credited = BYTES.decode(np.array(ids, np.int32))
    assert decoded == text
    assert credited.tolist() == lengths


def test_added_tokens_are_their_content() -> None:
    ids = np.array([USER, THINK, OU], np.int32)
    text, lengths = BYTES.decode(ids)
    assert text == "<user><think>où"
    assert lengths.tolist() == [6, 7, 3]
    assert BYTES.encode("<think>où", FinishReason.LENGTH).tolist() == [THINK, OU]


def test_what_a_tokenizer_remembers_of_strangers_words_is_little() -> None:
    codec = HfTextCodec(make_tokenizer((), 256))
    letters = np.random.default_rng(0).integers(ord("!"), ord("~"), (12_000, 250), dtype=np.uint8)
    texts = [row.tobytes().decode() for row in letters]
    for text in texts[:100]:
        codec.encode(text, FinishReason.STOP)
    before = resident()
    for text in texts:
        codec.encode(text, FinishReason.STOP)
    assert resident() - before < 32 << 20  # 80 MiB as the library has it


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_nobodys_text_can_end_a_turn() -> None:
    ids = BYTES.encode("a<eos>b<user>", FinishReason.STOP)
    assert ids.tolist().count(EOS) == 1
    assert USER not in ids
    assert BYTES.decode(ids)[0] == "a<eos>b<user>"


def test_metaspace_and_byte_tokens() -> None:
    ids = METASPACE.encode("ab é", FinishReason.STOP)
    text, lengths = METASPACE.decode(ids)
    assert [METASPACE._tokenizer.convert_ids_to_tokens(int(i)) for i in ids] == [
        "▁ab",
        "▁",
        "<0xC3>",
        "<0xA9>",
        "<eos>",
    ]
    assert text == "ab é"
    assert lengths.tolist() == [2, 1, 0, 2, 0]


def test_only_one_leading_space_is_the_tokenizers_own() -> None:
    text, lengths = METASPACE.decode(METASPACE.encode("  a", FinishReason.LENGTH))
    assert text == "  a"
    assert lengths.tolist() == [0, 1, 1, 1]


def test_plain_metaspace_decoder() -> None:
    backend = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "▁a": 2, "<eos>": 3}, merges=[("▁", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    codec = HfTextCodec(wrap(backend))
    ids = codec.encode("a a", FinishReason.STOP)
    assert ids.tolist() == [2, 2, 3]
    text, lengths = codec.decode(ids)
    assert (text, lengths.tolist()) == ("a a", [1, 2, 0])


def test_any_other_decoder_is_asked_for_prefixes() -> None:
    assert token_bytes(WORDS._prompts) is None
    ids = WORDS.encode("swimmings dog é", FinishReason.STOP)
    text, lengths = WORDS.decode(ids)
    assert text == "swimmings dog é" == reference(WORDS, ids[:-1].tolist())
    assert lengths.tolist() == [4, 4, 1, 4, 3, 0]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)


@given(ANY_TEXT)
def test_text_comes_back(text: str) -> None:
    for codec in (BYTES, METASPACE):
        ids = codec.encode(text, FinishReason.STOP)
        decoded, lengths = codec.decode(ids)
        assert decoded == text
        assert int(lengths.sum()) == len(text.encode())
        assert lengths[-1] == 0


@given(st.lists(st.integers(0, 280), max_size=30))
def test_whatever_is_sampled_adds_up_and_is_what_the_tokenizer_says(ids: list[int]) -> None:
    for codec in (BYTES, METASPACE, WORDS):
        text, lengths = codec.decode(np.array(ids, np.int32))
        assert len(lengths) == len(ids)
        assert (lengths >= 0).all()
        assert int(lengths.sum()) == len(text.encode())
        kept = [token for token in ids if token != codec.eos_id]
        if "\ufffd" not in text and OU not in kept:  # byte-level decoders misread an added "où"
            assert text == reference(codec, kept)


# Ids from lengths ----------------------------------------------------------------------------------------------------


def retraced(codec: HfTextCodec, ids: list[int]) -> tuple[list[int] | None, str]:
    """What is found by text and lengths alone, and the text."""
    text, lengths = codec.decode(np.array(ids, np.int32))
    finish = FinishReason.STOP if ids[-1:] == [codec.eos_id] else FinishReason.LENGTH
    found = codec.retrace(text, lengths, finish)
    return (None if found is None else found.tolist()), text


@given(st.lists(st.sampled_from([*range(0x20, 0x7F), 256, 257, USER, THINK, OU]), max_size=30), st.booleans())
def test_whole_characters_tell_which_tokens_they_were_canonical_or_not(ids: list[int], ended: bool) -> None:
    ids = [*ids, *[EOS] * ended]
    assert retraced(BYTES, ids) == (ids, BYTES.decode(np.array(ids, np.int32))[0])


@given(st.lists(st.integers(0, 280), max_size=30))
def test_whatever_is_retraced_decodes_to_the_same(ids: list[int]) -> None:
    for codec in (BYTES, METASPACE):
        found, text = retraced(codec, ids)
        if found is not None:
            again, lengths = codec.decode(np.array(found, np.int32))
            assert again == text
            assert lengths.tolist() == codec.decode(np.array(ids, np.int32))[1].tolist()


@pytest.mark.parametrize(
    ("codec", "ids"),
    [
        (BYTES, [*"🐝".encode(), ord("a"), 256, EOS]),  # four tokens, one character
        (BYTES, [*"🐝ż".encode()]),
        (BYTES, [EOS]),
        (BYTES, []),
        (METASPACE, METASPACE.encode("ab é", FinishReason.STOP).tolist()),
        (METASPACE, METASPACE.encode("a b", FinishReason.LENGTH).tolist()),
    ],
)
def test_what_the_tokenizer_itself_would_write_is_found_where_bytes_do_not_tell(
    codec: HfTextCodec, ids: list[int]
) -> None:
    assert retraced(codec, ids)[0] == ids


@pytest.mark.parametrize(
    ("codec", "text", "lengths", "finish"),
    [
        (BYTES, "ab", [1], FinishReason.LENGTH),  # of another text
        (BYTES, "ab", [3], FinishReason.LENGTH),
        (BYTES, "abcd", [4], FinishReason.LENGTH),  # no token
        (BYTES, "ab", [0, 2], FinishReason.LENGTH),  # one token, which is said to be two
        (BYTES, "é", [1, 1], FinishReason.LENGTH),  # half a character
        (BYTES, "a", [1, 1], FinishReason.STOP),  # an end that has a byte
        (BYTES, "a\ufffd", [1, 0, 3], FinishReason.LENGTH),  # what was there is lost
        (BYTES, "a", [-1, 2], FinishReason.LENGTH),
        (WORDS, "dog", [3], FinishReason.LENGTH),  # not known what bytes its tokens have
    ],
)
def test_lengths_that_name_no_tokens(codec: HfTextCodec, text: str, lengths: list[int], finish: FinishReason) -> None:
    assert codec.retrace(text, np.array(lengths, np.int32), finish) is None


def test_prompt_through_the_chat_template() -> None:
    assert byte_level(CHAT).render("hi") == "[user]hi[assistant]"
    ids = byte_level("<user>{{ messages[0].content }}").prompt(question("abc"))
    assert ids.tolist() == [USER, 257]
    assert ids.dtype == np.int32


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (CHAT, "[system]Be brief.[user]hi[assistant]"),
        (NO_SYSTEM, "[user]Be brief.\n\nhi[assistant]"),
        (DROPS_SYSTEM, "Be brief.\n\nhi[assistant]"),
        (None, "Be brief.\n\nhi\n"),
    ],
)
def test_system_prompt_reaches_the_policy_under_any_template(template: str | None, rendered: str) -> None:
    codec = HfTextCodec(wrap(byte_level_backend(()), template), system_prompt="Be brief.")
    assert codec.render("hi") == rendered


def test_plain_prompts_begin_as_the_tokenizer_begins_them() -> None:
    assert METASPACE.render("ab") == "<s>ab\n"
    assert METASPACE.prompt(question("ab"))[0] == 1
    assert BYTES.prompt(question("ab")).tolist() == [256, ord("\n")]


def test_fingerprint_is_of_what_ids_mean() -> None:
    assert byte_level().fingerprint == byte_level(CHAT).fingerprint
    assert byte_level(merges=(("a", "b"),)).fingerprint != BYTES.fingerprint
    assert (
        HfTextCodec(wrap(byte_level_backend(()), eos_token="<user>")).fingerprint != byte_level(merges=()).fingerprint
    )
    padded = wrap(byte_level_backend((("a", "b"), ("ab", "c"))))
    padded.backend_tokenizer.enable_truncation(4)
    padded.backend_tokenizer.enable_padding(length=8)
    assert HfTextCodec(padded).fingerprint == BYTES.fingerprint
    assert len(HfTextCodec(padded).encode("!" * 9, FinishReason.LENGTH)) == 9


def test_vocabulary_includes_added_tokens() -> None:
    assert BYTES.vocab_size == 262
    assert BYTES.eos_id == EOS


def test_tokenizers_that_cannot_be_used() -> None:
    with pytest.raises(PolicyError, match="slow tokenizer"):
        HfTextCodec(object())
    with pytest.raises(PolicyError, match="no end-of-sequence"):
        HfTextCodec(PreTrainedTokenizerFast(tokenizer_object=byte_level_backend(())))
    with pytest.raises(PolicyError, match=r"'/nowhere/at/all'.*cannot be loaded"):
        load_codec("/nowhere/at/all")
