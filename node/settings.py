"""From a TOML file and `--set` flags to a `NodeConfig`, or to a sentence that says what is wrong with them.

Relative paths in the file are relative to the file, those in flags and `data_dir` to the current directory.
"""

from __future__ import annotations

import ipaddress
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from node.config import (
    ArithmeticTasks,
    ExchangeConfig,
    JsonlTasks,
    NodeConfig,
    P2PExchange,
    PluginTasks,
    RpcConfig,
    TaskConfig,
)
from swarm.config_errors import Complaint, complaints, shown
from swarm.errors import ConfigError
from swarm.tasks.base import SourceSpec, canonical_json

#: Keys of a file (in tables, and in the tables of a list) that name other files.
FILE_KEYS = (
    ("rpc", "token_file"),
    ("rpc", "tls_cert"),
    ("rpc", "tls_key"),
    ("swarm", "file"),
    ("swarm", "key_file"),
    ("tasks", "path"),
)
#: Keys whose tables name them.
FILE_TABLES = (("swarm", "files"),)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> NodeConfig:
    """The file's settings (or only defaults), changed by overrides such as "learner.lr=1e-4" or "tasks.0.name=sudoku".

    An override's value is TOML; what is not TOML is a string. Raises ConfigError, which names every key that is wrong.
    """
    data = {} if path is None else _read(path)
    for override in overrides:
        _override(data, override)
    wrong = [Complaint(key, f"{key} {why}") for key, why in _not_plain(data, "")]
    try:
        config = None if wrong else NodeConfig.model_validate(data)
    except ValidationError as error:
        config, wrong = None, complaints(error, NodeConfig)
    if config is not None:
        wrong = check(config)
    if "tasks" not in data and not _has_swarm_file(data):
        wrong.insert(0, Complaint("tasks", "tasks is missing"))
    if config is None or wrong:
        raise ConfigError("; ".join(f"{_where(path, overrides, c.key)}: {c.sentence}" for c in wrong))
    return config


def check(config: NodeConfig) -> list[Complaint]:
    """What no single key can tell."""
    wrong = []
    if config.pool.own_capacity < config.pool.own_groups:
        wrong.append(
            Complaint(
                "pool.own_capacity",
                f"pool.own_capacity = {config.pool.own_capacity} is not allowed; "
                f"it must be at least pool.own_groups ({config.pool.own_groups}), or no step is ever made",
            )
        )
    wrong += _check_swarm(config)
    names = [(task.type, task.name) for task in config.tasks]  # what the tracker and the evaluation tell them apart by
    for i, name in enumerate(names):
        if (first := names.index(name)) != i:
            wrong.append(Complaint(f"tasks.{i}", f"tasks.{i} has the name of tasks.{first}: {shown(name[1])}"))
    checks = {"rpc": lambda: check_rpc(config.rpc), "exchange": lambda: _check_exchange(config.exchange)}
    for key, raises in checks.items():
        try:
            raises()
        except ConfigError as error:
            wrong.append(Complaint(key, str(error)))
    return wrong


def _check_swarm(config: NodeConfig) -> Iterator[Complaint]:
    if config.swarm.file is None:
        for key in ("key_file", "files", "trust_plugins"):
            if getattr(config.swarm, key):
                yield Complaint(f"swarm.{key}", f"swarm.{key} needs swarm.file")
    elif config.tasks:
        yield Complaint("tasks", "tasks and swarm.file exclude each other; a swarm file's tasks are the only ones")


def _has_swarm_file(data: Mapping[str, Any]) -> bool:
    swarm = data.get("swarm")
    return isinstance(swarm, Mapping) and "file" in swarm


def doubts(config: NodeConfig) -> list[str]:
    """What is allowed and probably not wanted, a sentence each: an operator's first warnings."""
    if config.sampler.top_p < 1:
        return [
            f"sampler.top_p = {config.sampler.top_p}: what is never sampled is never unlearned, and the learner"
            " corrects as if the whole distribution had been sampled; 1.0 is what the correction is made for"
        ]
    return []


def check_rpc(rpc: RpcConfig) -> None:
    """Raises ConfigError unless the operator's service is on loopback or asks for a token, and TLS is whole."""
    if rpc.token_file is None and not is_loopback(rpc.host):
        raise ConfigError(
            f"rpc.token_file is missing; rpc.host = {shown(rpc.host)} can be reached from other machines, "
            "and only a loopback address (127.0.0.1) may go without a token"
        )
    if (rpc.tls_cert is None) != (rpc.tls_key is None):
        there, missing = ("tls_key", "tls_cert") if rpc.tls_cert is None else ("tls_cert", "tls_key")
        raise ConfigError(f"rpc.{missing} is missing; rpc.{there} needs it")


