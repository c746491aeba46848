"""How often a reader with the same tokenizer finds a peer's token ids, of which only text and byte lengths travel."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from node.engine.text import HfTextCodec
from swarm.types import FinishReason
from tests.bench.texts import KINDS, ROOM, trained

EOS = "<|end|>"
FOREIGN = "漢字かな交じり文привет🐝👩‍🚀éß€"
"""One character in eight of "mixed": several bytes each, which this vocabulary has no tokens for."""
DROPOUT = (0.0, 0.1)
"""Of merges that a tokenizer would make (Provilkov et al. 2020, arXiv 1910.13267): a policy does not always write as it
does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    turns: float
    """Share in which all ids were found."""
    cut: float
    """Share that was cut off within a character, of which nobody who has only the text can say what it was to be."""
    canonical: float
    """Share that the tokenizer itself would write so: all that encoding the text anew can find."""


def measure(kind: str, dropout: float, turns: int, tokens: int) -> Found:
    rng = random.Random(0)
    plain = Tokenizer.from_str(trained().to_str())
    plain.add_special_tokens([EOS])
    sampler = Tokenizer.from_str(plain.to_str())
    sampler.model.dropout = dropout or None
    codec = HfTextCodec(PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=EOS))
    found = cut = canonical = 0
    for _ in range(turns):
        text = KINDS["words" if kind == "mixed" else kind](rng, ROOM["BPE"] * tokens)
        if kind == "mixed":
            text = "".join(rng.choice(FOREIGN) if rng.random() < 1 / 8 else character for character in text)
        ids = np.array(sampler.encode(text).ids[:tokens], np.int32)
        said, lengths = codec.decode(ids)
        again = codec.retrace(said, lengths, FinishReason.LENGTH)
        found += again is not None and np.array_equal(again, ids)
        cut += said.endswith("\ufffd")
        canonical += np.array_equal(codec.encode(said, FinishReason.LENGTH), ids)
    return Found(turns=found / turns, cut=cut / turns, canonical=canonical / turns)


def report(turns: int, tokens: int) -> str:
    """The table, in Markdown."""
    lines = ["| text | dropout | turns whose ids are found | cut within a character | canonical |", "|---" * 5 + "|"]
    for kind in (*KINDS, "mixed"):
        for dropout in DROPOUT:
            found = measure(kind, dropout, turns, tokens)
            lines.append(f"| {kind} | {dropout:g} | {found.turns:.1%} | {found.cut:.1%} | {found.canonical:.1%} |")
    return "\n".join(lines)
