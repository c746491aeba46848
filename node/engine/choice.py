"""Which engine samples. Pure; `node/engine/available.py` says what there is."""

from __future__ import annotations

from collections.abc import Mapping

from node.config import AutoEngine, EngineConfig, TransformersEngine, VllmEngine
from node.engine.available import EngineStatus
from swarm.errors import EngineError

#: Parameters up to which a policy on a CPU is tiny: there, batches in this process are faster than an engine beside it.
TINY = 20_000_000


def choose_engine(
    config: EngineConfig, parameters: int, device_type: str, status: Mapping[str, EngineStatus]
) -> TransformersEngine | VllmEngine:
    """The engine's table: the given one, or what "auto" comes to for a policy of so many parameters on a device of that
    type ("cpu", "cuda"). Raises EngineError for vLLM where it is not usable."""
    vllm = status["vllm"]
    if isinstance(config, VllmEngine) and not vllm.usable:
        raise EngineError(f'engine.type = "vllm": {vllm.reason}')
    if not isinstance(config, AutoEngine):
        return config
    # A build that samples elsewhere than where the policy was put is for those who ask for it by name.
    suits = vllm.build == "CUDA" if device_type == "cuda" else vllm.build == "CPU" and parameters > TINY
    return VllmEngine() if vllm.usable and suits else TransformersEngine()
