"""swarm-node version: what is installed here."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata

from node.engine.available import EngineStatus, engines

PACKAGES = (
    "swarm-node",
    "torch",
    "transformers",
    "hivemind",
    "reasoning-gym",
    "grpcio",
    "protobuf",
    "pydantic",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints the versions of this program, its protocol and what it is built on, and its engines."
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    versions, status = installed(), engines()
    if arguments.json:
        print(json.dumps({**versions, "engines": {name: engine_json(engine) for name, engine in status.items()}}))
    else:
        width = max(map(len, versions))
        print("\n".join(f"{name:{width}}  {version}" for name, version in versions.items()))
        print("\n".join(["", *engine_lines(status)]))
    return 0


def engine_lines(status: Mapping[str, EngineStatus]) -> Iterator[str]:
    """One per engine: `engine vllm          0.32.0 (CPU)  usable`."""
    width = max(map(len, status))
    for name, engine in status.items():
        version = f"{engine.version} ({engine.build})  " if engine.build else ""
        yield f"engine {name:{width}}  {version}" + ("usable" if engine.usable else f"not usable: {engine.reason}")


def engine_json(engine: EngineStatus) -> dict[str, object]:
    return {"usable": engine.usable, "version": engine.version, "build": engine.build, "reason": engine.reason}


def installed() -> dict[str, str]:
    """Package -> version, of those that are installed; "protocol" is what peers must have in common."""
    from swarm.wire.codec import PROTOCOL

    versions = {"python": platform.python_version(), "protocol": str(PROTOCOL)}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"swarm-node": versions.pop("swarm-node", "not installed"), **versions}
