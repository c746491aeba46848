"""An untrained policy of a few thousand parameters, in Hugging Face layout: loads at once, learns in seconds."""

from __future__ import annotations

import builtins
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from node.seed.tokenizer import make_tokenizer

needs_bitsandbytes = pytest.mark.skipif(
    not list(distributions(name="bitsandbytes")),
    reason="bitsandbytes is not installed: pip install -e '.[bitsandbytes]'",
)


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if it were not installed."""
    real = builtins.__import__

    def without(name: str, *rest: Any, **others: Any) -> Any:
        if name.startswith(package):
            raise ImportError(name)
        return real(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", without)


def save_tiny_policy(
    directory: Path, seed: int = 0, phrases: tuple[str, ...] = (), *, head_dim: int = 16, tied: bool = True
) -> Path:
    """Byte-level; other `phrases` make another tokenizer. vLLM's kernels for CPUs want a `head_dim` of 32."""
    tokenizer = make_tokenizer(phrases, 256)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=head_dim,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.get_vocab()["<eos>"],
        pad_token_id=tokenizer.get_vocab()["<pad>"],
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
