"""What the demo starts: options in, one configuration per node out. Pure; no process, no clock, no import of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

NAMES = (
    "alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel",
    "ivy", "juniper", "kapok", "larch", "maple", "nutmeg", "oak", "pine",
)  # fmt: skip
"""Of trees, in the order of the alphabet: a node's name, colour and number keep together."""
PEERS_GROUPS = 96
"""That a step of a node in the swarm draws at most, beside the own ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of task, as a node's config names it."""

    name: str
    """ "spell_backward"."""
    type: str = "reasoning_gym"
    config: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    nodes: int = 4
    steps: int = 200
    """Per node; a node that has made them goes on sharing until the fleet is stopped."""
    minutes: float = 5.0
    """Wall clock of a fleet's run (not of the models' making and evaluation), whichever ends first."""
    seed: int = 0
    engine: str = "transformers"
    """That samples, on every node: "vllm" is a process of its own for each, which pays for models that are not tiny."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE, handed to every node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    number: int
    """From 1."""
    name: str
    strong: str
    """The family that its seed model is good at."""
    steps: int
    """That it makes."""
    model_seed: int
    """Of its seed model: no two nodes start from the same weights or were taught with the same data."""
    directory: Path
    """Its data directory; the config is beside the data."""

    @property
    def config_file(self) -> Path:
        return self.directory / "node.toml"

    @property
    def log_file(self) -> Path:
        return self.directory / "log"


@dataclass(frozen=True, slots=True)
class Meeting:
    """How a node and the others find each other."""

    listen: str = "/ip4/127.0.0.1/tcp/0"
    """Multiaddr."""
    initial_peers: Sequence[str] = ()
    """Multiaddrs, with peer ids."""


def plan_nodes(
    options: DemoOptions, families: Sequence[Family], root: Path, steps: Mapping[str, int] | None = None
) -> list[NodePlan]:
    """`options.nodes` nodes under root/node-1, root/node-2, ...; families round robin. `steps`: of the nodes (by name)
    that are to make other than `options.steps`."""
    return [
        NodePlan(
            number=i + 1,
            name=_name(i),
            steps=(steps or {}).get(_name(i), options.steps),
            strong=families[i % len(families)].name,
            model_seed=options.seed * 100 + i + 1,
            directory=root / f"node-{i + 1}",
        )
        for i in range(options.nodes)
    ]


def _name(number: int) -> str:
    """Of a node, counted from 0."""
    return NAMES[number] if number < len(NAMES) else f"tree-{number + 1}"


def node_settings(
    plan: NodePlan,
    options: DemoOptions,
    families: Sequence[Family],
    *,
    model: Path,
    swarm: str,
    meeting: Meeting | None,
) -> dict[str, object]:
    """The node's config, as the tables of `node.config.NodeConfig`. Without a meeting it differs in the exchange and in
    nothing else that a node without peers would notice."""
    return {
        "name": plan.name,
        "data_dir": str(plan.directory.resolve()),
        "seed": options.seed * 1000 + plan.number,
        "max_steps": plan.steps,
        "threads": 1,  # a model this small is slowed down by a second thread, and the nodes share the machine
        "policy": {"model": str(model.resolve())},
        "tasks": [{"type": f.type, "name": f.name, "config": dict(f.config)} for f in families],
        "engine": {"type": options.engine},
        "sampler": {"concurrency": 64, "max_new_tokens": 24},
        "learner": {"lr": 5e-4, "warmup_steps": 10, "tokens_per_micro_batch": 2048},
        # One operator's nodes know each other: none has to earn its share first.
        "pool": {
            "foreign_groups": PEERS_GROUPS if meeting else 0,
            "newcomer_share": 1.0,
        },
        "swarm": {"name": swarm},
        "exchange": _exchange(meeting) if meeting else {"type": "none"},
        "eval": {"every_steps": 25, "tasks_per_family": 32},
        "checkpoint": {"every_steps": 100},
    }


def _exchange(meeting: Meeting) -> dict[str, object]:
    return {
        "type": "p2p",
        "listen": [meeting.listen],
        "initial_peers": list(meeting.initial_peers),
        "heartbeat_s": 5.0,
        "relay": False,
    }


def to_toml(tables: Mapping[str, object]) -> str:
    """TOML of nested dicts with strings, numbers, booleans, lists of those, and lists of dicts (arrays of tables).

    Inline tables for everything below the second level, which is where configs stop being read by people.
    """
    plain = {k: v for k, v in tables.items() if not isinstance(v, Mapping) and not _is_array_of_tables(v)}
    blocks = ["".join(f"{_key(k)} = {_value(v)}\n" for k, v in plain.items())]
    for key, value in tables.items():
        if isinstance(value, Mapping):
            blocks.append(f"[{_key(key)}]\n" + _lines(value))
        elif _is_array_of_tables(value):
            blocks += [f"[[{_key(key)}]]\n" + _lines(item) for item in value]
    return "\n".join(block for block in blocks if block)


def _lines(table: Mapping[object, object]) -> str:
    return "".join(f"{_key(str(k))} = {_value(v)}\n" for k, v in table.items())


def _is_array_of_tables(value: object) -> TypeGuard[list[Mapping[object, object]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML forbids DEL; JSON does not


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case list() | tuple():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case Mapping():
            return "{ " + ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items()) + " }"
        case _:
            raise TypeError(f"{value!r} has no place in a config")
