"""A small real swarm whose nodes are killed and started again, and what can be said of it afterwards from their logs
(JSON lines, a file a life), journals and checkpoints."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from node.operator_client import NodeClient, discover
from swarm.errors import SwarmError
from swarm.wire.v1 import node_pb2
from tests.chaos.zygote import Child, Zygote, zygote
from tests.policies import save_tiny_policy
from tests.processes import PATIENCE_S, Node, events

MORE = """
[log]
format = "json"
level = "debug"

[journal]
max_groups = 1000000

[supervision]
max_restarts = 100000
first_pause_s = 0.02
longest_pause_s = 0.5
"""


@dataclass(slots=True)
class Life:
    """One process of a node, by its log."""

    resumed_at: int = -1
    """Step; -1 if it never was up."""
    journalled: set[str] = field(default_factory=set)
    """Groups that the journal had acknowledged."""
    trained: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    """(step, groups)."""
    own: set[str] = field(default_factory=set)
    by_origin: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, log: Path) -> Life:
        life = cls()
        for event in events(log):
            match event:
                case {"event": "journalled", "group": group, "peer": peer, "own": own}:
                    life.journalled.add(group)
                    life.by_origin.setdefault(peer, set()).add(group)
                    if own:
                        life.own.add(group)
                case {"event": "step", "step": step, "groups": groups}:
                    life.trained.append((step, tuple(groups)))
                case {"event": str(said), "step": step, "peer": _} if " is up" in said:
                    life.resumed_at = step
        return life


class Mortal:
    """A node that dies often. Like `tests.processes.Node`, but for who starts it."""

    def __init__(self, node: Node, born_of: Zygote) -> None:
        self.node = node
        self.child: Child | None = None
        self.peer = ""
        self.lives = 0
        self._zygote = born_of

    async def start(self, peers: Sequence[str] = (), fault: str = "none") -> Child:
        """Returns as soon as there is a process."""
        config = self.node.configure(peers)
        self.lives += 1
        self.child = await self._zygote.fork(config, self.log_of(self.lives), fault)
        return self.child

    async def until(self, condition: Callable[[node_pb2.NodeStatus], bool]) -> node_pb2.NodeStatus | None:
        """The first status for which `condition` holds; None if it dies before."""
        assert self.child is not None
        async with asyncio.timeout(PATIENCE_S):
            while self.child.alive:
                try:
                    async with NodeClient(discover(self.node.data)) as client:
                        async for status in client.watch(0.2):
                            if condition(status):
                                return status
                except SwarmError:
                    await asyncio.sleep(0.1)
        return None

    def log_of(self, life: int) -> Path:
        return self.node.directory / f"log-{life:03d}.jsonl"

    def told(self) -> str:
        return "\n".join(
            self.log_of(life).read_text()[-1500:] for life in range(max(1, self.lives - 1), self.lives + 1)
        )

    def history(self) -> list[Life]:
        return [Life.of(self.log_of(life)) for life in range(1, self.lives + 1)]

    def journal(self) -> dict[str, str]:
        """Group -> origin, of all that is in it."""
        with sqlite3.connect(f"file:{self.node.data / 'journal.db'}?mode=ro", uri=True) as db:
            return dict(db.execute("SELECT id, origin FROM groups").fetchall())


@asynccontextmanager
async def mortals(tmp_path: Path, names: Sequence[str], more: str = MORE) -> AsyncIterator[list[Mortal]]:
    policy = save_tiny_policy(tmp_path / "policy")
    async with zygote() as born_of:
        yield [Mortal(Node(tmp_path / name, policy, more), born_of) for name in names]


def surviving(lives: Sequence[Life]) -> list[tuple[int, tuple[str, ...]]]:
    """The steps that the newest weights are made of: those of a life up to where the next one resumed."""
    up = [life for life in lives if life.resumed_at >= 0]
    steps = [s for life, after in pairwise(up) for s in life.trained if s[0] <= after.resumed_at]
    return steps + (up[-1].trained if up else [])


def findings(mortal: Mortal) -> dict[str, Any]:
    """What must be empty or zero, and how much there was to look at."""
    lives, journal = mortal.history(), mortal.journal()
    acknowledged = set[str]().union(*(life.journalled for life in lives))
    kept = surviving(lives)
    trained = Counter(group for _, groups in kept for group in groups)
    every = Counter(group for life in lives for _, groups in life.trained for group in groups)
    numbers = [step for step, _ in kept]
    return {
        "lost": acknowledged - journal.keys(),
        "trained twice": {group for group, times in trained.items() if times > 1},
        "steps out of order": [pair for pair in pairwise(numbers) if pair[1] <= pair[0]],
        "trained, not journalled": trained.keys() - journal.keys(),
        "set aside": [path.name for path in mortal.node.data.rglob("*.damaged*")],
        "groups": len(acknowledged),
        "trained again after their step was undone": sum(times > 1 for times in every.values()),
        "steps": len(kept),
        "steps undone": sum(len(life.trained) for life in lives) - len(kept),
        "lives": mortal.lives,
        "lives that were up": sum(life.resumed_at >= 0 for life in lives),
    }
