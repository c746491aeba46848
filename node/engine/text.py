"""Between text, which peers share, and the tokens of one policy's tokenizer, which are its own.

Guarantees, for any ids a policy may sample: the text is what the tokenizer itself decodes (end-of-sequence left out),
and the per-token byte lengths add up to the text's UTF-8 length, even where the ids are not valid UTF-8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from node.engine.token_bytes import TokenBytes, credit_by_prefixes, credit_bytes, token_bytes
from swarm.errors import PolicyError
from swarm.types import FinishReason, Task

#: Stands for an assistant's turn in a template. Nothing that a template strips, splits or escapes.
SENTINEL = "AssistantTurn7f3a9c"
#: Words whose tokens a tokenizer remembers. Its own 10,000 are up to 80 MB: strangers decide how long a word is.
REMEMBERED_WORDS = 2000


class HfTextCodec:
    """`TextCodec` over any fast Hugging Face tokenizer that has an end-of-sequence token.

    A prompt goes through the chat template where there is one, the system prompt as a system message where the template
    takes one and else in front of the user's; without a template it is plain text and a newline. In a response's text
    special tokens are ordinary characters (nobody's text can end a turn), other added tokens are themselves.

    Raises PolicyError for a tokenizer that has no fast version or no end-of-sequence token.
    """

    def __init__(self, tokenizer: object, system_prompt: str = "") -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise PolicyError(f"{type(tokenizer).__name__} is a slow tokenizer: expected a fast one (tokenizer.json)")
        if not isinstance(tokenizer.eos_token_id, int):
            raise PolicyError("the tokenizer has no end-of-sequence token (eos_token): expected one")
        self._tokenizer = tokenizer
        self._eos_id = tokenizer.eos_token_id
        self._system_prompt = system_prompt
        definition = tokenizer.backend_tokenizer.to_str()
        self._prompts = _backend(definition)
        self._responses = _backend(definition)
        self._responses.encode_special_tokens = True  # as characters: "<eos>" in a peer's text ends nothing
        self._vocab_size = 1 + max(self._prompts.get_vocab(with_added_tokens=True).values())
        self._table: TokenBytes | None = token_bytes(self._prompts)
        self._unambiguous = self._table.unambiguous() if self._table is not None else {}
        self._fingerprint = _fingerprint(definition, self._eos_id)
        self._takes_system = self._render_takes_system()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def eos_id(self) -> int:
        return self._eos_id

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def save(self, directory: Path) -> None:
        """Beside a model's weights, in Hugging Face layout."""
        self._tokenizer.save_pretrained(directory)

    def prompt(self, task: Task) -> np.ndarray:
        return self._encode_prompt(self.render(task.prompt))

    def render(self, question: str) -> str:
        """What `prompt` encodes: the question as the policy gets to see it."""
        if self._system_prompt and not self._takes_system:
            question = f"{self._system_prompt}\n\n{question}"
        if not self._tokenizer.chat_template:
            return f"{self._beginning()}{question}\n"
        return self._apply([*self._system(), {"role": "user", "content": question}])

    def next_turn(self, message: str) -> np.ndarray:
        """Raises PolicyError for a chat template that does not render a conversation of several turns.

        Only what the template writes after the assistant's turn counts, whatever it makes of earlier ones.
        """
        eos = self._tokenizer.eos_token
        assert isinstance(eos, str)
        # Encoded behind the token that it will follow: some tokenizers treat the beginning of a text differently.
        return self._encode_prompt(f"{eos}{self._after_eos(message, eos)}")[1:]

    def _after_eos(self, message: str, eos: str) -> str:
        if not self._tokenizer.chat_template:
            return f"{message}\n"
        conversation = [
            *self._system(),
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": SENTINEL},
            {"role": "user", "content": message},
        ]
        try:
            _, sentinel, tail = self._apply(conversation).partition(SENTINEL)
        except TemplateError as error:
            raise PolicyError(f"the chat template does not render a second turn: {error}") from error
        if not sentinel:
            raise PolicyError("the chat template does not render a second turn: the assistant's first one is not in it")
        # The policy has written its end of sequence, without the space that some templates put in front.
        return tail.lstrip().removeprefix(eos) if tail.lstrip().startswith(eos) else tail

    def encode(self, text: str, finish: FinishReason) -> np.ndarray:
        ids = self._responses.encode(text, add_special_tokens=False).ids
        return np.asarray([*ids, self._eos_id] if finish is FinishReason.STOP else ids, dtype=np.int32)

    def decode(self, ids: np.ndarray) -> tuple[str, np.ndarray]:
        kept = ids != self._eos_id
        sampled = [int(token) for token in ids[kept]]
        if self._table is None:
            text, credits = credit_by_prefixes(sampled, self._decode_all)
        else:
            text, credits = credit_bytes(self._table.of(sampled))
        lengths = np.zeros(len(ids), dtype=np.int32)
        lengths[kept] = credits
        return text, lengths

    def retrace(self, text: str, byte_lengths: np.ndarray, finish: FinishReason) -> np.ndarray | None:
        ended = int(finish is FinishReason.STOP)
        inner = byte_lengths[: len(byte_lengths) - ended].tolist()
        ids = [] if self._table is None else self._retraced(text.encode(), inner)
        found = np.asarray([*ids, *[self._eos_id] * ended], dtype=np.int32)
        if len(found) != len(byte_lengths):
            return None
        # What spells a text in some way was not always sampled in that way: only the way back tells.
        again, lengths = self.decode(found)
        return found if again == text and np.array_equal(lengths, byte_lengths) else None

    def _retraced(self, text: bytes, byte_lengths: Sequence[int]) -> list[int]:
        """Ids of a text without end-of-sequence; cut short where they cannot be told."""
        ids, start, tokens = list[int](), 0, 0
        for length in byte_lengths:
            tokens += 1
            if length == 0 and len(ids) + tokens < len(byte_lengths):
                continue  # the middle of a character, which a later token completes
            piece, start = text[start : start + length], start + length
            # The pieces of a character that has as many bytes as tokens are its bytes.
            parts = [piece] if tokens == 1 else [bytes([byte]) for byte in piece] if tokens == length else []
            named = [self._unambiguous[part] for part in parts if part in self._unambiguous]
            begins = self._table is not None and self._table.leading_spaces > 0 and not ids
            ids += named if len(named) == tokens and not begins else self._canonical(piece)
            tokens = 0
        return ids

    def _canonical(self, piece: bytes) -> list[int]:
        return self._responses.encode(piece.decode(errors="replace"), add_special_tokens=False).ids

    def _encode_prompt(self, text: str) -> np.ndarray:
        """int32 [P], special tokens as themselves."""
        return np.asarray(self._prompts.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def _decode_all(self, ids: list[int]) -> str:
        return self._prompts.decode(ids, skip_special_tokens=False)

    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self._system_prompt}] if self._takes_system else []

    def _apply(self, messages: list[dict[str, str]]) -> str:
        rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(rendered, str)
        return rendered

    def _render_takes_system(self) -> bool:
        """Templates refuse a system message, drop it silently, or render it: only a trial tells."""
        if not self._system_prompt or not self._tokenizer.chat_template:
            return False
        messages = [{"role": "system", "content": self._system_prompt}, {"role": "user", "content": "?"}]
        try:
            return self._system_prompt.strip() in self._apply(messages)
        except TemplateError:
            return False

    def _beginning(self) -> str:
        """The beginning-of-sequence token, where the tokenizer itself puts one in front of plain text."""
        bos = self._tokenizer.bos_token
        added = self._prompts.encode("", add_special_tokens=True).ids
        return bos if isinstance(bos, str) and added[:1] == [self._tokenizer.bos_token_id] else ""


def load_codec(model: str | Path, system_prompt: str = "") -> HfTextCodec:
    """The codec of a model directory or hub id. Raises PolicyError when its tokenizer cannot be loaded or used."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise PolicyError(f"policy.model = {str(model)!r}: its tokenizer cannot be loaded: {reason}") from error
    return HfTextCodec(tokenizer, system_prompt)


def _backend(definition: str) -> Tokenizer:
    """A copy of our own: flags set on it are seen by nobody else."""
    backend = Tokenizer.from_str(definition)
    backend.no_padding()
    backend.no_truncation()
    if isinstance(backend.model, BPE | Unigram):
        backend.model._resize_cache(REMEMBERED_WORDS)
    return backend


def _fingerprint(definition: str, eos_id: int) -> str:
    """SHA-256 over what gives ids their meaning: not the chat template, nor what is put around a text."""
    parts = json.loads(definition)
    for private in ("version", "truncation", "padding", "post_processor"):
        parts.pop(private, None)
    # vocabularies are mappings and added tokens are known by their id: their order in the file means nothing
    parts["added_tokens"] = sorted(parts.get("added_tokens") or [], key=lambda token: token["id"])
    canonical = json.dumps({**parts, "eos_id": eos_id}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
