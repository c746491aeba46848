"""The command `swarm-node`.

This module and the package `node.commands` are the one place where imports wait until they are needed: torch and
hivemind take seconds to import, and `--help`, `version` and `status` answer in a fraction of one.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from node.exit_codes import FAILED, INTERRUPTED, OK, STORAGE, UNAVAILABLE, USAGE
from swarm.errors import CheckpointError, ConfigError, CrashLoop, JournalError, SwarmError

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "main"]

DESCRIPTION = """\
Trains a language model by reinforcement learning on tasks that check themselves,
alone or together with strangers over a peer-to-peer network.
"""
EPILOG = """\
examples:
  swarm-node run configs/solo.toml                       one node, alone
  swarm-node run configs/local.toml --set name=second    a setting changed for this run
  swarm-node join reasoning.swarm.toml                   one node, in a swarm of strangers
  swarm-node status runs/solo --watch                    what it is doing
  swarm-node COMMAND --help                              more on one command

exit codes:
  0      done
  1      failed, and a sentence says why
  2      wrong usage or config: starting it again does not help
  69     a part of the node failed again and again, or is stuck
  70     a bug, whose traceback is in the log
  74     journal or checkpoints cannot be written or read
  75     stopped, but the last steps could not be saved in time
  128+n  ended at once by a second signal n
"""


class CommandModule(Protocol):
    add_arguments: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]


@dataclass(frozen=True, slots=True)
class Command:
    module: str
    summary: str


COMMANDS: Mapping[str, Command] = {
    "run": Command("node.commands.run", "run a node until it is stopped"),
    "join": Command("node.commands.join", "join a swarm with its file, and run"),
    "init": Command("node.commands.init", "make a node's directory, identity and config"),
    "swarm": Command("node.commands.swarm", "make, show and check swarm files"),
    "doctor": Command("node.commands.doctor", "test this machine, its network and a config, and say what to do"),
    "bootstrap": Command("node.commands.bootstrap", "run a seed peer, whom newcomers ask first"),
    "demo": Command("node.demo.command", "watch a small swarm learn on this machine"),
    "status": Command("node.commands.status", "show what a running node is doing"),
    "seed": Command("node.commands.seed", "make the built-in seed model"),
    "eval": Command("node.commands.evaluate", "measure a model on the held-out tasks"),
    "rollouts": Command("node.commands.rollouts", "show and export what a node sampled and received"),
    "checkpoints": Command("node.commands.checkpoints", "show what a node wrote down, and pin it"),
    "export": Command("node.commands.export", "write what a node has learned as a model"),
    "bench": Command("node.commands.bench", "compare ways to learn, in experiments that can be repeated"),
    "config": Command("node.commands.config", "check a config file and print what it amounts to"),
    "version": Command("node.commands.version", "print versions"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; wrong usage exits with USAGE from within argparse."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser(words[0] if words else "").parse_args(words)
        return arguments.main(arguments)
    except ConfigError as error:
        return _complain(error, USAGE)
    except CrashLoop as error:
        return _complain(error, UNAVAILABLE)
    except (JournalError, CheckpointError) as error:
        return _complain(error, STORAGE)
    except BrokenPipeError:  # `swarm-node status | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails, too
        return FAILED
    except SwarmError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Knows all commands by name, and the arguments of the chosen one: the others' modules are not imported."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("swarm-node", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command_parser = commands.add_parser(name, help=command.summary, formatter_class=raw)
        if name == chosen:
            module = cast(CommandModule, importlib.import_module(command.module))
            module.add_arguments(command_parser)
            command_parser.set_defaults(main=module.main)
    return parser


def _complain(error: SwarmError, code: int) -> int:
    print(f"swarm-node: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
