"""A policy: a transformers causal language model, with an adapter or without, and its text codec; loaded from a
directory, a hub id or the seed.

Weights come from safetensors only and no code of a model repository is ever executed.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar
from transformers.utils.peft_utils import find_adapter_config_file

from node.config import Lora, PolicyConfig
from node.engine import lora, nf4
from node.engine.devices import resolve_device
from node.engine.layers import cast
from node.engine.lora import Adapter
from node.engine.size import ModelSize
from node.engine.text import HfTextCodec, load_codec
from node.seed.cache import seed_model
from swarm.errors import PolicyError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    model: PreTrainedModel
    """float32 (node/engine/trainer.py), but for what of a base is in NF4."""
    codec: HfTextCodec
    fingerprint: str
    """Of the architecture and the base weights; what peers see."""
    adapter: Adapter | None
    """In `model`, and all of it that is trained; None where all weights are."""
    devices: tuple[torch.device, ...]
    """That it is trained on; `model` is there, or on the CPU where they are several."""

    @property
    def size(self) -> ModelSize:
        return _size(self.model, nf4.weights_in(self.model))

    def sampling_copy(self, dtype: str) -> PreTrainedModel:
        """The generator's own weights, in the dtype that it samples with ("float32", "bfloat16")."""
        return cast(copy.deepcopy(self.model), torch_dtype(dtype))

    def save(self, directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes this policy with `tensors`, by parameter name, in place of what is trained: a model, or an adapter
        alone, and the tokenizer."""
        if self.adapter is None:
            self.model.save_pretrained(directory, state_dict=dict(tensors))
        else:
            self.adapter.save(directory, tensors)
        self.codec.save(directory)

    def save_base(self, directory: Path, dtype: str) -> None:
        """Writes what an adapter is beside, as it computes, for who has no NF4: a plain model in `dtype` ("float32",
        "bfloat16"). Raises OSError."""
        self.model.save_pretrained(directory, state_dict=lora.base_tensors(self.model, torch_dtype(dtype)))


def prepare_process(threads: int) -> None:
    """Once per process, before a policy is loaded: CPU threads for torch (0 leaves it to torch), and no progress bars,
    which would be all that a log file is full of."""
    if threads:
        torch.set_num_threads(threads)
    disable_progress_bar()


def load_policy(
    config: PolicyConfig, resume_from: Path | None = None, devices: tuple[torch.device, ...] = ()
) -> Policy:
    """Loads the base policy, or its continuation from `resume_from` (a checkpoint's model directory; where it holds an
    adapter, the base is the config's). `devices`: that it will be trained on, if not on the config's one.

    Raises PolicyError when the model cannot be loaded, or `resume_from` is not of the kind that the config trains: all
    weights or an adapter, of which rank, on what base; and for a base in NF4 where that is not to be had.
    """
    _check_base(config, devices)
    if resume_from:
        _check_kind(config, resume_from)
    source = str(resume_from or config.model)
    if isinstance(config.adapter, Lora):
        base = _base_of(config.model)
        model = _load_model(base)
        identity = fingerprint(model)
        adapter = lora.inject(model, config.adapter, _lasting_name(base), _digest(model))
        if lora.is_adapter(source):
            lora.load(model, adapter, Path(source))
        if config.adapter.base == "nf4":
            nf4.quantise(model)
    else:
        model, adapter = load_plain(source), None
        identity = fingerprint(model)
    devices = devices or (resolve_device(config.device),)
    # transformers' own signature of `to` has no types
    torch.nn.Module.to(model, devices[0] if len(devices) == 1 else torch.device("cpu"))
    codec = load_codec(_home_of_tokenizer(source), config.system_prompt)
    return Policy(model=model, codec=codec, fingerprint=identity, adapter=adapter, devices=devices)


def describe(config: PolicyConfig, resume_from: Path | None = None) -> ModelSize:
    """How large the policy is that `load_policy` loads. Reads configs and no weights: of a hub id, nothing else is
    fetched. Raises PolicyError."""
    if resume_from:
        _check_kind(config, resume_from)
    adapter = config.adapter if isinstance(config.adapter, Lora) else None
    name = _base_of(config.model if adapter else str(resume_from or config.model))
    with _reading(name), torch.device("meta"):
        described = AutoConfig.from_pretrained(_source_of(name), trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(described, dtype=torch.float32)
    model.tie_weights()
    if adapter:
        with torch.device("meta"):
            lora.inject(model, adapter, "", "")
    return _size(model, nf4.weights_for(model) if adapter and adapter.base == "nf4" else 0)


def load_plain(source: str) -> PreTrainedModel:
    """A float32 model without adapters, on the CPU: that of a directory, a hub id or "seed"; of an adapter's directory,
    its base with the adapter merged into it. Raises PolicyError."""
    base = _base_of(source)
    model = _load_model(base)
    if not lora.is_adapter(source):
        return model
    adapter = lora.inject(model, lora.read_adapter(Path(source)).lora, base, _digest(model))
    lora.load(model, adapter, Path(source))
    return lora.merged(model)


def save_plain(source: str, directory: Path, dtype: str) -> None:
    """Writes what `load_plain` loads, and its tokenizer, in `dtype` ("float32", "bfloat16"). Raises PolicyError."""
    cast(load_plain(source), torch_dtype(dtype)).save_pretrained(directory)
    load_codec(_home_of_tokenizer(source)).save(directory)


def resolve_model(name: str) -> str:
    """The directory or hub id that a model's name in a config or in an adapter stands for."""
    return str(seed_model()) if name == "seed" else name


def torch_dtype(name: str) -> torch.dtype:
    """Of "float32" or "bfloat16", as in policy.dtype."""
    return getattr(torch, name)


def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits over the architecture and a thin sample of every tensor: cheap for any size, and two base models
    that differ anywhere by training differ here."""
    return _digest(model, model.config.to_json_string(use_diff=True))


def _digest(model: PreTrainedModel, architecture: str = "") -> str:
    digest = hashlib.sha256(architecture.encode())
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_base(config: PolicyConfig, devices: tuple[torch.device, ...]) -> None:
    if not isinstance(config.adapter, Lora) or config.adapter.base == "full":
        return
    nf4.require()
    if len(devices) > 1:
        raise PolicyError(
            f'policy.adapter.base = "{config.adapter.base}": a learner on several devices (learner.devices) has "full" '
            "only"
        )


def _check_kind(config: PolicyConfig, directory: Path) -> None:
    if isinstance(config.adapter, Lora) != lora.is_adapter(directory):
        kind = "an adapter" if lora.is_adapter(directory) else "a whole model"
        raise PolicyError(
            f'policy.adapter.type = "{config.adapter.type}": the checkpoint in {directory} holds {kind}; set it as it '
            "was, or choose another data_dir (`swarm-node export` makes a policy.model of a checkpoint)"
        )


def _base_of(source: str) -> str:
    """The name of the model beside the adapter in the directory `source`; that of a plain model is its own."""
    if not lora.is_adapter(source):
        return source
    base = lora.read_adapter(Path(source)).base
    if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise PolicyError(
            f"{source} is an adapter of {base!r}, and there is no such directory: put that model there, or run "
            "`swarm-node export --merge` where it is, which makes one model of both"
        )
    return base


def _load_model(name: str) -> PreTrainedModel:
    with _reading(name):
        return AutoModelForCausalLM.from_pretrained(
            _source_of(name), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )


def _source_of(name: str) -> str:
    source = resolve_model(name)
    if find_adapter_config_file(source) is not None:
        raise PolicyError(f"policy.model = {name!r}: an adapter is loaded from a local directory, beside a model")
    return source


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Says what is wrong with the model of that name as a PolicyError."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        nowhere = "" if name == "seed" or Path(name).is_dir() else "there is no such directory, and as a hub id: "
        raise PolicyError(f"policy.model = {name!r}: cannot be loaded: {nowhere}{reason}") from error


def _size(model: PreTrainedModel, quantised: int) -> ModelSize:
    """`quantised`: weights of it that are in NF4, or will be."""
    every = list(model.parameters())
    trained = sum(parameter.numel() for parameter in every if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in every) + nf4.weights_in(model)
    return ModelSize.of(model.config, whole, trained, quantised)


def _lasting_name(base: str) -> str:
    """One that means the same in another working directory."""
    return str(Path(base).resolve()) if base != "seed" and Path(base).is_dir() else base


def _home_of_tokenizer(source: str) -> str:
    """An adapter that another program made may have none beside it: its base has."""
    alone = lora.is_adapter(source) and not (Path(source) / "tokenizer_config.json").is_file()
    return resolve_model(_base_of(source) if alone else source)
