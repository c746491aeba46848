"""A policy: a transformers causal language model and its text codec, loaded from a directory, a hub id or the seed.

Weights come from safetensors only and no code of a model repository is ever executed.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from node.config import PolicyConfig
from node.engine.text import HfTextCodec, load_codec
from node.seed.cache import seed_model
from swarm.errors import PolicyError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    model: PreTrainedModel
    """float32; see node/engine/trainer.py."""
    codec: HfTextCodec
    fingerprint: str
    """Of the architecture and the base weights; what peers see."""

    def sampling_copy(self, dtype: str) -> PreTrainedModel:
        """The generator's own weights, in the dtype that it samples with ("float32", "bfloat16")."""
        return copy.deepcopy(self.model).to(getattr(torch, dtype))


def prepare_process(threads: int) -> None:
    """Once per process, before a policy is loaded: CPU threads for torch (0 leaves it to torch), and no progress bars,
    which would be all that a log file is full of."""
    if threads:
        torch.set_num_threads(threads)
    disable_progress_bar()


def load_policy(config: PolicyConfig, resume_from: Path | None = None) -> Policy:
    """Loads the base policy, or its continuation from `resume_from` (a checkpoint's model directory).

    Raises PolicyError when the model cannot be loaded.
    """
    source = str(resume_from or (seed_model() if config.model == "seed" else config.model))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(f"policy.model = {config.model!r}: cannot be loaded: {reason}") from error
    torch.nn.Module.to(model, resolve_device(config.device))  # transformers' own signature of `to` has no types
    return Policy(model=model, codec=load_codec(source, config.system_prompt), fingerprint=fingerprint(model))


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


def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits over the architecture and a thin sample of every tensor: cheap for any size, and two base models
    that differ anywhere by training differ here."""
    digest = hashlib.sha256(model.config.to_json_string(use_diff=True).encode())
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
