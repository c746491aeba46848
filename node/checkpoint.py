"""Everything a node needs to go on after it was killed, in safetensors and JSON: written aside, verified when read.

    checkpoints/
        step-00000100/
        step-00000150/
            model/                 as the policy's own library writes it (Hugging Face layout)
            optimizer.safetensors  tensors: optimiser moments, the sampling generator's state
            state.json             the rest: tracker, sampler, counters, the pool's chance
            manifest.json          size and SHA-256 of every other file; written last

A checkpoint is there as a whole or not at all: every file is fsynced before the directory gets its name. History is
linear: what is beyond the step that is saved was found damaged when this run resumed from before it, and is renamed to
`<name>.damaged`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from node.datadir import sync
from swarm.errors import CheckpointError

log = logging.getLogger(__name__)

FORMAT = 1
NAME = re.compile(r"step-(\d{8,})(\.superseded)?")
"""A superseded one is about to be replaced by another of the same step, and counts until that is there."""
ASIDE = ".saving-"
MODEL, TENSORS, STATE, MANIFEST = "model", "optimizer.safetensors", "state.json", "manifest.json"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: NonNegativeInt
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    step: NonNegativeInt
    files: dict[str, _File]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One that was complete and undamaged when it was opened."""

    step: int
    path: Path
    state: dict[str, Any]

    @property
    def model_dir(self) -> Path:
        return self.path / MODEL

    def tensors(self) -> dict[str, torch.Tensor]:
        """On the CPU, freshly read."""
        return load_file(self.path / TENSORS)


class CheckpointStore:
    """The checkpoints of one node. One process writes; any may read."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint must be kept")
        self.directory = directory
        self.keep = keep

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        spare: Collection[int] = (),
    ) -> Path:
        """Writes a checkpoint, then removes all but the newest `keep` and those of the steps `spare`. Blocks: for a
        thread, not for the event loop.

        `write_model` gets an empty directory to fill. `state` must survive JSON: string keys, lists, finite numbers.
        None of it may change until this returns. Raises CheckpointError naming the path and the reason (a full disk,
        say); the earlier checkpoints are then untouched.
        """
        final = self.directory / f"step-{step:08d}"
        aside = self.directory / (ASIDE + final.name)
        try:
            self._sweep()
            (aside / MODEL).mkdir(parents=True)
            write_model(aside / MODEL)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / TENSORS)
            (aside / STATE).write_text(_to_json(state, step))
            _seal(aside, step)
            self._put(aside, final)
            self._prune(step, spare)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise CheckpointError(f"checkpoint {final} cannot be written: {error}") from error
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return final

    def latest(self) -> Checkpoint | None:
        """The newest one that is complete and undamaged; the others are skipped with a warning. None if there is none.

        Reads every byte of it. Raises CheckpointError for one that another version of this program made: falling back
        to an older one would silently undo progress.
        """
        for step, path in reversed(self._found()):
            try:
                return _verified(path, step)
            except _Damage as damage:
                log.warning("checkpoint %s is skipped: %s", path, damage)
        return None

    def _found(self) -> list[tuple[int, Path]]:
        """By step; of one step the superseded one first."""
        if not self.directory.is_dir():
            return []
        named = ((NAME.fullmatch(path.name), path) for path in self.directory.iterdir())
        found = [(int(match[1]), match[2] is None, path) for match, path in named if match]
        return [(step, path) for step, _, path in sorted(found)]

    def _sweep(self) -> None:
        """What a crash in the middle of `save` left behind."""
        for path in self.directory.glob(f"{ASIDE}*"):
            shutil.rmtree(path)

    def _put(self, aside: Path, final: Path) -> None:
        """Gives the checkpoint its name. A directory cannot replace another in one go, so the old one steps aside."""
        superseded = final.with_name(f"{final.name}.superseded")
        if final.exists():
            if superseded.exists():
                shutil.rmtree(superseded)
            final.rename(superseded)
        aside.rename(final)
        sync(self.directory)
        sync(self.directory.parent)  # where the first one made the directory
        if superseded.exists():
            shutil.rmtree(superseded)

    def at(self, step: int) -> Checkpoint | None:
        """That of `step`; None if there is none, or it is damaged. Raises as `latest`."""
        for path in [path for found, path in reversed(self._found()) if found == step]:
            try:
                return _verified(path, step)
            except _Damage as damage:
                log.warning("checkpoint %s is skipped: %s", path, damage)
        return None

    def drop(self, steps: Collection[int]) -> None:
        """Those of these steps go. Raises CheckpointError."""
        try:
            for path in [path for step, path in self._found() if step in steps]:
                shutil.rmtree(path)
        except OSError as error:
            raise CheckpointError(f"a checkpoint in {self.directory} cannot be removed: {error}") from error

    def _prune(self, newest: int, spare: Collection[int]) -> None:
        found = self._found()
        for path in [path for step, path in found if step <= newest and step not in spare][: -self.keep]:
            shutil.rmtree(path)
        for path in [path for step, path in found if step > newest]:
            damaged = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            path.rename(damaged)


class _Damage(Exception):
    """Why a checkpoint is not whole."""


def _to_json(state: Mapping[str, Any], step: int) -> str:
    """Piece by piece: `json.dumps` would hold the interpreter, and with it the event loop, until all of it is done."""
    try:
        return "".join(json.JSONEncoder(allow_nan=False).iterencode(state))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state of step {step} cannot be written as JSON: {error}") from error


def _seal(path: Path, step: int) -> None:
    """Writes the manifest and makes everything durable, the directory's own name excepted."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    entries = {file.relative_to(path).as_posix(): _measure(file) for file in files}
    manifest = path / MANIFEST
    manifest.write_text(_Manifest(format=FORMAT, step=step, files=entries).model_dump_json(indent=1))
    directories = [path, *(inner for inner in path.rglob("*") if inner.is_dir())]
    for item in (*files, manifest, *directories):
        sync(item)


def _measure(file: Path) -> _File:
    with file.open("rb") as content:
        return _File(size=file.stat().st_size, sha256=hashlib.file_digest(content, "sha256").hexdigest())


def _verified(path: Path, step: int) -> Checkpoint:
    try:
        raw = json.loads((path / MANIFEST).read_bytes())
        if isinstance(raw, dict) and raw.get("format", FORMAT) != FORMAT:
            raise CheckpointError(f"checkpoint {path} has format {raw['format']}, this program knows {FORMAT}")
        manifest = _Manifest.model_validate(raw)
        for name, promised in manifest.files.items():
            if _measure(path / name) != promised:
                raise _Damage(f"{name} is not as the manifest describes it")
        if missing := {TENSORS, STATE} - manifest.files.keys():
            raise _Damage(f"the manifest lacks {', '.join(sorted(missing))}")
        if manifest.step != step:
            raise _Damage(f"the manifest is of step {manifest.step}")
        return Checkpoint(step=step, path=path, state=json.loads((path / STATE).read_bytes()))
    except (OSError, ValidationError, ValueError) as error:
        raise _Damage(str(error)) from error
