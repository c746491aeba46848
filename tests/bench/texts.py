"""Texts to measure with, and how a policy would have cut them into tokens.

Three kinds: digits (a sum worked out), words (the documentation that Python comes with), code (its standard library).
Three tokenizations: the built-in model's (a character a token), four bytes a token, and byte-pair encoding with a
vocabulary that is trained here on the same library. Log-probabilities are drawn; on the wire two bytes are two bytes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from swarm.types import (
    FinishReason,
    PeerId,
    PolicyVersion,
    Role,
    Rollout,
    RolloutGroup,
    SampledTokens,
    SamplingParams,
    TaskRef,
    Turn,
    VersionSpan,
)

VOCABULARY = 32_000
LIBRARY_FILES = 160
"""Of the standard library, the largest modules but the tables: what the vocabulary is trained on."""
SURPRISE = 0.15
"""Of drawn log-probabilities: -SURPRISE x^2 with x exponential, so that most tokens are nearly certain and the mean is
-0.3 nats."""


def digits(rng: random.Random, size: int) -> str:
    """A sum, worked out step by step."""
    text, total = "", rng.randint(1, 99)
    while len(text) < size:
        term = rng.randint(1, 999)
        text += f"{total} + {term} = {total + term}\n"
        total = (total + term) % 9973
    return text[:size]


def words(rng: random.Random, size: int) -> str:
    return _slice(_prose(), rng, size)


def code(rng: random.Random, size: int) -> str:
    return _slice(_library()[0], rng, size)


KINDS: Mapping[str, Callable[[random.Random, int], str]] = {"digits": digits, "words": words, "code": code}
"""Kind of text -> (randomness, bytes) -> a text of so many ASCII characters."""


def _slice(corpus: str, rng: random.Random, size: int) -> str:
    start = rng.randrange(len(corpus) - size)
    return corpus[start : start + size]


@cache
def _prose() -> str:
    from pydoc_data.topics import topics

    return _ascii("\n".join(topics.values()))


@cache
def _library() -> Sequence[str]:
    """All of the modules as one text, and each by itself."""
    found = (path for path in Path(re.__file__).parents[1].glob("*.py") if path.stat().st_size < 200_000)
    largest = sorted(found, key=lambda path: (-path.stat().st_size, path.name))[:LIBRARY_FILES]
    texts = [_ascii(path.read_text(errors="replace")) for path in largest]
    return ["\n".join(texts), *texts]


def _ascii(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


# Tokens ---------------------------------------------------------------------------------------------------------------

Cut = Callable[[str], tuple[Sequence[int], Sequence[int]]]
"""An ASCII text -> token ids, and how many bytes each token has."""


def characters(text: str) -> tuple[Sequence[int], Sequence[int]]:
    """As the built-in model: 256 bytes come first in its vocabulary."""
    return list(text.encode()), [1] * len(text)


def fours(text: str) -> tuple[Sequence[int], Sequence[int]]:
    """Four bytes a token, of a vocabulary of 128,000 that nobody trained."""
    pieces = [text[i : i + 4] for i in range(0, len(text), 4)]
    return [int.from_bytes(piece.encode()) % 128_000 for piece in pieces], [len(piece) for piece in pieces]


def pieces(text: str) -> tuple[Sequence[int], Sequence[int]]:
    """Byte-pair encoding."""
    encoding = trained().encode(text)
    return encoding.ids, [end - start for start, end in encoding.offsets]


CUTS: Mapping[str, Cut] = {"characters": characters, "4 bytes": fours, "BPE": pieces}
ROOM: Mapping[str, int] = {"characters": 1, "4 bytes": 4, "BPE": 16}
"""Bytes of text that are surely enough for so many tokens, per token."""


@cache
def trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def corpus() -> Iterator[str]:
        yield from _library()[1:]
        yield _prose()

    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


# Groups ---------------------------------------------------------------------------------------------------------------


def make_rollout(rng: random.Random, text: str, cut: Cut, tokens: int, *, ids: bool) -> Rollout:
    """The first `tokens` tokens of `text`, cut off by the token limit."""
    numbers, lengths = cut(text)
    numbers, lengths = numbers[:tokens], lengths[:tokens]
    draws = np.random.default_rng(rng.getrandbits(32)).exponential(size=len(lengths))
    sampled = SampledTokens(
        logprobs=(-SURPRISE * draws**2).astype(np.float32),
        byte_lengths=np.array(lengths, np.int32),
        versions=(VersionSpan(version=PolicyVersion(1000), length=len(lengths)),),
        ids=np.array(numbers, np.int32) if ids else None,
    )
    turn = Turn(role=Role.ASSISTANT, text=text[: sum(lengths)], finish=FinishReason.LENGTH, sampled=sampled)
    return Rollout(turns=(turn,))


def make_group(
    rng: random.Random,
    *,
    origin: PeerId,
    swarm: str,
    task: TaskRef,
    rollouts: int,
    tokens: int,
    kind: str = "words",
    cut: str = "4 bytes",
    ids: bool = False,
    created_at: float = 0.0,
) -> RolloutGroup:
    """`rollouts` different texts of `tokens` tokens each."""
    texts = (KINDS[kind](rng, ROOM[cut] * tokens) for _ in range(rollouts))
    return RolloutGroup(
        swarm=swarm,
        origin=origin,
        task=task,
        rollouts=tuple(make_rollout(rng, text, CUTS[cut], tokens, ids=ids) for text in texts),
        model="qwen3-0123456789abcdef0123456789abcdef",
        tokenizer="bpe-0123456789abcdef0123456789abcdef",
        sampling=SamplingParams(max_new_tokens=tokens),
        created_at=created_at,
    )
