"""What the memory of freed tensors becomes: node/engine/heap.py. In processes of their own, because it is for all of a
process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.policies import save_tiny_policy

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps other blocks")

ROOT = Path(__file__).parents[1]
MIB = 2**20
BLOCKS, BLOCK_MIB = 32, 3

CHILD = f"""
import sys
import torch
from node.algorithms import LearnerConfig, NoGate, PpoClip, ReceiverBaseline
from node.engine.updates import Rules, Updates
from tests.bench.measuring import resident
from transformers import AutoModelForCausalLM


def block():
    return torch.ones({BLOCK_MIB * MIB // 4})


learner = LearnerConfig(recompute_activations=sys.argv[2] == "recomputing")
rules = Rules(
    objective=PpoClip(),
    foreign=ReceiverBaseline(),
    foreign_gate=NoGate(),
    learner=learner,
    temperature=1.0,
    autocast=False,
)
updates = Updates(AutoModelForCausalLM.from_pretrained(sys.argv[1]), rules)
big = torch.ones(7 * {MIB})
del big  # 28 MiB: from now on glibc would keep what is smaller
blocks = [block() for _ in range({BLOCKS})]
before = resident("VmRSS")
del blocks[::2]
print((before - resident("VmRSS")) // {MIB})
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def given_back_mib(policy: Path, how: str) -> int:
    """Of every other block of many."""
    command = [sys.executable, "-c", CHILD, str(policy), how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT).stdout)


def test_a_learner_that_recomputes_gives_freed_tensors_back(policy: Path) -> None:
    assert given_back_mib(policy, "recomputing") == pytest.approx(BLOCKS // 2 * BLOCK_MIB, abs=4)


def test_others_leave_the_heap_as_it_is(policy: Path) -> None:
    assert given_back_mib(policy, "plain") < BLOCKS // 2 * BLOCK_MIB / 2
