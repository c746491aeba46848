"""swarm-node bootstrap: a seed peer, whom newcomers ask first."""

from __future__ import annotations

import argparse
import asyncio
import tomllib
from pathlib import Path

from node import logs
from node.config import P2PExchange
from node.joining import joining
from node.settings import load_config, task_specs
from swarm.errors import ConfigError
from swarm.file import read_swarm_file
from swarm.membership import Membership, read_key
from swarm.net.settings import P2PSettings
from swarm.net.without_torch import leave_out_torch
from swarm.tasks.judge import ProcessJudge

DESCRIPTION = """\
Runs a seed peer: it keeps the swarm's directory, tests whether others can be reached and
relays for those that cannot. It learns nothing, needs no GPU and about 100 MB.

Its addresses go to standard output, one a line, as they belong into the swarm file
(bootstrap) or into a node's exchange.initial_peers. They stay the same over restarts.
"""
EPILOG = """\
examples:
  swarm-node bootstrap reasoning.swarm.toml --listen /ip4/0.0.0.0/tcp/4001 --announce /dns4/seed.example.org/tcp/4001
  swarm-node bootstrap configs/local.toml
  swarm-node bootstrap --swarm-id 0123456789abcdef0123456789abcdef
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="a swarm file, or a node's config")
    parser.add_argument("--swarm-id", metavar="ID", help="of a swarm that everybody may join, instead of FILE")
    parser.add_argument("--key-file", metavar="F", type=Path, help="the key of a swarm whose file asks for one")
    parser.add_argument("--listen", metavar="ADDR", action="append", help="multiaddr to listen on (may be repeated)")
    parser.add_argument("--announce", metavar="ADDR", action="append", default=[], help="where others are to dial it")
    parser.add_argument("--data-dir", metavar="D", type=Path, default=Path("runs/bootstrap"), help="%(default)s")


def main(arguments: argparse.Namespace) -> int:
    logs.set_up()
    membership, seeds = _swarm(arguments)
    exchange = P2PSettings(announce=tuple(arguments.announce), reachability="public", port_mapping=False)
    listen = tuple(arguments.listen or exchange.listen)
    exchange = exchange.model_copy(update={"listen": listen, "initial_peers": seeds})
    exchange.check_addresses()
    leave_out_torch()
    from node import bootstrap  # imports hivemind

    settings = bootstrap.SeedSettings(membership=membership, data_dir=arguments.data_dir, exchange=exchange)
    return bootstrap.run(settings, lambda address: print(address, flush=True))


def _swarm(arguments: argparse.Namespace) -> tuple[Membership, tuple[str, ...]]:
    """Who is in it, and other seed peers."""
    if (arguments.file is None) == (arguments.swarm_id is None):
        raise ConfigError("bootstrap needs a FILE or --swarm-id, and not both")
    if arguments.file is None:
        return Membership(swarm=arguments.swarm_id), ()
    if _is_swarm_file(arguments.file):
        file = read_swarm_file(arguments.file)
        key = None if arguments.key_file is None else read_key(arguments.key_file)
        return file.membership(key), file.bootstrap
    joined = joining(load_config(arguments.file))
    seeds = joined.config.exchange.initial_peers if isinstance(joined.config.exchange, P2PExchange) else ()
    if joined.file is not None:
        return joined.file.membership(joined.key), seeds

    async def describe() -> Membership:
        async with ProcessJudge(task_specs(joined.config)) as judge:
            return joined.agreed(judge.sources)[1]

    return asyncio.run(describe()), seeds


def _is_swarm_file(path: Path) -> bool:
    try:
        return "organiser" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # Whoever reads it as a config says what is wrong with it.
