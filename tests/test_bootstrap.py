"""Seed peers, as processes of their own: what they are for, what they need, and that they leave torch out."""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
import textwrap
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from node.commands import bootstrap
from swarm.errors import ConfigError
from swarm.file import SwarmSource, read_swarm_file, sign_swarm_file
from swarm.limits import Limits
from swarm.manifest import AgreedSource
from swarm.membership import Membership
from swarm.net.addresses import peer_of
from swarm.net.dialback import ask
from swarm.net.p2pd import StackConfig
from swarm.net.stack import open_stack
from swarm.tasks import make_source
from swarm.tasks.base import SourceSpec, canonical_json
from swarm.wire.identity import Identity
from tests.builders import MANIFEST, identity
from tests.test_exchange import node

ROOT = Path(__file__).parents[1]
LOCAL = "/ip4/127.0.0.1/tcp/0"
PATIENCE_S = 60.0
KEY = b"0123456789abcdef0123456789abcdef"
MAX_RSS_BYTES = 150 << 20


@asynccontextmanager
async def seed(directory: Path, *words: str) -> AsyncIterator[tuple[Process, str]]:
    """A seed peer's process and its address."""
    command = [sys.executable, "-m", "node.cli", "bootstrap", "--swarm-id", MANIFEST.id, "--listen", LOCAL]
    with (directory.parent / f"{directory.name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, "--data-dir", str(directory), *words, cwd=ROOT, stdout=PIPE, stderr=log
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def stop(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        return await process.wait()


@pytest.mark.slow
@pytest.mark.network
async def test_nodes_that_know_only_the_seed_peer_find_each_other(tmp_path: Path) -> None:
    async with seed(tmp_path / "seed") as (process, address):
        async with node(tmp_path / "a", address) as a, node(tmp_path / "b", address) as b:
            await a.see(b)
            await b.see(a)
            a.publish(7)
            assert len(await b.receive(1)) == 1
            assert peer_of(address) not in {peer.peer for peer in [*a.exchange.peers(), *b.exchange.peers()]}
        assert psutil.Process(process.pid).memory_info().rss < MAX_RSS_BYTES
        assert await stop(process) == 0
        assert not psutil.pid_exists(process.pid)


@pytest.mark.network
async def test_it_tells_peers_where_they_are_and_has_the_same_address_after_a_restart(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / "key")
    async with open_stack(StackConfig(identity_path=tmp_path / "key", listen=())) as stack:
        async with seed(tmp_path / "seed") as (process, address):
            await stack.connect(peer_of(address), [address])
            assert (await ask(stack, peer_of(address), ())).seen_at.startswith("/ip4/127.0.0.1/tcp/")
            [daemon] = psutil.Process(process.pid).children()
            assert await stop(process) == 0
            assert not daemon.is_running()
        async with seed(tmp_path / "seed") as (process, again):
            assert again == address
            process.kill()
            await process.wait()
        async with seed(tmp_path / "seed", "--announce", "/dns4/seed.example.org/tcp/4001") as (_, announced):
            assert announced == f"/dns4/seed.example.org/tcp/4001/p2p/{peer_of(address)}"


@pytest.mark.network
async def test_one_data_dir_has_one_seed_peer(tmp_path: Path) -> None:
    async with seed(tmp_path / "seed") as (first, _), seed(tmp_path / "seed") as (second, nothing):
        assert nothing == ""
        assert await second.wait() == 2
    assert f"in use by another node (pid {first.pid})" in (tmp_path / "seed.log").read_text()


def in_a_process(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.network
def test_neither_torch_nor_anything_that_learns_is_loaded(tmp_path: Path) -> None:
    """Asked from within, after all of it has run."""
    done = in_a_process(f"""
        import os, signal, sys
        from node import cli
        from node.commands import bootstrap
        bootstrap.print = lambda *words, **options: os.kill(os.getpid(), signal.SIGTERM)  # as soon as it is up
        code = cli.main("bootstrap --swarm-id {MANIFEST.id} --listen {LOCAL} --data-dir {tmp_path}/seed".split())
        heavy = {{"torch", "transformers", "vllm", "grpc", "reasoning_gym", "matplotlib", "hivemind.averaging"}}
        print(code, "swarm.net.dht" in sys.modules, *sorted(heavy & set(sys.modules)))
        """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "True"]


def test_leaving_torch_out_changes_nothing_where_hivemind_is_already_there() -> None:
    done = in_a_process("""
        import sys, hivemind
        from swarm.net.without_torch import leave_out_torch
        leave_out_torch()
        print(hivemind.__version__, "torch" in sys.modules)
        """)
    assert done.stdout.split()[-1] == "True", done.stderr


# Which swarm ----------------------------------------------------------------------------------------------------------


def swarm_of(*words: str) -> tuple[Membership, tuple[str, ...]]:
    parser = argparse.ArgumentParser()
    bootstrap.add_arguments(parser)
    return bootstrap._swarm(parser.parse_args(words))


def test_a_swarm_is_given_by_its_id() -> None:
    assert swarm_of("--swarm-id", MANIFEST.id) == (Membership(swarm=MANIFEST.id), ())


@pytest.mark.parametrize("words", [(), ("some.toml", "--swarm-id", "x")])
def test_exactly_one_swarm_is_named(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="needs a FILE or --swarm-id, and not both"):
        swarm_of(*words)


def test_a_node_s_config_names_its_swarm_and_its_seeds(tmp_path: Path) -> None:
    peer = f"/ip4/127.0.0.1/tcp/4001/p2p/{identity().peer_id}"
    config = tmp_path / "node.toml"
    config.write_text(f'tasks = [{{type = "arithmetic"}}]\n[exchange]\ntype = "p2p"\ninitial_peers = ["{peer}"]\n')
    membership, seeds = swarm_of(str(config))
    assert len(membership.swarm) == 32
    assert seeds == (peer,)


def test_a_swarm_file_names_its_members_and_its_seeds(tmp_path: Path) -> None:
    peer = f"/ip4/127.0.0.1/tcp/4001/p2p/{identity().peer_id}"
    settings = {"min_terms": 2, "max_terms": 3, "max_value": 9, "operations": "+", "modulus": 0}
    made = make_source(SourceSpec(type="arithmetic", name="sums", config=canonical_json(settings)))
    source = SwarmSource(
        type="arithmetic", agreed=AgreedSource(name=made.name, version=made.version, config=made.config)
    )
    (tmp_path / "key").write_bytes(KEY)
    path = tmp_path / "sums.swarm.toml"
    path.write_text(
        sign_swarm_file(
            identity(), name="sums", created="2026-11-22", sources=[source], limits=Limits(), bootstrap=[peer], key=KEY
        )
    )
    membership, seeds = swarm_of(str(path), "--key-file", str(tmp_path / "key"))
    assert (membership.swarm, membership.key, seeds) == (read_swarm_file(path).id, KEY, (peer,))
    with pytest.raises(ConfigError, match="--key-file"):
        swarm_of(str(path))
