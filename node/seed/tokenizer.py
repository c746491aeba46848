"""The seed model's tokenizer: bytes, a few tags, and one token for each phrase that all questions of a family share.

Reasoning-gym's questions are long instructions around a few characters that matter. With their phrases as single tokens
a prompt is about 12 tokens instead of 255, and any other text still encodes, as bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from node.engine.token_bytes import byte_alphabet

PAD, EOS, USER, ASSISTANT = "<pad>", "<eos>", "<user>", "<assistant>"
SPECIAL = (PAD, EOS, USER, ASSISTANT)
#: Not special: they stay in the decoded text, where scorers look for them.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
#: Shorter ones would save little and match where they mean nothing.
MIN_PHRASE = 4

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}" + USER + "{{ message.content }}"
    "{% elif message.role == 'assistant' %}" + ASSISTANT + "{{ message.content }}" + EOS + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def make_tokenizer(
    phrases: Iterable[str], max_length: int, pairs: Sequence[tuple[str, str]] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level: 256 bytes, the merged `pairs` of ASCII characters (none in the built-in model), `SPECIAL`, `TAGS` and
    the phrases, in this order."""
    alphabet = sorted(byte_alphabet().items(), key=lambda item: item[1])
    vocabulary = dict(alphabet) | {a + b: len(alphabet) + rank for rank, (a, b) in enumerate(pairs)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(pairs)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    plain = dict.fromkeys([*TAGS, *phrases])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def common_pairs(texts: Iterable[str], n: int) -> list[tuple[str, str]]:
    """The n most frequent pairs of neighbouring letters or digits, ties in alphabetical order: what another tokenizer
    would have merged."""
    counts = Counter(
        pair for text in texts for pair in pairwise(text) if all(c.isascii() and c.isalnum() for c in pair)
    )
    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:n]


def common_phrases(texts: Sequence[str]) -> list[str]:
    """Substrings of at least `MIN_PHRASE` characters that all texts have in the same order: the longest one, then those
    on either side of it, and so on. In reading order; prefix and suffix are found as the first and the last."""
    phrase = _longest_common_substring(texts)
    if len(phrase) < MIN_PHRASE:
        return []
    parts = [text.partition(phrase) for text in texts]
    return [*common_phrases([p[0] for p in parts]), phrase, *common_phrases([p[2] for p in parts])]


def _longest_common_substring(texts: Sequence[str]) -> str:
    """The leftmost of the longest, by bisection over the length (a common substring contains shorter ones)."""
    shortest = min(texts, key=len)
    best, low, high = "", 1, len(shortest)
    while low <= high:
        length = (low + high) // 2
        found = _common_substring(shortest, texts, length)
        if found is None:
            high = length - 1
        else:
            best, low = found, length + 1
    return best


def _common_substring(shortest: str, texts: Sequence[str], length: int) -> str | None:
    candidates = (shortest[start : start + length] for start in range(len(shortest) - length + 1))
    return next((candidate for candidate in candidates if all(candidate in text for text in texts)), None)
