"""The learner's step beside TRL's GRPOTrainer: same model, same tokens, same machine; one command, one table.

    python -m tests.bench.learner                        tiny (0.5 M parameters) and 20 M, on the CPU
    python -m tests.bench.learner --model 0.6b --device cuda --dtype bfloat16 --prompt 1024 --response 512-4096
    python -m tests.bench.learner --no-trl               ours alone

A step is a forward and a backward pass over one group; generation and the optimiser are in neither. TRL is in a virtual
environment of its own (.venv-trl, made when it is missing), and every way of computing in a process of its own; they
take turns. Untrained weights and random tokens. Peak memory is what a step takes above what the process held before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from node.engine.flops import peak_flops
from node.engine.heap import MAPPED_FROM
from node.seed.tokenizer import make_tokenizer

ROOT = Path(__file__).parents[2]
TRL = ("trl==1.16.0", "transformers==5.19.0", "peft", "numpy")
SHAPES = {
    "tiny": (128, 2, 384, 4, 2, 32),
    "20m": (512, 6, 1536, 8, 4, 64),
    "0.6b": (1024, 28, 3072, 16, 8, 128),
    "1.5b": (1536, 28, 8960, 12, 2, 128),
}
"""Hidden size, layers, MLP width, heads, key and value heads, head width."""
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(MAPPED_FROM)}
"""What node/engine/heap.py does for our recomputing learner, for a process that knows nothing of it."""


@dataclass(eq=False)
class Way:
    """One way of computing the step, in a process that answers a line with a line."""

    name: str
    process: subprocess.Popen[str]
    ready: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    loss: float = 0.0

    def wait(self) -> None:
        self.ready = self._answer()

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["s"])
        self.mib.append(answer["mib"])
        self.loss = answer["loss"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with {self.process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=SHAPES, help="may be repeated")
    parser.add_argument("--vocabulary", type=int, default=0, help="0 for bytes on a CPU, 151,936 on a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--response", default="32-512", help="tokens, evenly from A to B")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", action="append", help="only the one of this name; may be repeated")
    parser.add_argument("--no-trl", action="store_true")
    options = parser.parse_args()
    python = None if options.no_trl else trl_python(options.device)
    for model in options.model or ["tiny", "20m"]:
        with tempfile.TemporaryDirectory() as scratch:
            compare(model, options, python, Path(scratch))


def compare(model: str, options: argparse.Namespace, python: Path | None, scratch: Path) -> None:
    spec, parameters = specification(model, options, scratch)
    tokens = sum(len(spec["prompt"]) + len(row) for row in spec["completions"])
    print(f"\n{model}: {parameters / 1e6:.1f} M parameters, {options.dtype} on {options.device}")
    print(f"{len(spec['completions'])} rollouts, prompt {options.prompt}, {tokens:,} tokens with every prompt")
    ways = [start(name, argv, changes, spec, scratch) for name, argv, changes in wanted(options, python)]
    try:
        for way in ways:
            way.wait()
        for _ in range(options.rounds):
            for way in ways:
                way.step()
    finally:
        for way in ways:
            way.process.kill()
            way.process.wait()
    report(ways, tokens, options)


def wanted(options: argparse.Namespace, python: Path | None) -> list[tuple[str, Sequence[str], dict[str, Any]]]:
    """(name, command, what of the specification is this way's)."""
    ours, theirs = (sys.executable, "-m", "tests.bench.learner_own"), (str(python), "-P", "tests/bench/learner_trl.py")
    group, gpu = options.group, options.device != "cpu"
    base = {"lr": 1e-6}
    least, longest = map(int, options.response.split("-"))
    small = {"tokens_per_micro_batch": options.prompt + longest}
    answers = group * (least + longest) // 2
    halves = {"tokens_per_micro_batch": options.prompt + (answers + longest) // 2}
    lean = {"recompute_activations": True, "compile": True}
    ways: list[tuple[str, Sequence[str], dict[str, Any]]] = [
        ("ours", ours, {"learner": base}),
        ("ours, compiled", ours, {"learner": base | {"compile": True}}),
        ("ours, small passes", ours, {"learner": base | small}),
        ("ours, recomputing", ours, {"learner": base | {"recompute_activations": True}}),
        ("ours, small, recomputing", ours, {"learner": base | small | {"recompute_activations": True}}),
        ("ours, recomputing, compiled", ours, {"learner": base | lean}),
        ("ours, two passes, the same", ours, {"learner": base | halves | lean}),
        ("ours, small, the same", ours, {"learner": base | small | lean}),
    ]
    if python is not None:
        for name, rows, recompute, compiled, environment in (
            ("TRL", group, False, False, {}),
            ("TRL, compiled", group, False, True, {}),
            ("TRL, a row at a time", 1, False, False, {}),
            ("TRL, recomputing (default)", group, True, False, {}),
            ("TRL, a row, recomputing", 1, True, False, {}),
            ("TRL, a row, our heap", 1, False, False, HEAP),
        ):
            changes = {"rows": rows, "recompute": recompute, "compile": compiled, "liger": gpu}
            ways.append((name, theirs, changes | {"environment": environment}))
    return [way for way in ways if not options.way or way[0] in options.way]


def start(name: str, argv: Sequence[str], changes: dict[str, Any], spec: dict[str, Any], scratch: Path) -> Way:
    path = scratch / f"{name}.json"
    path.write_text(json.dumps(spec | changes))
    environment = os.environ | {"OMP_NUM_THREADS": str(spec["threads"]), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment |= changes.get("environment", {})
    process = subprocess.Popen(
        [*argv, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(scratch / f"{name}.log").open("w"),
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env=environment,
    )
    return Way(name=name, process=process)


def specification(model: str, options: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], int]:
    vocabulary = options.vocabulary or (256 if options.device == "cpu" else 151_936)
    hidden, layers, mlp, heads, kv_heads, head_dim = SHAPES[model]
    torch.manual_seed(0)
    policy = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=max(vocabulary, 300),
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=mlp,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
        )
    )
    directory = scratch / "model"
    policy.save_pretrained(directory)
    make_tokenizer((), 256).save_pretrained(directory)
    rng = np.random.default_rng(0)
    least, most = map(int, options.response.split("-"))
    lengths = np.linspace(least, most, options.group).round().astype(int)
    spec = {
        "model": str(directory),
        "scratch": str(scratch),
        "device": options.device,
        "dtype": options.dtype,
        "weights": "float32",
        "threads": options.threads,
        "prompt": rng.integers(3, vocabulary, options.prompt).tolist(),
        "completions": [rng.integers(3, vocabulary, length).tolist() for length in lengths],
        "advantages": np.linspace(-1, 1, options.group).tolist(),
    }
    return spec, policy.num_parameters()


def report(ways: Sequence[Way], tokens: int, options: argparse.Namespace) -> None:
    peak = peak_flops(torch.device(options.device))
    print(f"{'':28} {'s':>8} {'tokens/s':>9} {'peak MiB':>9}   rounds, s")
    for way in ways:
        seconds, mib = statistics.median(way.seconds), max(way.mib)
        utilisation = f"  MFU {way.ready['flops'] / seconds / peak:.2f}" if peak and "flops" in way.ready else ""
        rounds = " ".join(f"{s:.2f}" for s in way.seconds)
        print(f"{way.name:28} {seconds:8.3f} {tokens / seconds:9.0f} {mib:9.0f}   {rounds}{utilisation}")
    flops = next((way.ready["flops"] for way in ways if "flops" in way.ready), 0.0)
    print(f"useful: {flops / 1e9:.1f} GFLOP a step")
    for label, value in (("fastest", lambda w: statistics.median(w.seconds)), ("leanest", lambda w: max(w.mib))):
        mine, theirs = ([way for way in ways if way.name.startswith(side)] for side in ("ours", "TRL"))
        if mine and theirs:
            best, other = min(mine, key=value), min(theirs, key=value)
            rate = statistics.median(o / b for o, b in zip(other.seconds, best.seconds, strict=True))
            share = max(best.mib) / max(other.mib)
            print(f"{label}: {best.name} : {other.name} = {rate:.2f} x tokens/s, {share:.2f} x memory")


def trl_python(device: str) -> Path:
    """Of the environment with TRL, which is made where it is missing. Its torch is of this one's version and build."""
    home = ROOT / ".venv-trl"
    python = home / "bin" / "python"
    if not (home / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        packages = [f"torch=={torch.__version__}", *TRL, *(["liger-kernel"] if device != "cpu" else [])]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (home / "made").touch()
    return python


if __name__ == "__main__":
    main()
