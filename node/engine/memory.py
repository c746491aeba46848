"""The memory that this machine has: RAM, and that of its CUDA devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from node.config import VllmEngine
from node.engine.available import engines
from swarm.errors import EngineError

MEMINFO = Path("/proc/meminfo")
#: Of a container, as it sees it (cgroup v2): what it may have, what it has, and of that what the kernel can take back.
CONTAINER = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A memory that the learner, the engine, or both are to be in."""

    name: str
    """ "cuda:0", or "RAM"."""
    total: int
    """Bytes."""
    free: int
    """Bytes."""
    learner: bool
    """The policy that is trained is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    kind: Literal["cuda", "cpu"]
    devices: tuple[Device, ...]
    """Those that were asked for, in that order."""


def cuda_device(device: torch.device) -> torch.device:
    """With its number, which "cuda" has not."""
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def engine_devices(engine: VllmEngine, learner: Sequence[torch.device]) -> tuple[int, ...]:
    """CUDA devices of the engine: those configured, or the learner's own and those after it; where the learner has
    several, those after its last; none beside a learner on the CPU, which is where the engine is then."""
    if engine.devices or learner[0].type == "cpu":
        return engine.devices
    last = max(device.index or 0 for device in learner)
    first = last if len(learner) == 1 else last + 1
    return tuple(range(first, first + engine.tensor_parallel_size))


def vllm_devices(engine: VllmEngine, learner: Sequence[torch.device]) -> tuple[int, ...]:
    """CUDA devices of the vLLM that is installed: of a build for CPUs none."""
    return engine_devices(engine, learner) if engines()["vllm"].build == "CUDA" else ()


def machine(devices: Sequence[int], learner: Sequence[torch.device]) -> Machine:
    """The memory of those CUDA devices as it is now, or without any, RAM. Asking a device takes some of its memory (a
    CUDA context of this process). Raises EngineError for a device that is not there."""
    if not devices:
        total, free = ram()
        return Machine(
            kind="cpu", devices=(Device(name="RAM", total=total, free=free, learner=learner[0].type == "cpu"),)
        )
    if max(devices) >= (count := torch.cuda.device_count()):
        chosen = "" if len(learner) == 1 else f" (the learner has {', '.join(map(str, learner))})"
        raise EngineError(
            f"engine.devices = {list(devices)} is not allowed; this machine has {count} CUDA devices{chosen}"
        )
    memories = [(index, *torch.cuda.mem_get_info(index)) for index in devices]
    return Machine(
        kind="cuda",
        devices=tuple(
            Device(
                name=f"cuda:{index}",
                total=total,
                free=free,
                learner=torch.device("cuda", index) in map(cuda_device, learner),
            )
            for index, free, total in memories
        ),
    )


def ram(meminfo: Path = MEMINFO, container: Path = CONTAINER) -> tuple[int, int]:
    """Bytes in all and free: the machine's, or of a container that may have less, its own. Where nothing says what is
    free (not Linux), all of it."""
    if not meminfo.is_file():
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    kib = _numbers(meminfo)
    total, free = kib["MemTotal:"] * 1024, kib["MemAvailable:"] * 1024
    try:
        most, used = (int((container / name).read_text()) for name in ("memory.max", "memory.current"))
        reclaimable = _numbers(container / "memory.stat")["inactive_file"]
    except (OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        return total, free
    return min(total, most), min(free, max(0, most - used + reclaimable))


def _numbers(file: Path) -> dict[str, int]:
    """Name -> number, of lines that begin with these two."""
    return {words[0]: int(words[1]) for words in map(str.split, file.read_text().splitlines())}
