"""Which devices a learner has, and what it is told about those that it cannot have."""

from __future__ import annotations

import pytest
import torch

from node.algorithms import LearnerConfig
from node.config import PolicyConfig
from node.engine.devices import learner_devices, resolve_device
from swarm.errors import PolicyError


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def devices(device: str, wanted: int | tuple[int, ...]) -> list[str]:
    return [str(each) for each in learner_devices(PolicyConfig(device=device), LearnerConfig(devices=wanted))]


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("device", "wanted", "found"),
    [
        ("auto", 1, ["cuda"]),
        ("cuda:2", 1, ["cuda:2"]),
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:2", 2, ["cuda:2", "cuda:3"]),
        ("cuda", (3, 1), ["cuda:3", "cuda:1"]),
        ("auto", (1,), ["cuda:1"]),
        ("cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_devices_are_counted_from_the_policys_or_named(device: str, wanted: int | tuple[int, ...], found: list[str]):
    assert devices(device, wanted) == found


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("device", "wanted", "complaint"),
    [
        ("cuda:2", 3, "learner.devices = 3 needs cuda:4: this machine has 4 CUDA devices"),
        ("auto", (0, 7), r"learner.devices = \[0, 7\] needs cuda:7: this machine has 4 CUDA devices"),
        ("auto", (1, 1), r"learner.devices = \[1, 1\] names a device twice"),
        ("cpu", (0, 1), "names CUDA devices, and policy.device is 'cpu'"),
        ("cuda:4", 1, "policy.device = 'cuda:4': this machine has 4 CUDA devices"),
    ],
)
def test_devices_that_are_not_there_are_refused(device: str, wanted: int | tuple[int, ...], complaint: str):
    with pytest.raises(PolicyError, match=complaint):
        devices(device, wanted)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("optimizer", "adamw_8bit", 'learner.optimizer = "adamw_8bit" is not allowed with several .* must be "adamw"'),
        ("compile", True, "learner.compile = true is not allowed with several .* must be false"),
    ],
)
def test_what_only_one_device_can_do_is_refused(key: str, value: object, complaint: str):
    learner = LearnerConfig.model_validate({"devices": 2, key: value})
    with pytest.raises(PolicyError, match=complaint):
        learner_devices(PolicyConfig(device="cpu"), learner)


def test_without_a_gpu_everything_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    assert devices("auto", 2) == ["cpu", "cpu"]
