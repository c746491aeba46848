"""One libp2p daemon process: how hivemind starts it, and how it surely ends. Its use is in `swarm.net.stack`."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.utils.logging import use_hivemind_log_handler

from swarm.errors import NetworkError
from swarm.net.addressbook import AddressBook
from swarm.net.addresses import port_of, usable, wildcard, with_ports
from swarm.net.settings import P2PSettings

STARTUP_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 3.0
GRACE_S = 20
"""That a new connection has until it may be closed as one that nobody uses."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    identity_path: Path
    """A libp2p private key; who else uses it is the data directory's lock's affair, not the network's."""
    listen: tuple[str, ...]
    """Multiaddrs with explicit ports; none to listen nowhere."""
    announce: tuple[str, ...] = ()
    relay: bool = False
    """Circuit relays are used; AutoNAT; hole punching. The daemon offers one whatever is said here."""
    relays: tuple[str, ...] = ()
    """Multiaddrs of peers that may relay for us; dead ones do no harm."""
    reachability: Literal["auto", "public", "private"] = "auto"
    port_mapping: bool = False
    connections: int = 512
    """There may be; then those that nobody uses are closed, until there are half as many."""


def stack_config(settings: P2PSettings, identity_path: Path, book: AddressBook) -> StackConfig:
    """What to start a daemon with, now: free ports instead of 0, which `book` remembers for the next time."""
    wanted = usable(settings.listen)
    listen = with_ports(wanted, book.port)
    for address, chosen in zip(wanted, listen, strict=True):
        if wildcard(address) is not None:
            book.keep_port(address, port_of(chosen))
    book.save()
    return StackConfig(
        identity_path=identity_path,
        listen=listen,
        announce=settings.announce,
        relay=settings.relay and not settings.local,
        relays=settings.trusted_relays,
        reachability=settings.reachability,
        port_mapping=settings.port_mapping and not settings.local,
        connections=settings.connections,
    )


async def launch(config: StackConfig, directory: Path) -> P2P:
    """A daemon whose sockets are in `directory`. It starts without any peer: it would exit if none of its bootstrap
    peers answered, so they are connected to afterwards. Raises NetworkError when it does not start."""
    _quiet()
    private = _private(directory, config.connections)
    starting = asyncio.create_task(
        private.create(
            host_maddrs=config.listen or None,
            no_listen=not config.listen,
            announce_maddrs=config.announce or None,
            trusted_relays=config.relays or None,
            identity_path=str(config.identity_path),
            check_if_identity_free=False,
            startup_timeout=STARTUP_TIMEOUT_S,
            use_relay=config.relay,
            use_auto_relay=config.relay and bool(config.relays),
            auto_nat=config.relay,
            force_reachability=None if config.reachability == "auto" else config.reachability,
            nat_port_map=config.port_mapping,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await settled({starting}, CLOSE_TIMEOUT_S)
        starting.cancel()
        if starting.done() and not starting.cancelled() and starting.exception() is None:
            await end(starting.result())
        raise
    except (P2PDaemonError, OSError, EOFError) as error:
        raise NetworkError(f"libp2p daemon did not start: {error}") from error


async def end(p2p: Any) -> None:
    """Ends the daemon and the tasks that hivemind has for it, within a few seconds, whatever state they are in."""
    control = p2p._client.control
    shutdown = asyncio.create_task(p2p.shutdown())
    if not await settled({shutdown}, CLOSE_TIMEOUT_S) and p2p._child is not None:
        with suppress(ProcessLookupError):
            p2p._child.kill()  # A stopped process does not hear anything else.
    tasks = {shutdown, control._read_task, control._write_task, p2p._listen_task, p2p._reader_task}
    await settled({task for task in tasks if task is not None}, CLOSE_TIMEOUT_S)


async def settled(tasks: set[asyncio.Task[Any]], timeout: float) -> bool:
    """Whether all of them ended in time. How they ended is of no interest any more."""
    if not tasks:
        return True
    done, late = await asyncio.wait(tasks, timeout=timeout)
    for task in done:
        if not task.cancelled():
            task.exception()
    return not late


def _private(directory: Path, connections: int) -> type[P2P]:
    """hivemind's class with what it has no arguments for: where sockets are made, how many connections there may be."""
    limits = {"connLo": connections // 2, "connHi": connections, "connGrace": f"{GRACE_S}s"}

    class PrivateP2P(P2P):
        _UNIX_SOCKET_PREFIX = f"/unix{directory}/"

        @staticmethod
        def _make_process_args(*args: Any, **kwargs: Any) -> list[str]:
            return P2P._make_process_args(*args, **kwargs, **limits)

    return PrivateP2P


def _quiet() -> None:
    """Takes back what importing hivemind does to everybody's logging; it reports ordinary network life as errors."""
    use_hivemind_log_handler("nowhere")
    logging.addLevelName(logging.WARNING, "WARNING")
    verbose = logger.isEnabledFor(logging.DEBUG)
    logging.getLogger("hivemind").setLevel(logging.DEBUG if verbose else logging.CRITICAL)
