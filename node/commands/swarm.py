"""swarm-node swarm: make a swarm file, see what it means, check it."""

from __future__ import annotations

import argparse
import json
import secrets
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from node.commands.config import add_config_arguments
from node.config import NodeConfig, P2PExchange
from node.home import write_new
from node.settings import load_config, task_specs
from swarm.errors import ConfigError
from swarm.file import SwarmFile, SwarmSource, read_swarm_file, sign_swarm_file
from swarm.manifest import AgreedSource
from swarm.membership import read_key
from swarm.tasks import make_source
from swarm.tasks.base import SourceSpec
from swarm.types import PeerId
from swarm.wire.identity import Identity

DESCRIPTION = """\
A swarm that strangers can join is a small signed file: what is learned, within which limits,
where the first peers are, who may join. These commands make one, say what it means, check it.
"""
EPILOG = """\
examples:
  swarm-node swarm create runs/first/config.toml --name reasoning --out reasoning.swarm.toml \\
      --bootstrap /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW...
  swarm-node swarm show reasoning.swarm.toml
  swarm-node swarm verify reasoning.swarm.toml
  swarm-node join reasoning.swarm.toml
"""
CREATE = """\
Makes a swarm file from the tasks, versions and limits of a node's config, and signs it. Whoever
joins with it learns just these tasks; a changed task makes another file, and another swarm.
"""
KEY_BYTES = 32
SHOWN_PEERS = 4
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    raw = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make one and sign it", description=CREATE, formatter_class=raw)
    add_config_arguments(create)
    create.add_argument("--name", metavar="N", required=True, help="what people call the swarm")
    create.add_argument("--out", metavar="FILE", type=Path, required=True, help="the new file; none is written over")
    create.add_argument("--bootstrap", metavar="ADDR", action="append", help="a first peer's multiaddr (repeatable)")
    create.add_argument("--key-file", metavar="F", type=Path, help="only who has this key is in; made if not there")
    create.add_argument("--allow", metavar="PEER", action="append", help="only the peers named are in (repeatable)")
    create.add_argument("--model", metavar="FP", action="append", help="only models of this fingerprint (repeatable)")
    create.add_argument("--tokenizer", metavar="FP", action="append", help="the same of tokenizers (repeatable)")
    create.add_argument(
        "--identity", metavar="KEYFILE", type=Path, help="who signs; made if not there (organiser.key beside FILE)"
    )
    create.set_defaults(action=_create)
    show = actions.add_parser("show", help="say what joining means", description="Says in words what a swarm file is.")
    verify = actions.add_parser(
        "verify", help="check it", description="Checks form and signature; exit code 0 if both are good, 1 if not."
    )
    for action, main_of in ((show, _show), (verify, _verify)):
        action.add_argument("file", metavar="FILE", type=Path, help="a swarm file")
        action.set_defaults(action=main_of)


def main(arguments: argparse.Namespace) -> int:
    return arguments.action(arguments)


def _create(arguments: argparse.Namespace) -> int:
    config, out = load_config(arguments.config, arguments.set), arguments.out
    if config.swarm.file is not None:
        raise ConfigError(f"{arguments.config}: has a swarm.file; a new swarm is made from a config with [[tasks]]")
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; a swarm file is not changed, a new one is another swarm")
    text = sign_swarm_file(
        Identity.load_or_create(arguments.identity or out.parent / "organiser.key"),
        name=arguments.name,
        created=datetime.now(UTC).date().isoformat(),
        sources=swarm_sources(config),
        limits=config.limits,
        bootstrap=arguments.bootstrap or _initial_peers(config),
        models=arguments.model or (),
        tokenizers=arguments.tokenizer or (),
        key=None if arguments.key_file is None else _key(arguments.key_file),
        allow=[PeerId(peer) for peer in arguments.allow or ()],
    )
    write_new(out, text.encode())
    file = read_swarm_file(out)
    print(f"{out}: swarm {file.name}, id {file.id}, signed by {file.organiser}")
    for line in _unfinished(file, arguments.key_file):
        print(line)
    return 0


def swarm_sources(config: NodeConfig) -> list[SwarmSource]:
    """The config's sources as all members will have them. Raises ConfigError for one that they could not make."""
    weights = [task.weight for task in config.tasks]
    return [_agreed(spec, weight) for spec, weight in zip(task_specs(config), weights, strict=True)]


