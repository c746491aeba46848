"""Everything a node needs to go on after it was killed, in safetensors and JSON: written aside, verified when read.

    checkpoints/
        step-00000100/
        step-00000150/
            model/                 as the policy's own library writes it (Hugging Face layout)
            optimizer.safetensors  tensors: optimiser moments, the sampling generator's state
            state.json             the rest: tracker, sampler, counters, the pool's chance, which groups wait
            score.json             how good it was, where anything was known of that
            manifest.json          size and SHA-256 of every other file; written last
            pinned                 an operator's: as long as it is there, the checkpoint is not removed

A checkpoint is there as a whole or not at all: every file is fsynced before the directory gets its name. History is
linear: what is beyond the step that is saved was found damaged when this run resumed from before it, and is renamed to
`<name>.damaged`. Of the others stay the newest, the best and those that are pinned.
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
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from node.datadir import sync
from swarm.errors import CheckpointError

log = logging.getLogger(__name__)

FORMAT = 1
NAME = re.compile(r"step-(\d{8,})(\.superseded)?")
"""A superseded one is about to be replaced by another of the same step, and counts until that is there."""
ASIDE, GOING = ".saving-", ".removing-"
MODEL, TENSORS, STATE, MANIFEST = "model", "optimizer.safetensors", "state.json", "manifest.json"
SCORE, PINNED = "score.json", "pinned"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: NonNegativeInt
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    step: NonNegativeInt
    files: dict[str, _File]


class Score(BaseModel):
    """How good a policy was when it was written down. What was evaluated is worth more than what was rewarded."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: Literal["own_reward", "held_out"]
    """Moving average of own rewards, or mean over task families of the newest evaluation's pass@1."""
    value: FiniteFloat
    step: NonNegativeInt
    """Of the policy that it was measured on."""

    @property
    def rank(self) -> tuple[bool, float]:
        return self.metric == "held_out", self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One that is there; whether it is whole is not known."""

    step: int
    path: Path
    score: Score | None
    pinned: bool


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

    def tensor(self, name: str) -> torch.Tensor:
        """One of them, without the others."""
        with safe_open(self.path / TENSORS, framework="pt") as file:
            return file.get_tensor(name)


class CheckpointStore:
    """The checkpoints of one node. One process writes; any may read."""

    def __init__(self, directory: Path, keep: int = 2, keep_best: int = 1) -> None:
        """Stay: the newest `keep`, the `keep_best` with the highest scores, and those that are pinned."""
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint must be kept")
        self.directory = directory
        self.keep = keep
        self.keep_best = keep_best

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        score: Score | None = None,
        spare: Collection[int] = (),
    ) -> Path:
        """Writes a checkpoint, then removes those that need not stay; those of the steps `spare` do. Blocks: for a
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
            if score is not None:
                (aside / SCORE).write_text(score.model_dump_json())
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

    def best(self) -> Checkpoint | None:
        """The one with the highest score that is complete and undamaged; the newest where none has one. Raises as
        `latest`."""
        for entry in sorted((e for e in self.entries() if e.score), key=_rank, reverse=True):
            try:
                return _verified(entry.path, entry.step)
            except _Damage as damage:
                log.warning("checkpoint %s is skipped: %s", entry.path, damage)
        return self.latest()

    def entries(self) -> list[Entry]:
        """All that are there, the oldest first."""
        return [
            Entry(step=step, path=path, score=_score_of(path), pinned=(path / PINNED).exists())
            for step, path in self._found()
        ]

    def pin(self, step: int, pinned: bool) -> None:
        """Whether that of `step` stays whatever comes. Raises CheckpointError if there is none."""
        paths = [path for found, path in self._found() if found == step]
        if not paths:
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.directory}")
        try:
            for path in paths:
                (path / PINNED).touch() if pinned else (path / PINNED).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint {paths[-1]} cannot be pinned or unpinned: {error}") from error

    def _found(self) -> list[tuple[int, Path]]:
        """By step; of one step the superseded one first."""
        if not self.directory.is_dir():
            return []
        named = ((NAME.fullmatch(path.name), path) for path in self.directory.iterdir())
        found = [(int(match[1]), match[2] is None, path) for match, path in named if match]
        return [(step, path) for step, _, path in sorted(found)]

    def _sweep(self) -> None:
        """What a crash in the middle of `save` left behind."""
        for prefix in (ASIDE, GOING):
            for path in self.directory.glob(f"{prefix}*"):
                shutil.rmtree(path)

    def _put(self, aside: Path, final: Path) -> None:
        """Gives the checkpoint its name. A directory cannot replace another in one go, so the old one steps aside."""
        superseded = final.with_name(f"{final.name}.superseded")
        if final.exists():
            if superseded.exists():
                self._remove(superseded)
            final.rename(superseded)
        aside.rename(final)
        sync(self.directory)
        sync(self.directory.parent)  # where the first one made the directory
        if superseded.exists():
            self._remove(superseded)

    def at(self, step: int) -> Checkpoint | None:
        """That of `step`; None if there is none, or it is damaged. Raises as `latest`."""
        for path in [path for found, path in reversed(self._found()) if found == step]:
            try:
                return _verified(path, step)
            except _Damage as damage:
                log.warning("checkpoint %s is skipped: %s", path, damage)
        return None

    def drop(self, steps: Collection[int]) -> None:
        """Those of these steps go, unless they are pinned. Raises CheckpointError."""
        try:
            for path in [entry.path for entry in self.entries() if entry.step in steps and not entry.pinned]:
                self._remove(path)
        except OSError as error:
            raise CheckpointError(f"a checkpoint in {self.directory} cannot be removed: {error}") from error

    def _prune(self, newest: int, spare: Collection[int]) -> None:
        entries = self.entries()
        older = [entry for entry in entries if entry.step <= newest and entry.step not in spare][: -self.keep]
        scored = sorted((e for e in entries if e.score and e.step <= newest), key=_rank, reverse=True)
        best = [entry.path for entry in scored[: self.keep_best]]
        for entry in older:
            if not entry.pinned and entry.path not in best:
                self._remove(entry.path)
        for path in [entry.path for entry in entries if entry.step > newest]:
            damaged = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            path.rename(damaged)

    def _remove(self, path: Path) -> None:
        """Under another name: what a crash leaves of it must not look like a checkpoint."""
        going = path.with_name(GOING + path.name)
        path.rename(going)
        shutil.rmtree(going)


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


def _score_of(path: Path) -> Score | None:
    try:
        return Score.model_validate_json((path / SCORE).read_bytes())
    except (OSError, ValidationError):
        return None


def _rank(entry: Entry) -> tuple[bool, float, int]:
    """Of equally good ones the newer is the better."""
    assert entry.score is not None
    return *entry.score.rank, entry.step
