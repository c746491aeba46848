"""Which module may import what: the floors, the one home of everything heavy, and what has no home at all.

The tables are the rule. `complaints` applies them to one module's source; made-up bad modules show that it would catch
them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
GENERATED = "swarm/wire/v1/*"
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for top in ("swarm", "node")
    for path in (ROOT / top).rglob("*.py")
    if not path.relative_to(ROOT).match(GENERATED)
)

#: Bottom to top: a module imports its own floor and those below. The longest pattern that fits a module is its own.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "swarm/__init__.py",
        "swarm/types.py",
        "swarm/errors.py",
        "swarm/config_errors.py",
        "swarm/toml.py",
        "swarm/limits.py",
        "swarm/membership.py",
        "swarm/footprint.py",
    ),
    ("swarm/net/__init__.py", "swarm/net/base.py", "swarm/tasks/base.py"),
    ("swarm/wire/*", GENERATED),
    (
        "swarm/tasks/*",
        "swarm/manifest.py",
        "swarm/plausible.py",
        "swarm/near_duplicates.py",
        "swarm/verify.py",
    ),
    ("swarm/net/*", "swarm/file.py", "swarm/file_content.py"),
    (
        "node/__init__.py",
        "node/table.py",
        "node/time_account.py",
        "node/supervision.py",
        "node/logs.py",
        "node/exit_codes.py",
        "node/algorithms.py",
        "node/config.py",
        "node/settings.py",
        "node/joining.py",
        "node/experience.py",
        "node/holds.py",
        "node/text_codec.py",
    ),
    ("node/rl/*",),
    ("node/engine/*", "node/engine/vllm/*", "node/engine/ranks/*", "node/seed/*"),
    ("node/*.py", "node/doctor/*"),  # the loops and what they work with
    ("node/assembly.py",),
    ("node/daemon.py", "node/operated.py", "node/rpc.py", "node/operator_client.py"),
    ("node/cli.py", "node/commands/*", "node/demo/*", "node/lab/*", "node/lab/experiments/*"),
)
#: What may be imported from above, for type checkers only: protocols.
PROTOCOLS = ("node/engine/base.py",)

#: Where else is nobody's business. The longest name that fits an import decides.
HOMES: dict[str, tuple[str, ...]] = {
    "torch": (
        "node/rl/*",
        "node/engine/*",
        "node/engine/vllm/*",
        "node/engine/ranks/*",
        "node/seed/*",
        "node/checkpoint.py",
        "node/progress.py",
        "node/saving.py",
        "node/commands/evaluate_policy.py",
        "node/lab/exam.py",
        "node/lab/scoring.py",
        "node/lab/simulation.py",
    ),
    "transformers": ("node/engine/*", "node/engine/vllm/*", "node/engine/ranks/*", "node/seed/*"),
    "vllm": ("node/engine/vllm/*",),
    "peft": ("node/engine/lora.py",),
    "torchao": ("node/engine/eight_bit.py",),
    "bitsandbytes": ("node/engine/nf4.py",),
    "safetensors": ("node/engine/*", "node/engine/ranks/*", "node/seed/*", "node/checkpoint.py"),
    "hivemind": (
        "swarm/net/dht.py",
        "swarm/net/p2pd.py",
        "swarm/net/records.py",
        "swarm/net/stack.py",
        "swarm/net/storage.py",
    ),
    "grpc": ("node/rpc.py", "node/operator_client.py"),
    "grpc_health": ("node/rpc.py",),
    "grpc_reflection": ("node/rpc.py",),
    "grpc_tools": ("swarm/wire/generate.py",),
    "google.protobuf": ("swarm/wire/*", "node/commands/status.py"),
    "swarm.wire.v1.exchange_pb2": (
        "swarm/wire/codec.py",
        "swarm/wire/relay.py",
        "swarm/wire/turns.py",
        "swarm/wire/values.py",
    ),
    "cryptography": ("swarm/wire/identity.py", "swarm/net/handshake.py"),
    "base58": ("swarm/wire/identity.py", "swarm/net/multiaddr.py"),
    "reasoning_gym": ("swarm/tasks/gym.py",),
    "math_verify": ("swarm/tasks/jsonl.py",),
    "sqlite3": ("node/journal_file.py", "node/journal_reader.py", "node/journal_schema.py"),
    "matplotlib": ("node/demo/plot.py", "node/lab/forest.py", "node/lab/plot.py"),
    "pyarrow": ("node/lab/records.py", "node/commands/rollouts.py"),
    "rich": ("node/cli.py", "node/commands/*", "node/demo/*", "node/lab/*"),
    "uvloop": ("node/daemon.py", "node/bootstrap.py", "node/demo/command.py"),
    "importlib.import_module": ("swarm/tasks/__init__.py", "node/cli.py", "node/lab/experiments/__init__.py"),
    # No home: they run what they read, or die under load.
    "pickle": (),
    "cPickle": (),
    "_pickle": (),
    "dill": (),
    "cloudpickle": (),
    "joblib": (),
    "marshal": (),
    "shelve": (),
    "torch.load": (),
    "numpy.load": (),
    "hivemind.DHT": (),
    "hivemind.dht.DHT": (),
    "eval": (),
    "exec": (),
    "__import__": (),
}

#: Imports that wait inside a function until they are needed. Everything else is imported at the top.
HIDDEN: dict[str, tuple[str, ...]] = {
    "swarm/wire/generate.py": ("grpc_tools",),  # a development tool
    "swarm/tasks/gym.py": ("reasoning_gym",),  # seconds, and only the judge's process needs it
    "swarm/tasks/jsonl.py": ("math_verify",),
    "node/demo/run.py": ("node.demo.plot",),
    "node/lab/records.py": ("pyarrow",),  # an extra
    "node/engine/eight_bit.py": ("torchao",),  # an extra
    "node/engine/nf4.py": ("bitsandbytes",),  # an extra
    "node/engine/opening.py": ("node.engine.vllm.opening",),  # where vLLM is wanted, it is installed
}
#: Command lines: they answer before anything heavy is loaded, so all their imports may wait.
COMMANDS = ("node/cli.py", "node/commands/*", "node/demo/command.py")


BUILTINS = ("eval", "exec", "__import__")


@dataclass(frozen=True)
class Use:
    """A dotted name that a module gets at: an import, or an attribute of one ("torch.load")."""

    name: str
    imported: bool
    hidden: bool = False
    typing_only: bool = False


def fits(path: str, patterns: tuple[str, ...]) -> bool:
    return any(PurePosixPath(path).match(pattern) for pattern in patterns)


def floor_of(path: str) -> int:
    """Counted from the bottom, 0."""
    fitting = [
        (len(pattern), floor) for floor, patterns in enumerate(FLOORS) for pattern in patterns if fits(path, (pattern,))
    ]
    assert fitting, f"{path} has no floor: give it one in FLOORS"
    return max(fitting)[1]


def path_of(name: str) -> str | None:
    """The file of our module that a dotted name is, or is in; None for others' modules."""
    parts = name.split(".")
    for end in (len(parts), len(parts) - 1):
        stem = "/".join(parts[:end])
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if stem and (ROOT / path).is_file() and parts[0] in ("swarm", "node"):
                return path
    return None


