"""What a node has before its first start: a directory, an identity in it, a config, and the file of its swarm.

Nothing that is there already is ever written over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from node.datadir import DataDirectory
from node.settings import load_config
from swarm.errors import ConfigError
from swarm.file import SwarmFile, parse_swarm_file, read_swarm_file
from swarm.membership import read_key
from swarm.toml import toml_lines
from swarm.wire.identity import Identity

CONFIG, SWARM = "config.toml", "swarm.toml"

_HEAD = """\
# A node of swarm-node. `swarm-node run` with this file starts it; `swarm-node config` with it prints every setting.
"""
_POLICY = """
[policy]
model = "seed"                     # made here in seconds; a local directory or hub id works as well

[learner]
lr = 5e-4                          # the seed model is tiny; a real one wants 1e-6

[exchange]
type = "p2p"
# listen = ["/ip4/0.0.0.0/tcp/31337"]                  # a port of your choice, for a firewall to let in
# announce = ["/ip4/203.0.113.7/tcp/31337"]            # where others reach you, behind NAT or in a container
"""
_JOINED = """
# Tasks, limits and first peers are the swarm file's.
[swarm]
"""
_ALONE = """
[sampler]
max_new_tokens = 24                # enough for every answer to these tasks

# A swarm of your own: its name and its tasks are its id. `swarm-node swarm create` makes a file of it.
[swarm]
name = "local"

[[tasks]]
type = "reasoning_gym"
name = "spell_backward"
config = { min_word_len = 3, max_word_len = 6 }

[[tasks]]
type = "reasoning_gym"
name = "number_sorting"
config = { min_numbers = 2, max_numbers = 3, min_value = 0, max_value = 9, min_decimals = 0, max_decimals = 0 }
"""


def make_home(directory: Path, *, name: str, swarm: Path | None = None, key_file: Path | None = None) -> Iterator[str]:
    """Makes what is missing in `directory`, and says of each thing whether it was made or there.

    Raises ConfigError before anything is made when the swarm file or its key will not do, or when what is there is of
    another swarm.
    """
    data = _whole(swarm)
    if data is not None:
        _check(directory, data, key_file)
    return _made(directory, name, data, key_file)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Raises ConfigError where there is a file already, or none can be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already, and is not written over") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def default_directory(file: SwarmFile) -> Path:
    """Of a node in that swarm. The name is a stranger's: only its letters and digits get into a path."""
    plain = re.sub(r"[^a-z0-9]+", "-", file.name.lower()).strip("-")[:32] or "swarm"
    return Path("runs") / f"{plain}-{file.id[:8]}"


def _made(directory: Path, name: str, swarm: bytes | None, key_file: Path | None) -> Iterator[str]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be used: {error.strerror}") from error
    identity = DataDirectory(directory).identity
    state = "is there already" if identity.exists() else "made; who has this file is this node, so keep it"
    yield f"{identity}: peer {Identity.load_or_create(identity).peer_id}, {state}"
    if swarm is not None:
        yield _put(directory / SWARM, swarm, f"swarm {parse_swarm_file(swarm).name}")
    config = _config(directory, name, swarm is not None, key_file)
    yield _put(directory / CONFIG, config.encode(), f"node {name}")


def _put(path: Path, data: bytes, what: str) -> str:
    if path.exists():
        return f"{path}: is there already, and stays as it is"
    write_new(path, data)
    return f"{path}: {what}, made"


def _config(directory: Path, name: str, joined: bool, key_file: Path | None) -> str:
    own = {"name": name, "data_dir": str(directory.resolve())}
    swarm = {"file": SWARM} | ({} if key_file is None else {"key_file": str(key_file.resolve())})
    rest = _JOINED + "\n".join(toml_lines(swarm)) + "\n" if joined else _ALONE
    return _HEAD + "\n" + "\n".join(toml_lines(own)) + "\n" + _POLICY + rest


def _whole(swarm: Path | None) -> bytes | None:
    if swarm is None:
        return None
    read_swarm_file(swarm)
    return swarm.read_bytes()


def _check(directory: Path, swarm: bytes, key_file: Path | None) -> None:
    file = parse_swarm_file(swarm)
    path = directory / CONFIG
    if path.exists():
        there = load_config(path).swarm.file
        of = None if there is None else read_swarm_file(there)
        if of is None or of.id != file.id:
            other = "a swarm without a file" if of is None else f"swarm {of.name}, id {of.id}"
            raise ConfigError(f"{path}: is of {other}; give swarm {file.name}, id {file.id}, a directory of its own")
    elif (directory / SWARM).exists() and read_swarm_file(directory / SWARM).id != file.id:
        raise ConfigError(f"{directory / SWARM}: is another swarm; give {file.name}, id {file.id}, its own directory")
    else:
        file.membership(None if key_file is None else read_key(key_file))
