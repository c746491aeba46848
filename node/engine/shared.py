"""Tensors in anonymous shared memory: written by the learner's process, mapped by the engine's.

Nothing is on a disk, no limit of /dev/shm applies, and the kernel frees it when the last process that has it open is
gone, however it went.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from typing import TypedDict

import torch

#: Bytes; no vector instruction wants more.
ALIGNMENT = 64


class Layout(TypedDict):
    """Where the tensors are. Plain, because it travels to the engine as a message."""

    path: str
    names: list[str]
    dtypes: list[str]
    """"bfloat16"."""
    shapes: list[list[int]]
    offsets: list[int]
    """In bytes."""


class SharedTensors:
    """Room for the tensors of `like`, in their dtypes. Linux only (memfd). Raises OSError when there is no memory."""

    def __init__(self, like: Mapping[str, torch.Tensor]) -> None:
        offsets, size = [], 0
        for tensor in like.values():
            offsets.append(size)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self._fd = os.memfd_create("swarm-node-weights", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, max(size, ALIGNMENT))
        self._memory = mmap.mmap(self._fd, max(size, ALIGNMENT))
        self._places: dict[str, torch.Tensor] = {}
        self.layout = Layout(
            path=f"/proc/{os.getpid()}/fd/{self._fd}",
            names=list(like),
            dtypes=[str(tensor.dtype).removeprefix("torch.") for tensor in like.values()],
            shapes=[list(tensor.shape) for tensor in like.values()],
            offsets=offsets,
        )

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The same names and shapes as at the start, from any device. Not while an engine reads."""
        for name in self.layout["names"]:
            self.put(name, tensors[name])

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """One of them."""
        if name not in self._places:
            self._places = dict(_views(self._memory, self.layout))
        self._places[name].copy_(tensor)

    def close(self) -> None:
        """The memory goes with the last tensor that looks at it."""
        os.close(self._fd)


def mapped(layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as they are there now, without a copy; private to whoever writes to them. Raises OSError when their
    owner has gone."""
    fd = os.open(layout["path"], os.O_RDONLY)
    try:
        memory = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
    yield from _views(memory, layout)


def _views(memory: mmap.mmap, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    fields = zip(layout["names"], layout["dtypes"], layout["shapes"], layout["offsets"], strict=True)
    for name, dtype, shape, offset in fields:
        size, kind = torch.Size(shape).numel(), getattr(torch, dtype)
        if size:
            yield name, torch.frombuffer(memory, dtype=kind, count=size, offset=offset).view(shape)
        else:
            yield name, torch.empty(shape, dtype=kind)  # a buffer of nothing is not allowed
