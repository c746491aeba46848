"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`)."""

from __future__ import annotations

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from node.engine.vllm.owner import die_with_owner
from node.engine.vllm.reason import tell_owner

#: Names for `WeightTransferConfig.backend`.
MEMORY, CUDA_IPC = "swarm_memory", "swarm_cuda_ipc"


def register() -> None:
    module = "node.engine.vllm.transfer"
    WeightTransferEngineFactory.register_engine(MEMORY, module, "MemoryTransfer")
    WeightTransferEngineFactory.register_engine(CUDA_IPC, module, "CudaIpcTransfer")
    die_with_owner()
    tell_owner()
