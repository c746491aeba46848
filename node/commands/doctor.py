"""swarm-node doctor: is this machine fit for that config, and what is to be done if not?"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from node.config import ArithmeticTasks, NodeConfig
from node.doctor.findings import Check, Finding, as_json, failed, healthy, lines, ok, run_checks, summary
from node.joining import joining
from node.settings import load_config
from swarm.errors import ConfigError
from swarm.net.without_torch import leave_out_torch

DEFAULT = NodeConfig(tasks=(ArithmeticTasks(),))
"""Where no config is given; its tasks are of no interest."""

DESCRIPTION = """\
Tests versions, hardware, whether the model fits into memory, disk, ports, clock, seed peers,
and whether others can reach this machine; a line each, and a sentence of what to do about what
is not well. Changes nothing.
"""
EPILOG = """\
examples:
  swarm-node doctor                          this machine, with the defaults
  swarm-node doctor configs/local.toml       for that node; stop it first, or its ports are not tested

Exits with 1 if anything has failed, and takes up to a minute.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs="?", help="a node's TOML file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not arguments.json:
            print("\n".join(lines(finding)), flush=True)

    config = _config(arguments, tell)
    asyncio.run(_examine(checks(config is not None), config or DEFAULT, tell))
    print(json.dumps(as_json(findings)) if arguments.json else f"\n{summary(findings)}")
    return 0 if healthy(findings) else 1


def _config(arguments: argparse.Namespace, tell: Callable[[Finding], None]) -> NodeConfig | None:
    """None for a config that is wrong."""
    if arguments.config is None:
        tell(ok("config", "none given: these are the defaults"))
        return DEFAULT
    try:
        config = joining(load_config(arguments.config, arguments.set)).config
    except ConfigError as error:
        tell(failed("config", str(error), "Correct it; what depends on it was not tested."))
        return None
    tell(ok("config", f"{arguments.config} is right"))
    return config


async def _examine(checks: Sequence[Check], config: NodeConfig, tell: Callable[[Finding], None]) -> None:
    async for finding in run_checks(checks, config):
        tell(finding)


def checks(configured: bool) -> tuple[Check, ...]:
    """In order; their deadlines add up to less than a minute. Without a config, those that need none."""
    leave_out_torch()
    from node.doctor import machine, model, network  # imports hivemind

    of_machine = (
        Check("python", 1, machine.python),
        Check("packages", 2, machine.packages),
        Check("engine", 1, machine.engine),
        Check("gpu", 4, machine.gpu),
        Check("memory", 1, machine.memory),
        Check("open files", 1, machine.open_files),
    )
    of_node = (
        Check("model", 25, model.model),
        Check("data_dir", 1, machine.data_dir),
        Check("disk", 1, machine.disk),
        Check("rpc port", 1, machine.rpc_port),
        Check("listen", 1, network.ports),
        Check("network", 15, network.network),
    )
    return of_machine + (of_node if configured else ())
