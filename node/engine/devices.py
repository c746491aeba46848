"""Which devices the learner is on."""

from __future__ import annotations

import json

import torch

from node.algorithms import LearnerConfig
from node.config import PolicyConfig
from swarm.errors import PolicyError


def resolve_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device, or the CPU. Raises PolicyError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PolicyError(f'policy.device = {name!r}: expected "auto", "cpu", "cuda" or "cuda:N"') from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PolicyError(f"policy.device = {name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def learner_devices(policy: PolicyConfig, learner: LearnerConfig) -> tuple[torch.device, ...]:
    """One or several. A number counts from policy.device on; on the CPU they are as many processes. Raises PolicyError
    for devices that are not there."""
    first = resolve_device(policy.device)
    if learner.num_devices > 1:
        _check_modes(learner)
    if isinstance(learner.devices, int):
        if learner.devices == 1 or first.type == "cpu":
            return (first,) * learner.devices
        numbers = tuple(range(first.index or 0, (first.index or 0) + learner.devices))
    else:
        numbers = learner.devices
        if first.type != "cuda":
            raise PolicyError(
                f"learner.devices = {list(numbers)} names CUDA devices, and policy.device is {policy.device!r} (here: "
                f"{first}); on a CPU it is a number of processes"
            )
        if len(set(numbers)) < len(numbers):
            raise PolicyError(f"learner.devices = {list(numbers)} names a device twice")
    if max(numbers) >= torch.cuda.device_count():
        shown = learner.devices if isinstance(learner.devices, int) else list(numbers)
        raise PolicyError(
            f"learner.devices = {shown} needs cuda:{max(numbers)}: this machine has {torch.cuda.device_count()} CUDA "
            "devices"
        )
    return tuple(torch.device("cuda", number) for number in numbers)


def _check_modes(learner: LearnerConfig) -> None:
    """What has been tried on one device only."""
    plain = LearnerConfig()
    for key in ("optimizer", "offload_optimizer", "compile"):
        if (value := getattr(learner, key)) != (needed := getattr(plain, key)):
            raise PolicyError(
                f"learner.{key} = {json.dumps(value)} is not allowed with several learner.devices; it must be "
                f"{json.dumps(needed)}"
            )
