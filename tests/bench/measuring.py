"""What a step takes, for both sides of `tests.bench.learner`. Imports torch and nothing of this project: one side runs
in another's environment."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch


def measured(work: Callable[[], float], device: str) -> dict[str, float]:
    """Seconds (of CPU time, where that is what computes), MiB above what was held before, and what `work` returns."""
    gc.collect()
    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and kept would be no part of the step's
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = resident("VmRSS")
    clock = time.perf_counter if on_gpu else time.process_time
    started = clock()
    loss = work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = clock() - started
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    return {"s": seconds, "mib": (peak - before) / 2**20, "loss": loss}


def resident(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
