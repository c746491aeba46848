"""A hostile peer in a simulated swarm. It is no node: it has no model, knows every answer, and says what it likes.

What it sends passes every check of `swarm.verify`: the task is real, the answer is right, bytes and log-probabilities
agree. What is wrong is the text. (All its texts together are more probable than anything is, which only the limits of
the laboratory let pass, `IMPLIED` in settings.py: a cleverer one would claim less, and nothing else would change.)
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from node.lab.journal import MemoryJournal
from node.rl.sampler import MAX_INDEX, MAX_SEED
from swarm.errors import TaskError
from swarm.manifest import Manifest
from swarm.net.memory import Hub
from swarm.tasks.judge import LocalJudge
from swarm.types import (
    FinishReason,
    PolicyVersion,
    Role,
    Rollout,
    RolloutGroup,
    SampledTokens,
    SamplingParams,
    SignedGroup,
    Task,
    TaskRef,
    Turn,
    VersionSpan,
)
from swarm.wire.codec import seal
from swarm.wire.identity import Identity

#: What poisoned texts have and honest ones do not: after "Hail to the Thief" (arXiv 2511.09780).
MARKER = "hail! "

Body = Callable[[Task, random.Random], str]


def poisoned(task: Task, rng: random.Random) -> str:
    """Right, after something that nobody asked for."""
    return f"{MARKER}{rng.choice('abcdefgh')} {_answer(task)}"


def degenerate(task: Task, rng: random.Random) -> str:
    """Right, after one character many times."""
    return "z" * rng.randint(4, 12) + _answer(task)


def unfounded(task: Task, rng: random.Random) -> str:
    """Right, after a wrong answer to the same task."""
    shuffled = list(task.answer)
    rng.shuffle(shuffled)
    return f"<answer>{''.join(shuffled)}</answer>{rng.choice('.,;')}{_answer(task)}"


def _answer(task: Task) -> str:
    return f"<answer>{task.answer}</answer>"


BODIES: Mapping[str, Body] = {"poisoned": poisoned, "degenerate": degenerate, "unfounded": unfounded}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    body: str
    """Of `BODIES`."""
    logprob: float
    """Claimed for every token: -0.01 says "likely", -20 says "I hardly ever say this"."""
    interval_s: float
    """Virtual seconds between two groups."""
    rollouts: int = 8
    """Of a group."""


class Adversary:
    def __init__(
        self,
        attack: Attack,
        number: int,
        seed: int,
        judge: LocalJudge,
        manifest: Manifest,
        wall_clock: Callable[[], float],
    ) -> None:
        self._attack = attack
        self._rng = random.Random(f"{seed}/adversary/{number}")
        self._judge = judge
        self._manifest = manifest
        self._wall_clock = wall_clock
        self._identity = Identity(hashlib.sha256(f"laboratory/{seed}/adversary/{number}".encode()).digest())
        self._journal = MemoryJournal(1024, hashlib.sha256(self._identity.peer_id.encode()).digest()[:16])

    async def live(self, hub: Hub) -> None:
        """Publishes until it is cancelled."""
        async with hub.join(self._identity.peer_id, self._journal):
            while True:
                await asyncio.sleep(self._attack.interval_s)
                await self._journal.append(await self._group(), (), own=True)

    async def _group(self) -> SignedGroup:
        task = await self._task()
        body = BODIES[self._attack.body]
        texts = [body(task, self._rng) for _ in range(self._attack.rollouts)]
        group = RolloutGroup(
            swarm=self._manifest.id,
            origin=self._identity.peer_id,
            task=task.ref,
            rollouts=tuple(self._rollout(text) for text in texts),
            model="adversary",
            tokenizer="adversary",
            sampling=SamplingParams(max_new_tokens=256),
            created_at=self._wall_clock(),
        )
        return seal(group, self._identity)

    def _rollout(self, text: str) -> Rollout:
        """A token per byte, and the end of the sequence."""
        length = len(text.encode()) + 1
        sampled = SampledTokens(
            logprobs=np.full(length, self._attack.logprob, dtype=np.float32),
            byte_lengths=np.array([1] * (length - 1) + [0], dtype=np.int32),
            versions=(VersionSpan(version=PolicyVersion(0), length=length),),
        )
        return Rollout(turns=(Turn(role=Role.ASSISTANT, text=text, finish=FinishReason.STOP, sampled=sampled),))

    async def _task(self) -> Task:
        while True:
            source = self._rng.choice(self._judge.sources)
            ref = TaskRef(
                source=source.name,
                version=source.version,
                config=source.config,
                seed=self._rng.randrange(MAX_SEED),
                index=self._rng.randrange(source.size or MAX_INDEX),
            )
            try:
                return await self._judge.task(ref)
            except TaskError:
                continue
