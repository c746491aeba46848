"""A CUDA IPC handle of a tensor as plain numbers and bytes, and back.

`torch.multiprocessing.reductions.reduce_tensor` gives the arguments that rebuild the tensor in another process. All are
plain but three: the tensor's class, its storage's class, and its dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.storage import TypedStorage

#: Positions among the arguments of `rebuild_cuda_tensor`.
TENSOR_CLASS, SIZE, STORAGE_CLASS, DTYPE = 0, 1, 4, 5


def pack_handle(arguments: Sequence[Any]) -> list[Any]:
    """Of a plain tensor; its storage's class is always the same."""
    packed = list(arguments)
    packed[TENSOR_CLASS] = packed[STORAGE_CLASS] = None
    packed[SIZE] = list(packed[SIZE])
    packed[DTYPE] = str(packed[DTYPE]).removeprefix("torch.")
    return packed


def unpack_handle(packed: Sequence[Any]) -> tuple[Any, ...]:
    arguments = list(packed)
    arguments[TENSOR_CLASS], arguments[STORAGE_CLASS] = torch.Tensor, TypedStorage
    arguments[SIZE] = torch.Size(arguments[SIZE])
    arguments[DTYPE] = getattr(torch, arguments[DTYPE])
    return tuple(arguments)