def _agreed(spec: SourceSpec, weight: float) -> SwarmSource:
    source = make_source(spec)
    agreed = AgreedSource(name=source.name, version=source.version, config=source.config)
    made = SwarmSource(type=spec.type, agreed=agreed, weight=weight)
    again = make_source(SourceSpec(type=made.type, name=made.label, config=agreed.config, path=spec.path))
    if (again.name, again.version, again.config) != (agreed.name, agreed.version, agreed.config):
        raise ConfigError(
            f"task {spec.name}: made from its own name and config, {agreed.name} is {again.name} with {again.config};"
            " a source of a swarm file must come out the same"
        )
    return made


def _initial_peers(config: NodeConfig) -> Sequence[str]:
    return config.exchange.initial_peers if isinstance(config.exchange, P2PExchange) else ()


def _key(path: Path) -> bytes:
    if not path.exists():
        write_new(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode(), mode=0o600)
    return read_key(path)


def _unfinished(file: SwarmFile, key_file: Path | None) -> Iterator[str]:
    if key_file is not None:
        yield f"{key_file}: the members' key, which is not in the file: hand it over where nobody listens"
    if not file.bootstrap:
        yield "no bootstrap peer is in it: who joins needs an address to begin with (exchange.initial_peers)"
    for source in file.sources:
        if source.type == "jsonl":
            yield f"{source.agreed.name} is a file: everybody who joins needs a copy of it"
        elif source.plugin:
            yield f"{source.agreed.name} is a plug-in: who joins must install and trust {source.type}"


def _show(arguments: argparse.Namespace) -> int:
    print("\n".join(meaning(read_swarm_file(arguments.file))))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    try:
        file = read_swarm_file(arguments.file)
    except ConfigError as error:
        print(f"not valid: {error}")
        return 1
    print(f"valid: {arguments.file} is swarm {file.name}, id {file.id}, signed by {file.organiser}")
    return 0


def meaning(file: SwarmFile) -> Iterator[str]:
    """A page of plain words."""
    yield f"{file.name}, swarm {file.id}"
    yield f"  signed by {file.organiser}, who dates it {file.created}"
    yield ""
    yield "What is learned (weight, task, version, settings):"
    for source in file.sources:
        settings = "" if source.agreed.config == "{}" else f"  {source.agreed.config}"
        yield f"  {source.weight:g}  {source.agreed.name}  {source.agreed.version}{settings}"
    yield ""
    yield "What a peer may send you (your own [limits] may only be stricter):"
    limits = ", ".join(f"{key} {value:.15g}" for key, value in file.limits.model_dump().items())
    yield textwrap.fill(limits, WIDTH, initial_indent="  ", subsequent_indent="  ")
    yield ""
    yield "Who may take part:"
    yield from (f"  {line}" for line in _who(file))
    yield ""
    yield "First peers:"
    yield from (f"  {address}" for address in file.bootstrap or ["none in the file; you need an address of a member"])
    yield ""
    yield "What joining means:"
    for sentence in _consequences(file):
        yield textwrap.fill(sentence, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def _who(file: SwarmFile) -> Iterator[str]:
    if file.allow is not None:
        peers = sorted(file.allow)
        others = f" and {len(peers) - SHOWN_PEERS} others" if len(peers) > SHOWN_PEERS else ""
        yield f"only these peers: {', '.join(peers[:SHOWN_PEERS])}{others}"
    if file.key_sha256:
        yield "only who has the members' key: --key-file names the file that holds it"
    if file.allow is None and not file.key_sha256:
        yield "everybody who has this file"
    for what, allowed in (("models", file.manifest.models), ("tokenizers", file.manifest.tokenizers)):
        if allowed:
            yield f"only with {what} of these fingerprints: {json.dumps(sorted(allowed))[1:-1]}"
    if not (file.manifest.models or file.manifest.tokenizers):
        yield "with any model and any tokenizer"


def _consequences(file: SwarmFile) -> Iterator[str]:
    yield (
        "Your node trains a model of its own, on your machine. It sends what that model writes on these tasks, passes"
        " on what others wrote, and tells its name, its addresses and, if you allow it (sampler.for_swarm), how well it"
        " does. No weights, no files."
    )
    yield "It takes others' texts, checks them and computes their rewards itself. Strangers wrote what it learns from."
    for source in file.sources:
        if source.plugin:
            yield f"{source.agreed.name} is code, {source.type}: refused unless your swarm.trust_plugins names it."
        elif source.type == "jsonl":
            yield f"{source.agreed.name} is a file that you need a copy of; your swarm.files says where it is."
    if not any(source.plugin for source in file.sources):
        yield "There is no code in the file, and nothing of it is executed."
    yield "The organiser cannot reach into your node, nor change the file: a changed one is another swarm."
