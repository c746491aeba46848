"""Where a sampled turn ends that no end-of-sequence token ends: at the first stop string. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from node.text_codec import TextCodec
from swarm.types import end_of_stop


def end_at_stop(ids: np.ndarray, codec: TextCodec, stop: Sequence[str]) -> int | None:
    """How many of `ids` (int32 [T]) there are up to and including the one that completes the first stop string, in the
    order in which they end; None where none is completed.

    Exact in UTF-8 bytes. What that token has after the stop string stays: a token is sampled whole.
    """
    if not stop:
        return None
    text, byte_lengths = codec.decode(ids)
    end = end_of_stop(text, stop)
    return None if end is None else int(np.searchsorted(np.cumsum(byte_lengths), end)) + 1
