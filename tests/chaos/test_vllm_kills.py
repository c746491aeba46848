"""vLLM's processes killed under a node that learns (tests/test_vllm_node.py kills one of them once)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.record import record
from tests.test_node import running, until
from tests.test_vllm_node import of_vllm, vllm_node
from tests.vllm_rig import none_alive

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.chaos,
    pytest.mark.timeout(5400),
    pytest.mark.filterwarnings("ignore"),
]
KILLS = int(os.environ.get("CHAOS_ENGINE_KILLS", "50"))


async def test_an_engine_that_is_killed_again_and_again_is_replaced_and_the_node_learns_on(tmp_path: Path) -> None:
    config = vllm_node(tmp_path)
    patient = config.supervision.model_copy(update={"max_restarts": 1000, "longest_pause_s": 1.0})
    rng, killed = random.Random(0), []
    async with running(config.model_copy(update={"supervision": patient})) as node:
        for _ in range(KILLS):
            began, restarts = node.learning.steps, node.status().counters["engine_restarts"]
            # The learner may make steps of what is in the pool before there is an engine again.
            await until(lambda began=began: node.learning.steps >= began + 2 and bool(of_vllm()), node)
            victim = rng.choice(of_vllm())
            victim.kill()
            killed.append(victim)
            await until(lambda before=restarts: node.status().counters["engine_restarts"] > before, node)
        steps = node.learning.steps
        await until(lambda: node.learning.steps >= steps + 5, node)
        assert node.status().metrics["engine_deviation"] < 1e-4
        assert node.status().counters["parity_failures"] == 0
        killed += of_vllm()
    assert none_alive(killed)
    record("vLLM killed", kills=KILLS, steps=node.learning.steps)
