"""The learner's side of a weight transfer: where the engine will find the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.multiprocessing.reductions import reduce_tensor

from node.engine.shared import SharedTensors
from node.engine.vllm.handles import pack_handle
from node.engine.vllm.plugin import CUDA_IPC, MEMORY


class Transport(Protocol):
    @property
    def backend(self) -> str:
        """Its name in the engine."""
        ...

    @property
    def init_info(self) -> dict[str, Any]: ...

    def offer(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Makes the tensors available, always the same names and shapes, and says where they are. Blocks: for a
        thread."""
        ...

    def taken(self) -> None:
        """The engine has taken them, or has been given up."""
        ...

    def close(self) -> None: ...


class MemoryTransport:
    """Through shared memory: for CPUs, and for GPUs other than the learner's."""

    backend = MEMORY
    init_info: dict[str, Any]

    def __init__(self) -> None:
        self.init_info = {}
        self._shared: SharedTensors | None = None

    def offer(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        if self._shared is None:
            self._shared = SharedTensors(tensors)
        self._shared.write(tensors)
        return dict(self._shared.layout)

    def taken(self) -> None: ...

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()


class CudaIpcTransport:
    """The engine maps the learner's own GPU memory: nothing is copied but into place. For a GPU that both use."""

    backend = CUDA_IPC
    init_info: dict[str, Any]

    def __init__(self) -> None:
        self.init_info = {"packed": False}
        self._offered: list[torch.Tensor] = []  # a handle does not keep its tensor alive

    def offer(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        self._offered = [tensor.detach().contiguous() for tensor in tensors.values()]
        return {
            "names": list(tensors),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in self._offered],
            "shapes": [list(tensor.shape) for tensor in self._offered],
            "handles": [{_uuid(tensor): pack_handle(reduce_tensor(tensor)[1])} for tensor in self._offered],
        }

    def taken(self) -> None:
        self._offered = []
        torch.cuda.ipc_collect()

    def close(self) -> None: ...


def _uuid(tensor: torch.Tensor) -> str:
    return str(torch.cuda.get_device_properties(tensor.device).uuid)
