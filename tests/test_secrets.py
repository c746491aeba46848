"""A real node with everything that must stay secret, in a swarm with a key, with RPC that wants a token, saying all
that it can say: what it wrote, said and was asked for is searched for each of its secrets, in every form."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.commands.swarm import swarm_sources
from node.operator_client import NodeClient, discover
from node.settings import load_config
from swarm.errors import NetworkError
from swarm.file import sign_swarm_file
from swarm.types import PeerId
from swarm.wire.identity import Identity
from tests.policies import save_tiny_policy
from tests.processes import CONFIG, Node

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(240)]

SECRET_CONFIG = """\
name = "secretive"
data_dir = "{data}"
threads = 1
policy = {{ model = "{policy}" }}
sampler = {{ group_size = 4, concurrency = 4, max_new_tokens = 6 }}
pool = {{ own_groups = 4, foreign_groups = 4, own_capacity = 4 }}
eval = {{ every_steps = 0 }}
checkpoint = {{ every_steps = 2 }}
exchange = {{ type = "p2p", listen = ["/ip4/127.0.0.1/tcp/0"], heartbeat_s = 1.0 }}
swarm = {{ file = "{file}", key_file = "{key}", trust_plugins = ["tests.plain_tasks:Plain"] }}
rpc = {{ token_file = "{token}" }}
log = {{ level = "debug", format = "{format}" }}
"""


class Secretive(Node):
    def __init__(self, directory: Path, policy: Path, format: str) -> None:
        super().__init__(directory, policy)
        self.format = format
        self.token, self.key = directory / "token", directory / "key"

    def configure(self, peers: object = ()) -> Path:
        self.directory.mkdir()
        self.token.write_text(secrets.token_hex(32))
        self.key.write_text(secrets.token_hex(32))
        plain = self.directory / "plain.toml"
        plain.write_text(CONFIG.format(name="n", data="d", policy=self.policy, peers="[]", more=""))
        sources = swarm_sources(load_config(plain))
        organiser = Identity(secrets.token_bytes(32))
        text = sign_swarm_file(
            organiser,
            name="closed",
            created="2026-01-01",
            sources=sources,
            limits=load_config(plain).limits,
            bootstrap=(),
            models=(),
            tokenizers=(),
            key=self.key.read_bytes(),
            allow=list[PeerId](),
        )
        (self.directory / "swarm.toml").write_text(text)
        config = self.directory / "node.toml"
        config.write_text(
            SECRET_CONFIG.format(
                data=self.data,
                policy=self.policy,
                file=self.directory / "swarm.toml",
                key=self.key,
                token=self.token,
                format=self.format,
            )
        )
        return config

    def secrets(self) -> Iterator[bytes]:
        """In every form that somebody might have printed or stored."""
        seed = (self.data / "identity.key").read_bytes()[4:36]
        for secret in (seed, self.token.read_bytes(), self.key.read_bytes()):
            yield from (secret, secret.hex().encode(), repr(secret).encode()[2:-1])
            yield base64.b64encode(secret).rstrip(b"=")
        for text in (self.token.read_bytes(), self.key.read_bytes()):
            yield bytes.fromhex(text.decode())


@pytest.mark.parametrize("format", ["human", "json"])
async def test_no_secret_is_said_or_stored_outside_of_its_own_file(tmp_path: Path, format: str) -> None:
    node = Secretive(tmp_path / "node", save_tiny_policy(tmp_path / "policy"), format)
    token = ""
    try:
        await node.launch()
        token = node.token.read_text()
        status = await node.until(lambda status: status.steps >= 3 and bool(status.addresses), token)
        async with NodeClient(discover(node.data), "a-wrong-token-of-some-length") as stranger:
            with pytest.raises(NetworkError, match="wants the token"):
                await stranger.status()
        assert await node.stop() == 0
    finally:
        await node.sweep()
    own = {node.data / "identity.key", node.token, node.key}
    written = [path for path in node.directory.rglob("*") if path.is_file() and path not in own]
    assert {"log", "journal.db", "metrics.jsonl", "state.json", "peers.json"} <= {path.name for path in written}
    said = {path: path.read_bytes() for path in written} | {Path("status"): status.SerializeToString()}
    assert b"step" in said[node.log], "it did say something"
    found = [(path, secret) for path, data in said.items() for secret in node.secrets() if secret in data]
    assert found == []
    assert all(path.stat().st_mode & 0o077 == 0 for path in (node.data / "identity.key", node.data))
