"""What packed rows save: one forward and backward pass over a batch, with a row for each rollout and packed.

    python -m tests.bench.packing
    python -m tests.bench.packing --hidden 512 --layers 6 --mlp 1536 --prompt 512 --response 32-512

The two take turns in one process, so that their ratio does not depend on what else the machine does. Untrained weights
and random tokens: lengths are all that matters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from node.engine.head import Head
from node.engine.logprobs import TokenScores, token_scores
from node.engine.packing import share_rows
from node.rl.batch import MicroBatch, pack
from node.rl.samples import TokenRow
from swarm.types import PeerId

VOCABULARY = 256
ROUNDS = 5
CHUNK = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed rows against a row for each rollout.")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--mlp", type=int, default=384)
    parser.add_argument("--prompt", type=int, default=40, help="tokens of the longest; others have half of it or more")
    parser.add_argument("--response", default="4-24", help="tokens, uniformly from A to B")
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--budget", type=int, default=4096, help="padded tokens in a micro-batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=options.mlp,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=options.hidden // 4,
    )
    model = Qwen3ForCausalLM(config).eval()
    assert share_rows(TokenScores(model))
    least, most = map(int, options.response.split("-"))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, one thread")
    print("group  tokens  padded: separate  packed   s: separate  packed  ratio (of each round)")
    for size in (8, 4, 2, 1):
        rows = made_up(options.rollouts, size, options.prompt, least, most)
        ways = [pack(rows, options.budget), pack(rows, options.budget, share=True)]
        times = [[seconds(model, micros) for micros in ways] for _ in range(ROUNDS + 1)][1:]
        padded = [sum(micro.input_ids.numel() for micro in micros) for micros in ways]
        ratios = [separate / packed for separate, packed in times]
        separate, packed = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{size:5} {sum(map(len, rows)):7,} {padded[0]:17,} {padded[1]:7,} {separate:13.3f} {packed:7.3f}"
            f"  {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def made_up(rollouts: int, size: int, prompt: int, least: int, most: int) -> list[TokenRow]:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(rollouts // size):
        prompt_ids = rng.integers(1, VOCABULARY, rng.integers(prompt // 2, prompt + 1)).astype(np.int32)
        for _ in range(size):
            response_ids = rng.integers(1, VOCABULARY, rng.integers(least, most + 1)).astype(np.int32)
            rows.append(row_of(prompt_ids, response_ids))
    return rows


def row_of(prompt_ids: np.ndarray, response_ids: np.ndarray) -> TokenRow:
    return TokenRow(
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        byte_lengths=np.ones(len(response_ids), dtype=np.int32),
        behaviour=np.zeros(len(response_ids), dtype=np.float32),
        peer=None,
        advantage=1.0,
        reward=1.0,
        own=True,
        origin=PeerId("me"),
        staleness=0,
        truncated=False,
    )


def seconds(model: Qwen3ForCausalLM, micros: Sequence[MicroBatch]) -> float:
    started = time.process_time()
    model.zero_grad()
    for micro in micros:
        inputs = micro.input_ids, micro.attention_mask, micro.position_ids, micro.action_index, micro.targets
        logp = token_scores(model, *inputs, Head(temperature=1.0, chunk=CHUNK), micro.segments).logp
        logp.sum().backward()
    return time.process_time() - started


if __name__ == "__main__":
    main()
