"""How many tokens a forward pass may have: what is configured, and after running out of memory half of it."""

from __future__ import annotations

import gc
import logging

import torch

#: Below, it is not the tokens that take the memory.
LEAST = 64
#: How torch's allocator for the CPU says that there is no more; for GPUs there is an exception.
CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"

log = logging.getLogger(__name__)


class TokenBudget:
    """One per learner: what did not fit once would not fit the next time."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.halved = 0
        """How often."""

    def halve(self, longest: int) -> bool:
        """After an allocation has failed. False where that cannot help: a micro-batch is a single rollout of `longest`
        tokens already."""
        if self.tokens <= max(LEAST, longest // 2):
            return False
        self.tokens //= 2
        self.halved += 1
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning(
            "out of memory in a step: from now on micro-batches have half of the tokens, %d; "
            "learner.tokens_per_micro_batch = %d would avoid that",
            self.tokens,
            self.tokens,
        )
        return True


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error)
