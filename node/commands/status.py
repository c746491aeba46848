"""swarm-node status: what a running node is doing."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from google.protobuf import json_format
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from node.exit_codes import FAILED, OK
from node.operator_client import CALL_TIMEOUT_S, NodeClient, discover
from swarm.errors import ConfigError
from swarm.wire.v1 import node_pb2

DESCRIPTION = """\
Shows what a running node is doing: found by its data directory, or by its address.
With --check it says so by its exit code: 0 if the node is well (up, and no part of it is down), else 1.
"""
EPILOG = """\
examples:
  swarm-node status                                   the node in runs/node
  swarm-node status runs/solo --watch                 again every 2 s
  swarm-node status runs/solo --json | jq .held_out
  swarm-node status runs/solo --check                 for a container's health check
  swarm-node status --address node7:7070 --token-file token --ca cert.pem

--json prints the message swarm.v1.NodeStatus; 64-bit numbers are strings in it, as in every protobuf JSON.
"""
DEFAULT_DIR = Path("runs/node")
SHOWN_ORIGINS = 8
STYLES = {"held": "bold yellow", "parts": "yellow", "alarms": "bold red", "warnings": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    where = parser.add_mutually_exclusive_group()
    where.add_argument("dir", metavar="DIR", nargs="?", type=Path, default=DEFAULT_DIR, help="its data_dir")
    where.add_argument("--address", metavar="HOST:PORT", help="where its operator's service listens")
    parser.add_argument("--token-file", metavar="FILE", type=Path, help="the node's rpc.token_file, or a copy of it")
    parser.add_argument("--ca", metavar="FILE", type=Path, help="certificate (PEM) to check the node's with, for TLS")
    parser.add_argument("--json", action="store_true", help="as JSON; with --watch one object a line")
    parser.add_argument("--check", action="store_true", help="a line, and exit code 1 unless the node is well")
    parser.add_argument(
        "--watch", metavar="SECONDS", nargs="?", type=_interval, const=2.0, help="again every so many seconds (2)"
    )


def main(arguments: argparse.Namespace) -> int:
    address = arguments.address or discover(arguments.dir)
    client = NodeClient(address, _token(arguments.token_file), arguments.ca, timeout_s=CALL_TIMEOUT_S)
    if arguments.check:
        return asyncio.run(_check(client))
    asyncio.run(_show(client, arguments.watch, arguments.json))
    return OK


async def _check(client: NodeClient) -> int:
    async with client:
        status = await client.status()
    state = node_pb2.NodeState.Name(status.state).removeprefix("NODE_STATE_").lower()
    down = [f"{part.name} {part.state}: {part.last_error}" for part in status.parts if part.state != "up"]
    # A network that is down is the world's doing, and no restart of the node mends the world.
    ill = [part.name for part in status.parts if part.state != "up" and part.name != "network"]
    print("; ".join([f"{state}, step {status.steps}", *down]))
    well = status.state in (node_pb2.NODE_STATE_RUNNING, node_pb2.NODE_STATE_PAUSED) and not ill
    return OK if well else FAILED


async def _show(client: NodeClient, interval_s: float | None, as_json: bool) -> None:
    async with client:
        if interval_s is None:
            status = await client.status()
            print(to_json(status, indent=2)) if as_json else Console().print(render(status))
        elif as_json:
            async for status in client.watch(interval_s):
                print(to_json(status), flush=True)
        else:
            await _live(client.watch(interval_s))


async def _live(statuses: AsyncIterator[node_pb2.NodeStatus]) -> None:
    with Live(auto_refresh=False) as live:  # a thread that refreshes is not needed: nothing moves in between
        async for status in statuses:
            live.update(render(status), refresh=True)


def to_json(status: node_pb2.NodeStatus, indent: int | None = None) -> str:
    return json_format.MessageToJson(
        status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=indent
    )


def render(status: node_pb2.NodeStatus) -> Table:
    """Two columns: what, and how it is. Texts are shown as they are: what a peer wrote is no markup."""
    state = node_pb2.NodeState.Name(status.state).removeprefix("NODE_STATE_").lower()
    table = Table.grid(padding=(0, 2))
    rows = {
        status.name: f"{state}, up {timedelta(seconds=int(status.uptime_s))}, swarm-node {status.version}",
        "held": "\n".join(status.holds),
        "parts": "\n".join(_part(part) for part in status.parts if part.state != "up" or part.restarts),
        "alarms": "\n".join(f"{alarm.name} since step {alarm.since_step}: {alarm.text}" for alarm in status.alarms),
        "policy": f"version {status.policy_version} after {status.steps} steps",
        "learner": _times(status.learner_time),
        "generator": _times(status.generator_time),
        "network": f"{status.network}, {status.peers} peers alive, swarm {status.swarm[:16]}",
        "reached at": "\n".join(status.addresses),
        "admitted": _origins(status.admitted),
        "refused": _counts(status.refused),
        f"held out, step {status.held_out_step}": _shares(status.held_out),
        "tracker": _shares(status.values),
        "counted": _counts(status.counters),
        "newest step": _list(f"{name} {value:.4g}" for name, value in sorted(status.metrics.items())),
        "warnings": "\n".join(status.warnings),
    }
    for what, how in rows.items():
        if how:
            table.add_row(Text(what, style="bold"), Text(how, style=STYLES.get(what, "")))
    return table


def _part(part: node_pb2.Part) -> str:
    lately = f"{part.recent_failures} of {part.allowed_failures} failures that it may have in the window"
    ago = timedelta(seconds=int(part.last_error_s))
    return f"{part.name} {part.state}, started again {part.restarts} times ({lately}); {ago} ago: {part.last_error}"


def _origins(admitted: Mapping[str, int]) -> str:
    most = sorted(admitted.items(), key=lambda item: -item[1])
    rest = sum(count for _, count in most[SHOWN_ORIGINS:])
    named = [f"{origin[-8:]} {count}" for origin, count in most[:SHOWN_ORIGINS]]  # peer ids differ at the end
    return _list([*named, f"{len(most) - SHOWN_ORIGINS} others {rest}"] if rest else named)


def _counts(counts: Mapping[str, int]) -> str:
    return _list(f"{name} {count:,}" for name, count in sorted(counts.items()) if count)


def _shares(shares: Mapping[str, float]) -> str:
    return _list(f"{name} {share:.1%}" for name, share in sorted(shares.items()))


def _times(shares: Mapping[str, float]) -> str:
    """The most first, of what took at least a thousandth."""
    most = sorted(shares.items(), key=lambda item: -item[1])
    return _list(f"{name.replace('_', ' ')} {share:.1%}" for name, share in most if share >= 0.001)


def _list(parts: Iterable[str]) -> str:
    return "   ".join(parts)


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds < math.inf:
        raise argparse.ArgumentTypeError("it must be at least 0.1")
    return seconds


def _token(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: cannot be read: {error}") from error
