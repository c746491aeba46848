"""Weights on their way into vLLM: the worker's side of its weight-transfer API, run in the engine's processes.

vLLM's layer-wise reload does the loading, because layers repack their weights once loaded (on CPUs into a layout that
has no shape left), and a plain `load_weights` would fail or, worse, leave the packed copy as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine, IPCWeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from node.engine.shared import Layout, mapped
from node.engine.vllm.handles import unpack_handle


@dataclass
class NothingToAgreeOn(WeightTransferInitInfo):
    """Both sides are on one machine, and an update says where its weights are."""


@dataclass
class InSharedMemory(WeightTransferUpdateInfo):
    """The fields of `Layout`."""

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class MemoryTransfer(WeightTransferEngine[NothingToAgreeOn, InSharedMemory]):
    """Through the learner's shared memory. For any device: a worker on a GPU copies what is its share of a tensor."""

    init_info_cls = NothingToAgreeOn
    update_info_cls = InSharedMemory

    def init_transfer_engine(self, init_info: NothingToAgreeOn) -> None: ...

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: InSharedMemory) -> None:
        layout = Layout(
            path=update_info.path,
            names=update_info.names,
            dtypes=update_info.dtypes,
            shapes=update_info.shapes,
            offsets=update_info.offsets,
        )
        self.model.load_weights(mapped(layout))  # type: ignore[operator]  # all of vLLM's models have it

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None: ...


class CudaIpcTransfer(IPCWeightTransferEngine):
    """vLLM's own CUDA IPC, with handles that travel as plain numbers and bytes: vLLM would pickle them, which it allows
    only when everything may be pickled."""

    def parse_update_info(self, update_dict: dict[str, Any]) -> IPCWeightTransferUpdateInfo:
        handles = [{uuid: unpack_handle(handle) for uuid, handle in each.items()} for each in update_dict["handles"]]
        rest = {key: value for key, value in update_dict.items() if key != "handles"}
        return super().parse_update_info(rest | {"ipc_handles": handles})
