"""A second turn appended to the tokens of the first is what the chat template makes of the whole conversation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from node.engine.text import SENTINEL, HfTextCodec
from node.engine.token_bytes import byte_alphabet
from node.seed.tokenizer import CHAT_TEMPLATE, make_tokenizer
from swarm.errors import PolicyError
from swarm.types import FinishReason, Task
from tests.builders import task_ref

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "<|begin|>{% for m in messages %}<|header|>{{ m.role }}<|/header|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
#: A space on either side of the assistant's words, end-of-sequence after them, none after the user's.
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
#: Earlier turns of the assistant lose their thoughts, the last one keeps them.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
#: Turns end in a token that is not end-of-sequence.
OTHER_END = CHATML.replace("<|im_end|>", "<|end|>")
SYSTEM_LAST = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{% if loop.last %}{{ system }}|{% endif %}{{ m.content }}"
    "[/INST]{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
)


def byte_level(template: str | None, special: Sequence[str], eos: str) -> PreTrainedTokenizerFast:
    """Every byte a token, with merges that newlines and spaces take part in."""
    pairs = [("Ċ", "Ċ"), ("Ġ", "h"), ("h", "i"), ("Ġh", "i"), ("Ċ", "h")]
    vocabulary = {**byte_alphabet(), **{left + right: 256 + n for n, (left, right) in enumerate(pairs)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return wrapped(backend, template, eos)


def metaspace(template: str | None, special: Sequence[str], eos: str) -> PreTrainedTokenizerFast:
    """A space is put in front of a text, but not of what follows a special token in it."""
    vocabulary = {piece: n for n, piece in enumerate(["<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz?!.[]|/INST\n"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return wrapped(backend, template, eos)


def wrapped(backend: Tokenizer, template: str | None, eos: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)
    fast.chat_template = template
    return fast


def seed(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(("Spell ", " backward"), 256)
    tokenizer.chat_template = template
    return tokenizer


MESSAGES = ["hi there", "Spell it backward", "hi\n\nhi?", ""]
IM, HEADERS = ("<|im_start|>", "<|im_end|>"), ("<|begin|>", "<|header|>", "<|/header|>", "<|eot|>")


def continued(codec: HfTextCodec, question: str, answer: str, message: str) -> list[int]:
    """Token in, token out: the answer as it was sampled, and the next turn behind it."""
    asked = codec.prompt(Task(ref=task_ref(), prompt=question, answer="", difficulty="{}"))
    return np.concatenate([asked, codec.encode(answer, FinishReason.STOP), codec.next_turn(message)]).tolist()


def whole(tokenizer: PreTrainedTokenizerFast, question: str, answer: str, message: str) -> list[int]:
    """What the template makes of the conversation, tokenised in one piece."""
    roles = ("user", "assistant", "user")
    conversation = [{"role": r, "content": c} for r, c in zip(roles, (question, answer, message), strict=True)]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "tokenizer",
    [
        seed(),
        byte_level(CHATML, IM, "<|im_end|>"),
        byte_level(LLAMA_3, HEADERS, "<|eot|>"),
    ],
    ids=["seed", "chatml", "llama 3"],
)
@pytest.mark.parametrize("message", MESSAGES)
def test_it_is_the_conversation_that_the_template_renders(tokenizer: PreTrainedTokenizerFast, message: str) -> None:
    codec = HfTextCodec(tokenizer)
    turn = codec.next_turn(message)
    assert turn.dtype == np.int32
    assert codec.eos_id != turn[0]
    assert continued(codec, "hi?", "it is hi", message) == whole(tokenizer, "hi?", "it is hi", message)


@pytest.mark.parametrize(
    ("template", "special", "eos", "ends_before"),
    [(CHATML, IM, "<|im_end|>", 1), (SYSTEM_LAST, ("</s>",), "</s>", 0)],
    ids=["chatml", "mistral"],
)
@pytest.mark.parametrize("message", MESSAGES)
def test_it_does_not_begin_as_a_text_does(
    template: str, special: tuple[str, ...], eos: str, ends_before: int, message: str
) -> None:
    """Where a text begins with a space of the tokenizer's own, what follows end-of-sequence does not. `ends_before`:
    end-of-sequence tokens in front of the assistant's."""
    tokenizer = metaspace(template, special, eos)
    codec = HfTextCodec(tokenizer)
    expected = whole(tokenizer, "hi?", "it is hi", message)
    ends = [position for position, token in enumerate(expected) if token == codec.eos_id]
    assert codec.next_turn(message).tolist() == expected[ends[ends_before] + 1 :]


def text_of(codec: HfTextCodec, ids: np.ndarray) -> str:
    return codec._decode_all(ids.tolist())


@pytest.mark.parametrize(
    ("template", "special", "eos", "expected"),
    [
        (CHATML, IM, "<|im_end|>", "\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (THINKS, IM, "<|im_end|>", "\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>"),
        (LLAMA_2, ("<s>", "</s>"), "</s>", "<s>[INST] hi [/INST]"),
        (
            OTHER_END,
            ("<|im_start|>", "<|end|>", "</s>"),
            "</s>",
            "<|end|>\n<|im_start|>user\nhi<|end|>\n<|im_start|>assistant\n",
        ),
        (None, ("</s>",), "</s>", "hi\n"),
    ],
    ids=["chatml", "thoughts are dropped", "a space before the end", "another token ends turns", "no template"],
)
def test_end_of_sequence_is_not_written_twice(
    template: str | None, special: tuple[str, ...], eos: str, expected: str
) -> None:
    codec = HfTextCodec(byte_level(template, special, eos))
    assert text_of(codec, codec.next_turn("hi")) == expected


def test_without_a_template_turns_are_lines() -> None:
    tokenizer = seed(None)
    expected = tokenizer.backend_tokenizer.encode("hi?\nit is hi<eos>hi there\n", add_special_tokens=False).ids
    assert continued(HfTextCodec(tokenizer), "hi?", "it is hi", "hi there") == expected


def test_the_system_prompt_is_where_the_template_puts_it() -> None:
    """Some templates repeat it in front of the newest message."""
    codec = HfTextCodec(byte_level(SYSTEM_LAST, ("</s>",), "</s>"), system_prompt="Be brief.")
    assert text_of(codec, codec.next_turn("hi")) == "[INST]Be brief.|hi[/INST]"


def test_a_message_cannot_pass_for_the_turn_before_it() -> None:
    codec = HfTextCodec(byte_level(CHATML, IM, "<|im_end|>"))
    assert f"user\n{SENTINEL}<|im_end|>" in text_of(codec, codec.next_turn(SENTINEL))


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ messages[-1].content }}", "the assistant's first one is not in it"),
        ("{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}?", "one turn only"),
    ],
)
def test_a_template_of_one_turn_is_refused(template: str, complaint: str) -> None:
    with pytest.raises(PolicyError, match=f"does not render a second turn: .*{complaint}"):
        HfTextCodec(seed(template)).next_turn("hi")
