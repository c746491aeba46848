"""What the C library does with memory that tensors give back.

glibc keeps freed blocks of up to 32 MiB for later ones, and those that are still used in between keep the rest of its
heap from the system. A pass over layers makes and frees blocks of some MiB by the hundred, in an order in which few of
them fit where others were: a step of 248 MiB of tensors took 600 of memory (docs/benchmarks.md).
"""

from __future__ import annotations

import ctypes

#: Bytes from which a block is its own mapping, which goes back to the system when it is freed.
MAPPED_FROM = 512 << 10
_M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h. Whoever sets it also keeps glibc from raising it."""


def give_back_large_blocks() -> None:
    """From now on, in this whole process, where the C library is glibc. A step takes a quarter longer: the kernel has
    to clear every new block."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
