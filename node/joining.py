"""From a config that names a swarm file to one that has all of it: tasks, weights, limits and first peers.

A file is a stranger's word. So its sources are those that this program has; a plug-in of its is imported only where the
operator trusts that very one, a file of tasks is where the operator says that it is, and a source that came out
differently here than the file says is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from node.config import NodeConfig, P2PExchange, TaskConfig
from swarm.config_errors import shown
from swarm.errors import ConfigError
from swarm.file import SwarmFile, SwarmSource, read_swarm_file
from swarm.limits import Limits
from swarm.manifest import AgreedSource, Manifest
from swarm.membership import Membership, read_key
from swarm.tasks.base import SourceInfo

_TASK: TypeAdapter[TaskConfig] = TypeAdapter(TaskConfig)
#: What has the version of a source, where that is a package.
_PACKAGES = {"reasoning_gym": "reasoning-gym"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    config: NodeConfig
    """With what the swarm file says."""
    file: SwarmFile | None
    """None where the config has tasks and a swarm's name of its own."""
    key: bytes | None

    def agreed(self, sources: Sequence[SourceInfo]) -> tuple[Manifest, Membership]:
        """The swarm of a node that has `sources`, made from `config` and in its order. Raises ConfigError when they are
        not the file's."""
        if self.file is None:
            manifest = Manifest.of(self.config.swarm.name, sources)
            return manifest, Membership(swarm=manifest.id)
        for wanted, source in zip(self.file.sources, sources, strict=True):
            _check_source(wanted, AgreedSource(name=source.name, version=source.version, config=source.config))
        return self.file.manifest, self.file.membership(self.key)


def joining(config: NodeConfig) -> Joining:
    """Raises ConfigError when the swarm file, its key or a task of its will not do. Imports no source."""
    if config.swarm.file is None:
        return Joining(config=config, file=None, key=None)
    file = read_swarm_file(config.swarm.file)
    key = None if config.swarm.key_file is None else read_key(config.swarm.key_file)
    file.membership(key)
    return Joining(config=with_swarm_file(config, file), file=file, key=key)


def with_swarm_file(config: NodeConfig, file: SwarmFile) -> NodeConfig:
    """`config` as it is in that swarm. Raises ConfigError."""
    changes: dict[str, object] = {
        "tasks": tuple(_task(config, source) for source in file.sources),
        "limits": stricter(config.limits, file.limits),
        "swarm": config.swarm.model_copy(update={"name": file.name}),
    }
    if isinstance(config.exchange, P2PExchange):
        peers = dict.fromkeys([*config.exchange.initial_peers, *file.bootstrap])
        changes["exchange"] = config.exchange.model_copy(update={"initial_peers": tuple(peers)})
    return config.model_copy(update=changes)


def stricter(own: Limits, agreed: Limits) -> Limits:
    """Field by field the smaller one; where our own is only a default, the agreed one."""
    chosen = {key: min(getattr(own, key), getattr(agreed, key)) for key in own.model_fields_set}
    return agreed.model_copy(update=chosen)


def check_policy(manifest: Manifest, model: str, tokenizer: str) -> None:
    """Raises ConfigError when a policy of these fingerprints may not take part: its groups would all be refused."""
    complaint = manifest.model_complaint(model, tokenizer)
    if complaint is not None:
        raise ConfigError(f"policy.model: {complaint} ({', '.join(sorted(manifest.models | manifest.tokenizers))})")


def _task(config: NodeConfig, source: SwarmSource) -> TaskConfig:
    """As the file's source would stand in a node's own config. What the file must not choose comes last: a setting
    called "type" or "path" changes neither."""
    settings = json.loads(source.agreed.config)
    if source.plugin:
        _check_trusted(config, source)
        table = {"config": settings, "factory": source.type, "type": "plugin"}
    elif source.type == "jsonl":
        table = {**settings, "path": _path(config, source), "type": "jsonl"}
    elif source.type == "reasoning_gym":
        table = {"config": settings, "type": "reasoning_gym"}
    else:
        table = {**settings, "type": source.type}
    try:
        return _TASK.validate_python({**table, "name": source.label, "weight": source.weight})
    except ValidationError as error:
        wrong = ", ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()[:3])
        raise ConfigError(
            f"{config.swarm.file}: source {source.agreed.name} has settings that do not fit: {wrong}"
        ) from None


def _check_trusted(config: NodeConfig, source: SwarmSource) -> None:
    if source.type not in config.swarm.trust_plugins:
        raise ConfigError(
            f"{config.swarm.file}: source {source.agreed.name} is the plug-in {source.type}, code that this node would"
            f" import and run; if you know and trust it, install it and add {shown(source.type)} to swarm.trust_plugins"
        )


def _path(config: NodeConfig, source: SwarmSource) -> str:
    if source.label not in config.swarm.files:
        raise ConfigError(
            f"{config.swarm.file}: source {source.agreed.name} is a file that is not fetched: get it from whoever runs"
            f" the swarm (SHA-256 {source.agreed.version}) and set swarm.files.{source.label} to its path"
        )
    return str(config.swarm.files[source.label])


def _check_source(wanted: SwarmSource, here: AgreedSource) -> None:
    if here == wanted.agreed:
        return
    name = wanted.agreed.name
    if here.name != name:
        raise ConfigError(f"source {name} of the swarm file calls itself {here.name} here")
    if here.config != wanted.agreed.config:
        raise ConfigError(
            f"source {name}: the swarm has it with config {wanted.agreed.config}, here it is {here.config}"
        )
    raise ConfigError(
        f"source {name}: the swarm needs version {wanted.agreed.version}, here is {here.version}{_remedy(wanted)}"
    )


def _remedy(wanted: SwarmSource) -> str:
    if wanted.type == "jsonl":
        return " (the SHA-256 of the file): swarm.files must name the swarm's own"
    package = _PACKAGES.get(wanted.type)
    return f"; install it (pip install {package}=={wanted.agreed.version})" if package else "; install that one"
