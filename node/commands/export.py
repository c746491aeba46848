"""swarm-node export: what a node has learned, as a model for other programs."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from node.datadir import DataDirectory
from swarm.errors import CheckpointError, ConfigError, PolicyError

DESCRIPTION = """\
Writes a model in Hugging Face layout: the newest checkpoint of a node, which may be
running, or the checkpoint or model that SOURCE is. An adapter stays one, beside the base
that it names, or with --merge becomes part of a plain model: of the base's own weights,
also where it was trained beside rounded ones (policy.adapter.base = "nf4").
"""
EPILOG = """\
examples:
  swarm-node export runs/solo models/mine
  swarm-node export runs/lora models/mine --merge --dtype bfloat16
  swarm-node export runs/lora/checkpoints/step-00000100 models/step-100 --merge
"""
#: What an adapter's directory has and a plain model's has not, and where a checkpoint has either.
ADAPTER, MODEL = "adapter_config.json", "model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a data_dir, a checkpoint or a model's directory")
    parser.add_argument("out", metavar="OUT", type=Path, help="a directory that is new or empty")
    parser.add_argument("--best", action="store_true", help="of a data_dir the best checkpoint, not the newest")
    parser.add_argument("--merge", action="store_true", help="an adapter becomes part of its base's weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of merged weights (as they were trained)")


def main(arguments: argparse.Namespace) -> int:
    source, out, dtype = arguments.source, arguments.out, arguments.dtype
    if not source.is_dir():
        raise ConfigError(f"SOURCE = {source}: there is no such directory")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"OUT = {out} is there already: expected a directory that is new or empty")
    if dtype and not arguments.merge:
        raise ConfigError(f"--dtype {dtype} needs --merge: without it, files are copied as they are")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
            copied, plain = Path(aside) / "copied", Path(aside) / "plain"
            origin = _copy(source, copied, arguments.best)
            if arguments.merge and (dtype or _is_adapter(copied)):
                _save_plain(copied, plain, dtype or "float32")
            written = plain if plain.exists() else copied
            written.rename(out)
    except OSError as error:
        raise PolicyError(f"{source} cannot be exported to {out}: {error}") from error
    print(f"{out}: {'an adapter' if _is_adapter(out) else 'a plain model'}, from {origin}")
    return 0


def _copy(source: Path, to: Path, best: bool) -> Path:
    """Copies the model that `source` stands for, and returns where it is. Raises SwarmError, OSError."""
    if _is_model(source):
        return _copy_files(source, to, [path for path in source.rglob("*") if path.is_file()])
    if _is_model(source / MODEL):
        return _copy_checkpoint(source, to)
    from node.checkpoint import CheckpointStore  # torch

    store = CheckpointStore(DataDirectory(source).checkpoints)
    find = store.best if best else store.latest
    while checkpoint := find() or find():  # the only one may be replaced while it is verified
        try:
            return _copy_checkpoint(checkpoint.path, to)
        except FileNotFoundError:  # a running node has removed it since, so there is a newer one
            shutil.rmtree(to, ignore_errors=True)
    raise CheckpointError(f"SOURCE = {source} is no model, no checkpoint and no data_dir with a whole checkpoint in it")


def _copy_checkpoint(checkpoint: Path, to: Path) -> Path:
    """By its manifest: of one that is being removed, a part would be found without an error."""
    names = json.loads((checkpoint / "manifest.json").read_bytes())["files"]
    files = [checkpoint / name for name in names if name.startswith(f"{MODEL}/")]
    return _copy_files(checkpoint / MODEL, to, files)


def _copy_files(directory: Path, to: Path, files: Sequence[Path]) -> Path:
    for file in files:
        copy = to / file.relative_to(directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return directory


def _is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file() or _is_adapter(directory)


def _is_adapter(directory: Path) -> bool:
    return (directory / ADAPTER).is_file()


def _save_plain(source: Path, directory: Path, dtype: str) -> None:
    from node.engine.policy import prepare_process, save_plain  # torch

    prepare_process(threads=0)
    save_plain(str(source), directory, dtype)
