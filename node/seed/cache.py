"""The built-in model: made once per machine, in seconds, and kept in the user's cache directory."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from node.engine.text import HfTextCodec
from node.seed.demonstrations import DEMO_FAMILIES, demonstrations, distinct, make_sources
from node.seed.tokenizer import common_pairs, common_phrases, make_tokenizer
from node.seed.training import EVEN, STRONG, WEAK, Goal, Recipe, train
from swarm.errors import PolicyError
from swarm.tasks.base import SourceSpec, TaskSource

#: Questions of a family that are compared to find its phrases.
PHRASE_SAMPLE = 64
#: Their seed: a constant, so that all nodes with the same families have the same tokenizer.
PHRASE_SEED = 0
#: Written last: the digest of every other file of the model.
SEAL = "seal.json"
#: Libraries that the result depends on.
LIBRARIES = ("torch", "transformers", "tokenizers", "reasoning-gym")

Report = Callable[[str], None]


def seed_model(
    families: Sequence[SourceSpec] = DEMO_FAMILIES,
    strong: str | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    report: Report | None = None,
    recipe: Recipe | None = None,
    goals: Mapping[str, Goal] | None = None,
) -> Path:
    """Directory of a small model in Hugging Face layout that has begun to learn `families`, made when it is not there.

    With `strong` (a family's name) it is good at that one and poor at the others; without, middling at all; with
    `goals`, one for every family, what they say. Another
    `seed` is another model: other initial weights, other demonstrations; the tokenizer depends on the families alone.
    Two processes may ask for the same model at once: one makes it, the other waits. A damaged one is made again.

    Raises PolicyError for a `strong` that is no family, or when training does not reach the floors.
    """
    goals = _goals(families, strong) if goals is None else goals
    recipe = recipe or Recipe()
    home = (cache_dir or default_cache()) / _digest(families, goals, seed, recipe)
    home.parent.mkdir(parents=True, exist_ok=True)
    with _locked(home.with_suffix(".lock")):
        if not _is_whole(home):
            partial = home.with_suffix(".partial")
            for leftover in (home, partial):
                shutil.rmtree(leftover, ignore_errors=True)
            with _one_thread():
                _make(partial, families, goals, seed, recipe, report or _silent)
            partial.rename(home)
    return home


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swarm-node" / "seed"


def family_tokenizer(sources: Sequence[TaskSource], max_length: int, pairs: int = 0) -> PreTrainedTokenizerFast:
    """Depends on nothing but the sources. `pairs` of letters, the most frequent in answers, are one token each."""
    phrases: list[str] = []
    answers: list[str] = []
    for source in sources:
        tasks = distinct(demonstrations(source, PHRASE_SEED), PHRASE_SAMPLE)
        phrases += common_phrases([task.prompt for task in tasks])
        phrases += common_phrases([task.answer for task in tasks])
        answers += [task.answer for task in tasks]
    return make_tokenizer(phrases, max_length, common_pairs(answers, pairs))


def _goals(families: Sequence[SourceSpec], strong: str | None) -> dict[str, Goal]:
    names = [family.name for family in families]
    if strong is None:
        return dict.fromkeys(names, EVEN)
    if strong not in names:
        raise PolicyError(f"strong = {strong!r}: expected one of the families {', '.join(names)}")
    return {name: STRONG if name == strong else WEAK for name in names}


def _digest(families: Sequence[SourceSpec], goals: Mapping[str, Goal], seed: int, recipe: Recipe) -> str:
    parts = {
        "recipe": asdict(recipe),
        "families": [asdict(family) for family in families],
        "goals": {name: asdict(goal) for name, goal in goals.items()},
        "seed": seed,
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _make(
    directory: Path,
    families: Sequence[SourceSpec],
    goals: Mapping[str, Goal],
    seed: int,
    recipe: Recipe,
    report: Report,
) -> None:
    sources = make_sources(families)
    tokenizer = family_tokenizer(list(sources.values()), recipe.max_positions, recipe.pairs)
    trained = train(recipe, HfTextCodec(tokenizer), sources, goals, seed, report)
    report(f"seed model made: {trained.steps} steps, {trained.seconds:.1f} s")
    _save_model(trained.model, directory)
    tokenizer.save_pretrained(directory)
    (directory / SEAL).write_text(json.dumps(_file_digests(directory), indent=1))


def _save_model(model: Qwen3ForCausalLM, directory: Path) -> None:
    """`save_pretrained` draws a progress bar wherever it is called; the files are the same."""
    directory.mkdir()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _is_whole(directory: Path) -> bool:
    try:
        sealed = json.loads((directory / SEAL).read_text())
    except (OSError, ValueError):
        return False
    return sealed == _file_digests(directory)


def _file_digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != SEAL)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Between processes; the system releases it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices of this size gain nothing from more, and sums in one order make the same seed the same model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _silent(_: str) -> None: ...