def _check_exchange(exchange: ExchangeConfig) -> None:
    if isinstance(exchange, P2PExchange):
        exchange.check_addresses()


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def task_specs(config: NodeConfig) -> list[SourceSpec]:
    """What the sources are made from, in the order of the file."""
    return [_spec(task) for task in config.tasks]


def _spec(task: TaskConfig) -> SourceSpec:
    if isinstance(task, JsonlTasks):
        settings, path = {"verifier": task.verifier}, str(task.path)
    elif isinstance(task, ArithmeticTasks):
        settings, path = task.model_dump(exclude={"type", "name", "weight"}), ""
    else:
        settings, path = task.config, ""
    kind = task.factory if isinstance(task, PluginTasks) else task.type
    return SourceSpec(type=kind, name=task.name, config=canonical_json(settings), path=path)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    _anchor(data, path.parent)
    return data


def _anchor(data: dict[str, Any], base: Path) -> None:
    """Makes the file's relative paths relative to where the file is. What is no path is left to be complained about."""
    for name, key in FILE_KEYS:
        tables = data.get(name)
        for table in tables if isinstance(tables, list) else [tables]:
            if isinstance(table, dict) and isinstance(table.get(key), str):
                table[key] = str(base / table[key])
    for name, key in FILE_TABLES:
        table = data.get(name)
        paths = table.get(key) if isinstance(table, dict) else None
        if isinstance(paths, dict):
            paths.update({label: str(base / path) for label, path in paths.items() if isinstance(path, str)})
    policy = data.get("policy")
    model = policy.get("model") if isinstance(policy, dict) else None
    if isinstance(policy, dict) and isinstance(model, str) and model != "seed" and (base / model).exists():
        policy["model"] = str(base / model)  # else it is the name of a model on the hub


def _override(data: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: it must be KEY=VALUE, such as learner.lr=1e-4")
    here: Any = data
    for i, key in enumerate(keys[:-1]):
        empty: dict[str, Any] | list[Any] = [] if keys[i + 1].isdecimal() else {}
        here = _enter(here, key, empty, override)
    _put(here, keys[-1], _toml_value(text.strip()), override)


def _enter(here: Any, key: str, empty: dict[str, Any] | list[Any], override: str) -> Any:
    """What is under `key`, which is made if it is not there."""
    if (isinstance(here, dict) and key not in here) or (isinstance(here, list) and key == str(len(here))):
        _put(here, key, empty, override)
    if isinstance(here, dict):
        return here[key]
    if isinstance(here, list) and key.isdecimal() and int(key) < len(here):
        return here[int(key)]
    raise _no_such_place(here, key, override)


def _put(here: Any, key: str, value: object, override: str) -> None:
    if isinstance(here, dict):
        here[key] = value
    elif isinstance(here, list) and key.isdecimal() and int(key) <= len(here):
        here[int(key) : int(key) + 1] = [value]
    else:
        raise _no_such_place(here, key, override)


def _no_such_place(here: object, key: str, override: str) -> ConfigError:
    if isinstance(here, list):
        return ConfigError(f"--set {override}: {key} is not an index; it must be 0 to {len(here)}")
    return ConfigError(f"--set {override}: {key} is not a key; it would be inside of {shown(here)}")


def _toml_value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _not_plain(value: object, key: str) -> list[tuple[str, str]]:
    """TOML's nan, inf, dates and times have no meaning in any key."""
    if isinstance(value, dict):
        return [found for k, v in value.items() for found in _not_plain(v, f"{key}.{k}" if key else k)]
    if isinstance(value, list):
        return [found for i, v in enumerate(value) for found in _not_plain(v, f"{key}.{i}")]
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return []
    kind = "a finite number" if isinstance(value, float) else "a string, a number or true or false"
    return [(key, f"= {value} is not allowed; it must be {kind}")]


def _where(path: Path | None, overrides: Sequence[str], key: str) -> str:
    """Which of the two to look at for `key`."""
    set_keys = [override.partition("=")[0].strip() for override in overrides]
    if path is None or any(f"{key}.".startswith(f"{k}.") or k.startswith(f"{key}.") for k in set_keys):
        return "--set"
    return str(path)