def covers(rule: str, name: str) -> bool:
    return name == rule or name.startswith(f"{rule}.")


def uses(tree: ast.Module) -> Iterator[Use]:
    aliases: dict[str, str] = {}

    def visit(node: ast.AST, hidden: bool, typing_only: bool) -> Iterator[Use]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                aliases[alias.asname or top] = alias.name if alias.asname else top
                yield Use(alias.name, True, hidden, typing_only)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports do not say where they go"
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield Use(f"{node.module}.{alias.name}", True, hidden, typing_only)
        elif isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in aliases:
                yield Use(f"{aliases[root]}.{rest}", False)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in BUILTINS:
            yield Use(node.id, False)
        hidden = hidden or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            typing_only = True
        for child in ast.iter_child_nodes(node):
            yield from visit(child, hidden, typing_only)

    yield from visit(tree, False, False)


def complaints(path: str, source: str) -> list[str]:
    """What is wrong with the imports of a module of that path and source."""
    return [f"{path}: {complaint}" for use in uses(ast.parse(source)) for complaint in complaints_about(path, use)]


def complaints_about(path: str, use: Use) -> Iterator[str]:
    target = path_of(use.name) if use.imported else None
    reaches_up = target is not None and floor_of(target) > floor_of(path)
    if reaches_up and not (use.typing_only and target in PROTOCOLS):
        yield f"reaches up to {target}"
    rules = [rule for rule in HOMES if covers(rule, use.name)]
    if rules and not fits(path, HOMES[max(rules, key=len)]):
        yield f"is no home for {use.name}"
    may_wait = fits(path, COMMANDS) or any(covers(name, use.name) for name in HIDDEN.get(path, ()))
    if use.hidden and not may_wait:
        yield f"hides the import of {use.name} in a function"


