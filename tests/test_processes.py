"""Real nodes: real processes, real libp2p, real gRPC, and a real kill -9."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from node import exit_codes
from node.operator_client import NodeClient, discover
from swarm.errors import NetworkError
from swarm.wire.v1 import node_pb2
from tests.processes import gone, nodes

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(240)]


def from_peer(peer: str, at_least: int) -> Callable[[node_pb2.NodeStatus], bool]:
    return lambda status: status.admitted.get(peer, 0) >= at_least


async def test_a_killed_node_leaves_the_others_learning_and_is_taken_back(tmp_path: Path):
    async with nodes(tmp_path, ["alpha", "beta", "gamma"]) as (alpha, beta, gamma):
        first = await alpha.start()
        b, c = await asyncio.gather(beta.start(first.addresses), gamma.start(first.addresses))
        peers = {first.peer, b.peer, c.peer}
        for node, me in ((alpha, first.peer), (beta, b.peer), (gamma, c.peer)):
            await node.until(lambda status, me=me: set(status.admitted) == peers - {me})

        before = await beta.until(lambda status: status.counters["checkpoints"] >= 1)
        children = beta.family()
        await beta.kill()
        assert gone(children), "what the killed node had started outlived it"

        then = await alpha.until(lambda status: True)
        await alpha.until(lambda status: status.steps >= then.steps + 10)  # the others go on
        seen = await alpha.until(lambda status: True)

        again = await beta.start(first.addresses)
        assert again.peer == before.peer
        assert again.steps >= 5  # from its last checkpoint, not from the start
        assert again.counters["own_groups"] >= 5 * 4
        await beta.until(lambda status: status.steps >= again.steps + 5)
        await alpha.until(from_peer(b.peer, seen.admitted[b.peer] + 1))  # taken back
        await gamma.until(from_peer(b.peer, 1))


async def test_it_stops_when_asked_and_leaves_nothing_behind(tmp_path: Path):
    async with nodes(tmp_path, ["solo"]) as (node,):
        await node.start()
        await node.until(lambda status: status.steps >= 1)
        assert node.process is not None
        family = psutil.Process(node.process.pid).children(recursive=True)
        assert family  # the judge, and libp2p
        async with NodeClient(discover(node.data)) as client:
            await client.stop()
        assert await asyncio.wait_for(node.process.wait(), 30) == 0
        assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        assert not (node.data / "rpc").exists()
        assert any((node.data / "checkpoints").iterdir())


async def test_sigterm_is_a_clean_stop(tmp_path: Path):
    async with nodes(tmp_path, ["solo"]) as (node,):
        await node.start()
        await node.until(lambda status: status.steps >= 1)
        family = node.family()
        assert await node.stop() == exit_codes.OK
        assert gone(family)
        said = node.log.read_text()
        assert "Traceback" not in said
        assert "is not closed after" not in said, "no stage ran into its deadline"


async def test_a_second_node_in_the_same_directory_names_the_first_and_disturbs_nothing(tmp_path: Path):
    async with nodes(tmp_path, ["first"]) as (first,), nodes(tmp_path, ["second"]) as (second,):
        before = await first.start()
        second.data = first.data
        process = await second.launch()
        assert first.process is not None
        assert await asyncio.wait_for(process.wait(), 60) == exit_codes.USAGE, "starting it again does not help"
        said = second.log.read_text()
        assert f"{first.data} is in use by another node (pid {first.process.pid})" in said
        assert "Traceback" not in said
        await first.until(lambda status: status.steps > before.steps)


async def test_a_service_manager_hears_of_it(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60.0)
        async with nodes(tmp_path, ["solo"]) as (node,):
            await node.launch((), {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"})
            heard = [await asyncio.to_thread(systemd.recv, 4096) for _ in range(4)]
            assert heard[0] == b"READY=1"
            assert all(message.startswith(b"WATCHDOG=1\nSTATUS=running, step ") for message in heard[1:])
            assert await node.stop() == exit_codes.OK
            while (message := systemd.recv(4096)) != b"STOPPING=1":
                assert message.startswith(b"WATCHDOG=1")


async def test_a_learner_that_is_stuck_ends_the_node_with_a_code_that_asks_for_another_start(tmp_path: Path):
    """Its thread cannot be killed; the process can. What it had learned by its last checkpoint is there."""
    more = "[supervision]\nstall_s = 2.0\n"
    async with nodes(tmp_path, ["stuck"], more, ("-m", "tests.chaos.faulty", "hang-learner")) as (node,):
        await node.start()
        assert node.process is not None
        family = node.family()
        assert await asyncio.wait_for(node.process.wait(), 60) == exit_codes.UNAVAILABLE
        assert gone(family)
        with pytest.raises(NetworkError, match=r"the last one ended because the learner's step takes \d+ s by now"):
            discover(node.data)


async def test_asked_twice_it_is_gone_whatever_hangs(tmp_path: Path):
    async with nodes(tmp_path, ["stuck"], "", ("-m", "tests.chaos.faulty", "hang-learner")) as (node,):
        await node.start()
        await node.until(lambda status: status.metrics["learner_busy_s"] > 0.5)
        assert node.process is not None
        family = node.family()
        node.process.send_signal(signal.SIGTERM)
        await node.until(lambda status: status.state == node_pb2.NODE_STATE_STOPPING)
        node.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(node.process.wait(), 10) == 128 + signal.SIGTERM
        assert gone(family)


async def test_asked_once_it_is_gone_at_the_deadline_whatever_hangs(tmp_path: Path):
    async with nodes(tmp_path, ["stuck"], "", ("-m", "tests.chaos.faulty", "hang-learner")) as (node,):
        await node.start()
        await node.until(lambda status: status.steps >= 5 and status.metrics["learner_busy_s"] > 0.5)
        family = node.family()
        assert await node.stop() == exit_codes.UNSAVED, "what it was at is lost, and it says so"
        assert gone(family)
        again = await node.start()
        assert again.steps >= 5, "from its last checkpoint on"


async def test_its_event_loop_is_never_held_up_for_long(tmp_path: Path):
    async with nodes(tmp_path, ["solo"]) as (node,):
        await node.start()
        status = await node.until(lambda status: status.steps >= 30)
        assert status.metrics["loop_delay_p99_ms"] < 50.0
