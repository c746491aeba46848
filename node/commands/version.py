"""swarm-node version: what is installed here."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata

PACKAGES = (
    "swarm-node",
    "torch",
    "transformers",
    "hivemind",
    "reasoning-gym",
    "grpcio",
    "protobuf",
    "pydantic",
    "vllm",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints the versions of this program, its protocol and what it is built on."
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    versions = installed()
    if arguments.json:
        print(json.dumps(versions))
    else:
        width = max(map(len, versions))
        print("\n".join(f"{name:{width}}  {version}" for name, version in versions.items()))
    return 0


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