@pytest.mark.parametrize("path", MODULES)
def test_a_module_imports_what_it_may(path: str) -> None:
    assert floor_of(path) >= 0
    assert complaints(path, (ROOT / path).read_text()) == []


def test_there_is_something_to_look_at() -> None:
    assert {"swarm/types.py", "node/config.py", "swarm/net/memory.py"} <= set(MODULES)


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in HIDDEN.items() for name in names])
def test_no_exception_outlives_its_reason(path: str, name: str) -> None:
    found = uses(ast.parse((ROOT / path).read_text()))
    assert any(use.hidden and covers(name, use.name) for use in found), f"{path} does not need it any more"


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("swarm/types.py", "from swarm.wire.codec import seal", "reaches up to swarm/wire/codec.py"),
        ("swarm/verify.py", "import node.config", "reaches up to node/config.py"),
        ("swarm/verify.py", "from swarm.net import memory", "reaches up to swarm/net/memory.py"),
        ("node/rl/new.py", "from node.engine.base import Generator", "reaches up to node/engine/base.py"),
        ("node/pool.py", "from node import cli", "reaches up to node/cli.py"),
        ("swarm/manifest.py", "import torch", "no home for torch"),
        ("swarm/manifest.py", "from torch.nn import functional", "no home for torch.nn.functional"),
        ("node/pool.py", "import hivemind", "no home for hivemind"),
        ("node/pool.py", "import pickle as p", "no home for pickle"),
        ("node/pool.py", "from pickle import loads", "no home for pickle.loads"),
        ("node/checkpoint.py", "import torch\ntorch.load('x')", "no home for torch.load"),
        ("node/checkpoint.py", "import torch as t\nt.load('x')", "no home for torch.load"),
        ("node/checkpoint.py", "from torch import load", "no home for torch.load"),
        ("node/pool.py", "import numpy as np\nnp.load('x')", "no home for numpy.load"),
        ("swarm/net/dht.py", "from hivemind import DHT", "no home for hivemind.DHT"),
        ("swarm/net/dht.py", "import hivemind\nhivemind.DHT()", "no home for hivemind.DHT"),
        ("swarm/net/stack.py", "import hivemind\nhivemind.dht.DHT()", "no home for hivemind.dht.DHT"),
        ("node/pool.py", "from swarm.wire.v1 import exchange_pb2", "no home for swarm.wire.v1.exchange_pb2"),
        ("swarm/net/streams.py", "from swarm.wire.v1.exchange_pb2 import PullRequest", "no home for"),
        ("node/pool.py", "eval('1')", "no home for eval"),
        ("node/pool.py", "def f():\n    from node import config", "hides the import of node.config"),
        ("node/pool.py", "class A:\n    async def f(self):\n        import json", "hides the import of json"),
        ("node/pool.py", "def f():\n    if TYPE_CHECKING:\n        import json", "hides the import of json"),
        ("node/pool.py", "import importlib\nimportlib.import_module('x')", "no home for importlib.import_module"),
    ],
)
def test_a_bad_module_is_caught(path: str, source: str, complaint: str) -> None:
    assert any(complaint in found for found in complaints(path, source))


def test_a_module_needs_a_floor() -> None:
    with pytest.raises(AssertionError, match=r"swarm/new\.py has no floor"):
        floor_of("swarm/new.py")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "node/rl/new.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from node.engine.base import Generator",
        ),
        ("node/rl/new.py", "import torch\nfrom swarm.types import Task\nfrom node.experience import Experience"),
        ("node/engine/new.py", "import torch\nmodel = torch.nn.Linear(1, 1)\nmodel.eval()"),
    ],
)
def test_a_good_module_is_not(path: str, source: str) -> None:
    assert complaints(path, source) == []


def test_what_peers_agree_on_loads_without_the_heavy_libraries() -> None:
    """Not through anything that is imported on the way, either."""
    heavy = {"torch", "transformers", "hivemind", "vllm", "grpc", "reasoning_gym", "math_verify", "matplotlib", "rich"}
    program = f"import sys, swarm.verify, swarm.net.memory; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    assert done.stdout.split() == []
