"""What everything that has to do with text asks of a policy's tokenizer; `node/engine/text.py` is one."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from swarm.types import FinishReason, Task


class TextCodec(Protocol):
    """Between text, which is shared, and tokens, which are private. Pure; one per policy."""

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer: equal fingerprints mean equal ids."""
        ...

    @property
    def eos_id(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def prompt(self, task: Task) -> np.ndarray:
        """int32 [P]: the task in this policy's own chat template, ready to be continued."""
        ...

    def next_turn(self, message: str) -> np.ndarray:
        """int32 [P]: what follows an assistant's turn that has ended (end-of-sequence sampled) when the user says
        `message`, up to where the assistant's next turn begins. Append it to the ids so far; nothing is tokenised
        twice."""
        ...

    def encode(self, text: str, finish: FinishReason) -> np.ndarray:
        """int32 [T]: canonical ids of a response; the end-of-sequence token is appended iff finish is STOP."""
        ...

    def retrace(self, text: str, byte_lengths: np.ndarray, finish: FinishReason) -> np.ndarray | None:
        """int32 [T]: the ids that `decode` made `text` and these lengths (int32 [T]) of, canonical or not.

        A token's bytes nearly always name it. Where they do not (two tokens of the same bytes, several that share a
        character), the canonical ones are taken if they fit; None if they do not, and for tokenizers of which it is not
        known what bytes a token has. Whatever is returned decodes to just that."""
        ...

    def decode(self, ids: np.ndarray) -> tuple[str, np.ndarray]:
        """Text without end-of-sequence, and int32 [T]: how many of its UTF-8 bytes each token completed.

        The lengths always add up to the text's: bytes that are not UTF-8 become U+FFFD where they end."""
        ...
