"""Our side of `tests.bench.learner`: the learner's own forward and backward passes over the same batch.

python -m tests.bench.learner_own SPECIFICATION.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from node.algorithms import LearnerConfig, NoGate, PpoClip, ReceiverBaseline
from node.engine.flops import useful_flops
from node.engine.passes import Passes
from node.engine.updates import Rules, Share, Updates
from node.rl.objective import Denominators
from node.rl.samples import TokenRow
from swarm.types import PeerId
from tests.bench.measuring import measured


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(spec["threads"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).to(spec["device"])
    rules = Rules(
        objective=PpoClip(),
        foreign=ReceiverBaseline(),
        foreign_gate=NoGate(),
        learner=LearnerConfig(**spec["learner"]),
        temperature=1.0,
        autocast=spec["dtype"] == "bfloat16",
    )
    updates = Updates(model, rules)
    share = share_of(spec)
    for _ in range(2 if spec["learner"].get("compile") else 1):  # what is made once, for one shape and for any
        step(updates, share)
        updates.optimizer.zero_grad(set_to_none=True)
    print(json.dumps({"ready": True, "flops": useful_flops(model, updates.packed(share))}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measured(lambda: step(updates, share), spec["device"])), flush=True)
        updates.optimizer.zero_grad(set_to_none=True)


def share_of(spec: dict[str, Any]) -> Share:
    prompt = np.array(spec["prompt"], dtype=np.int32)
    rows = tuple(
        row_of(prompt, np.array(completion, dtype=np.int32), advantage)
        for completion, advantage in zip(spec["completions"], spec["advantages"], strict=True)
    )
    tokens = sum(len(row.response_ids) for row in rows)
    return Share(rows=rows, denominators=Denominators(tokens=tokens, samples=len(rows)), staleness=0.0, scale=1.0)


def row_of(prompt: np.ndarray, response: np.ndarray, advantage: float) -> TokenRow:
    return TokenRow(
        prompt_ids=prompt,
        response_ids=response,
        byte_lengths=np.ones(len(response), dtype=np.int32),
        behaviour=np.full(len(response), -5.5, dtype=np.float32),
        peer=None,
        advantage=advantage,
        reward=1.0,
        own=True,
        origin=PeerId("me"),
        staleness=0,
        truncated=False,
    )


def step(updates: Updates, share: Share) -> float:
    sums = updates.gradient(share, Passes(updates.packed(share), updates.model.device))
    return sum(part.loss for part in sums)


if __name__ == "__main__":
    main()
