"""What vLLM reads from the environment, which is this process's while an engine starts. Imports nothing of vLLM."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from node.engine.vllm.owner import OWNER

#: Unless the operator says otherwise. The level counts from the moment that vLLM is imported.
DEFAULTS: Mapping[str, str] = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",  # nobody's business
    "VLLM_DO_NOT_TRACK": "1",
}
VISIBLE = "CUDA_VISIBLE_DEVICES"


def set_defaults() -> None:
    """Before vLLM is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # which it does too, after its first words


def engine_environment(device: str, devices: Sequence[int], threads: int) -> dict[str, str]:
    """For an engine on `device` ("cpu", "cuda"): on the CUDA devices of these numbers (as this process counts them;
    empty leaves it to vLLM), or with so many CPU threads (0 leaves it to OpenMP)."""
    variables = {
        OWNER: str(os.getpid()),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "PYTHONWARNINGS": "ignore",  # of libraries that are not ours, and of what a killed engine leaves behind
    }
    if device == "cpu":
        # Bound threads of two engines on one machine would share the first cores and leave the others idle.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # Only the ranks of log-probabilities are compiled there, which nobody reads, with a C++ compiler, in 20 s.
        variables["TORCH_COMPILE_DISABLE"] = "1"
        if threads:
            variables["OMP_NUM_THREADS"] = str(threads)
    elif devices:
        ours = os.environ.get(VISIBLE, "")
        names = ours.split(",") if ours else [str(number) for number in range(max(devices) + 1)]
        variables[VISIBLE] = ",".join(names[number] for number in devices)
    return variables


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, they are set. Leaving puts everything back, and takes away what vLLM has put there for its children."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
