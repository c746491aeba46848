from __future__ import annotations

import pytest

from node.config import AutoEngine, TransformersEngine, VllmEngine
from node.engine.available import EngineStatus
from node.engine.choice import choose_engine
from swarm.errors import EngineError


def statuses(build: str, reason: str = "") -> dict[str, EngineStatus]:
    vllm = EngineStatus(name="vllm", version="0.32.0", build=build, usable=not reason, reason=reason)
    transformers = EngineStatus(name="transformers", version="5.19.0", build="", usable=True, reason="")
    return {"transformers": transformers, "vllm": vllm}


@pytest.mark.parametrize(
    ("parameters", "device", "build", "reason", "chosen"),
    [
        (20_000_000, "cpu", "CPU", "", TransformersEngine()),
        (20_000_001, "cpu", "CPU", "", VllmEngine()),
        (20_000_001, "cpu", "CPU", "it is broken", TransformersEngine()),
        (300_000, "cuda", "CUDA", "", VllmEngine()),
        (300_000, "cuda", "CUDA", "it is broken", TransformersEngine()),
        (20_000_001, "cuda", "CPU", "", TransformersEngine()),
        (20_000_001, "cpu", "CUDA", "", TransformersEngine()),
    ],
)
def test_auto(parameters: int, device: str, build: str, reason: str, chosen: TransformersEngine | VllmEngine) -> None:
    assert choose_engine(AutoEngine(), parameters, device, statuses(build, reason)) == chosen


@pytest.mark.parametrize("config", [TransformersEngine(batch_size=3), VllmEngine(max_in_flight=3)])
@pytest.mark.parametrize(("parameters", "device"), [(1, "cpu"), (10**9, "cuda")])
def test_what_was_asked_for_is_taken(config: TransformersEngine | VllmEngine, parameters: int, device: str) -> None:
    assert choose_engine(config, parameters, device, statuses("CPU")) is config


def test_vllm_where_it_is_not_usable() -> None:
    with pytest.raises(EngineError) as caught:
        choose_engine(VllmEngine(), 10**9, "cpu", statuses("", "it is not installed; install it"))
    assert str(caught.value) == 'engine.type = "vllm": it is not installed; install it'


def test_transformers_is_taken_whatever_vllm_is() -> None:
    assert choose_engine(TransformersEngine(), 10**9, "cpu", statuses("", "broken")) == TransformersEngine()
