"""Low-rank adapters beside frozen weights (LoRA, arXiv 2106.09685), in and out of a transformers model.

The model stays the PreTrainedModel that it was: `peft` puts layers into it, nothing around it. On disk an adapter is as
`PeftModel.save_pretrained` writes one, so that vLLM and peft load it; the digest of the base's weights is added to the
metadata of its tensors, because a path says little about what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from node.config import Lora
from node.engine import nf4
from swarm.errors import PolicyError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
#: In the metadata of the tensors: of the base's weights, and what its linear layers were held in.
DIGEST, HELD_IN = "base_digest", "base"
#: What peft calls the adapter inside of a model ("q_proj.lora_A.default.weight"), not on disk.
NAME = "default"
#: What peft puts in front of the names of the model's own modules, on disk.
PREFIX = "base_model.model."
#: ... and in the names of what an adapter is beside, in a model ("q_proj.base_layer.weight").
INNER = ".base_layer."
#: Keys of an adapter's config that are read as they are, and those that do not change what it computes once it is
#: trained. All others must have peft's defaults.
READ = ("base_model_name_or_path", "target_modules")
HARMLESS = ("auto_mapping", "inference_mode", "lora_dropout", "peft_version", "revision", "task_type")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What an adapter is, apart from its tensors."""

    base: str
    """The model that it was trained beside: a directory, a hub id, or "seed"."""
    base_digest: str
    """Of that model's weights; empty where another program made the adapter."""
    lora: Lora
    """Its targets are spelled out, and sorted."""

    def save(self, directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes the adapter whose tensors, by parameter name in the model, are `tensors`. Raises OSError."""
        _config(self).save_pretrained(str(directory))
        metadata = {"format": "pt", DIGEST: self.base_digest, HELD_IN: self.lora.base}
        stored = {_stored(name): tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(stored, directory / TENSORS, metadata=metadata)


def inject(model: PreTrainedModel, config: Lora, base: str, base_digest: str) -> Adapter:
    """Puts a new adapter into `model`, whose output stays what it was; only the adapter's float32 parameters are
    trained. The same every time: chance begins at the same place.

    Raises PolicyError for a target that is no linear layer of the model.
    """
    head = model.get_output_embeddings()
    linear = (n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head)
    there = {name.rpartition(".")[2] for name in linear}
    if not there:
        raise PolicyError('policy.adapter.type = "lora": this model has no linear layer but its output head')
    for target in config.targets:
        if target not in there:
            raise PolicyError(
                f"policy.adapter.targets: {target!r} is no linear layer of this model: expected {_listed(there)}"
            )
    targets = tuple(sorted(set(config.targets) or there))
    lora = config.model_copy(update={"targets": targets})
    adapter = Adapter(base=base, base_digest=base_digest, lora=lora)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        inject_adapter_in_model(_config(adapter), model, NAME)
    return adapter


def is_adapter(directory: str | Path) -> bool:
    return (Path(directory) / CONFIG).is_file()


def read_adapter(directory: Path) -> Adapter:
    """What the adapter in `directory` is. Raises PolicyError when it cannot be read, or has what LoRA as such has not
    (DoRA's magnitudes, ranks that differ by layer)."""
    if not (directory / TENSORS).is_file():
        raise PolicyError(f"the adapter in {directory} has no {TENSORS}: nothing but safetensors is loaded")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        if not isinstance(config, LoraConfig):
            raise PolicyError(f"the adapter in {directory} is of type {config.peft_type}: expected LORA")
        with safe_open(directory / TENSORS, "pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
        targets = {name.partition(".lora_")[0].rpartition(".")[2] for name in names}
        lora = Lora.model_validate(
            {
                "rank": config.r,
                "alpha": config.lora_alpha,
                "targets": sorted(targets),
                "base": metadata.get(HELD_IN, "full"),
            }
        )
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise PolicyError(f"the adapter in {directory} cannot be read: {error}") from error
    base = config.base_model_name_or_path or ""
    adapter = Adapter(base=base, base_digest=metadata.get(DIGEST, ""), lora=lora)
    plain = _config(adapter).to_dict()
    odd = [key for key, value in config.to_dict().items() if key not in (*READ, *HARMLESS) and value != plain[key]]
    if odd:
        raise PolicyError(
            f"the adapter in {directory} sets {_listed(odd)}: expected r, lora_alpha, target_modules only"
        )
    return adapter


def load(model: PreTrainedModel, adapter: Adapter, directory: Path) -> None:
    """Puts the tensors of the adapter in `directory` into those of `adapter`, which is in `model`.

    Raises PolicyError when they are another kind's (rank, alpha, targets) or were trained beside another base, or
    beside one that was held in something else; the model is then unchanged.
    """
    _check_same(adapter, read_adapter(directory), directory)
    parameters = {_stored(name): p for name, p in model.named_parameters() if p.requires_grad}
    tensors = load_file(directory / TENSORS)
    expected = {name: list(parameter.shape) for name, parameter in parameters.items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            have, want = found.get(name, "no tensor"), expected.get(name, "none")
            raise PolicyError(
                f"the adapter in {directory} has {have} for {name}: expected {want} beside {adapter.base!r}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself, without an adapter: what it computed is in its weights now, all of which can be trained."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config
    return model.requires_grad_(True)


def base_tensors(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Of `model` without its adapter, on the CPU, by the names that they have in a plain model; those in NF4 are what
    they are rounded to."""
    plain = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    rounded = {f"{name}.weight": layer.weight() for name, layer in nf4.layers(model)}
    return {name.replace(INNER, "."): tensor.to("cpu", dtype) for name, tensor in (plain | rounded).items()}


def _config(adapter: Adapter) -> LoraConfig:
    return LoraConfig(
        base_model_name_or_path=adapter.base,
        task_type="CAUSAL_LM",
        r=adapter.lora.rank,
        lora_alpha=adapter.lora.alpha,  # pyright: ignore[reportArgumentType] - any number will do
        target_modules=list(adapter.lora.targets),
    )


def _stored(name: str) -> str:
    """A parameter's name on disk: "base_model.model.<layer>.lora_A.weight"."""
    return PREFIX + name.removesuffix(f".{NAME}.weight") + ".weight"


def _check_same(wanted: Adapter, stored: Adapter, directory: Path) -> None:
    for key, want in wanted.lora:
        have = getattr(stored.lora, key)
        known = key != "base" or stored.base_digest  # another program does not say what it trained beside
        if known and want != have:
            raise PolicyError(f"policy.adapter.{key} is {_shown(want)}: the adapter in {directory} has {_shown(have)}")
    if stored.base_digest not in ("", wanted.base_digest):
        raise PolicyError(
            f"policy.model: the weights of {wanted.base!r} are not those that the adapter in {directory} was trained "
            f"beside ({stored.base!r})"
        )


def _shown(value: object) -> str:
    return _listed(value) if isinstance(value, tuple) else str(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
