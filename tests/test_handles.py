"""CUDA IPC handles as plain values. No GPU is needed: a handle is a tuple, whose order torch decides."""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor
from torch.storage import TypedStorage

from node.engine.vllm.handles import DTYPE, SIZE, STORAGE_CLASS, TENSOR_CLASS, pack_handle, unpack_handle

#: As `reduce_tensor` makes them, of a [2, 3] tensor.
ARGUMENTS: tuple[Any, ...] = (
    torch.Tensor,
    torch.Size([2, 3]),
    (3, 1),
    0,
    TypedStorage,
    torch.bfloat16,
    0,
    b"\x00handle",
    512,
    0,
    False,
    b"counter",
    8,
    b"event",
    True,
)


def plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(plain(each) for each in value)
    return value is None or type(value) in (int, bool, str, bytes)


def test_positions_are_those_of_this_torch() -> None:
    names = list(inspect.signature(rebuild_cuda_tensor).parameters)
    assert [names[position] for position in (TENSOR_CLASS, SIZE, STORAGE_CLASS, DTYPE)] == [
        "tensor_cls",
        "tensor_size",
        "storage_cls",
        "dtype",
    ]
    assert len(names) == len(ARGUMENTS)


def test_a_handle_travels_as_plain_values() -> None:
    packed = pack_handle(ARGUMENTS)
    assert plain(packed)
    assert json.loads(json.dumps([value for value in packed if not isinstance(value, bytes)]))
    assert unpack_handle(packed) == ARGUMENTS
    assert type(unpack_handle(packed)[SIZE]) is torch.Size


def test_it_is_not_changed_on_the_way() -> None:
    packed = pack_handle(ARGUMENTS)
    copy = list(packed)
    unpack_handle(packed)
    assert packed == copy
    assert ARGUMENTS[DTYPE] is torch.bfloat16
