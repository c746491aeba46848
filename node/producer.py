"""From a task to a group of our own: pick, sample, score, sign."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from node.algorithms import Truncated
from node.config import SamplerConfig
from node.engine.base import Completion, Generator
from node.experience import Experience, Judged, rewards_of
from node.holds import Holds
from node.ledger import Ledger
from node.rl.sampler import TaskSampler
from node.rl.tracker import ValueTracker
from node.text_codec import TextCodec
from node.time_account import PAUSED, SAMPLING, SCORING, TASKS, Times
from swarm.errors import TaskError
from swarm.membership import Membership
from swarm.net.base import PeerInfo
from swarm.tasks.base import Judge, held_out
from swarm.types import (
    Announcement,
    CellValue,
    FinishReason,
    PolicyVersion,
    Role,
    Rollout,
    RolloutGroup,
    SampledTokens,
    SamplingParams,
    ScoreStatus,
    SignedGroup,
    Task,
    TaskRef,
    Turn,
)
from swarm.wire.codec import seal
from swarm.wire.identity import Identity

FUTILE_LOOKS = 100
"""Looks for a task after which the operator is told that none is found, and they become rare."""
FUTILE_DELAY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Author:
    """Who signs our groups, and what every one of them and every announcement says of us."""

    identity: Identity
    membership: Membership
    model: str
    codec: TextCodec
    sampling: SamplingParams
    wall_clock: Callable[[], float] = time.time
    """Unix seconds."""
    worth: Callable[[], tuple[CellValue, ...]] = tuple
    """What we say that our values are; nothing, by default."""

    def rollout(self, completion: Completion) -> Rollout:
        text, byte_lengths = self.codec.decode(completion.ids)
        sampled = SampledTokens(
            logprobs=completion.logprobs,
            byte_lengths=byte_lengths,
            versions=completion.versions,
            ids=completion.ids,
        )
        return Rollout(turns=(Turn(role=Role.ASSISTANT, text=text, finish=completion.finish, sampled=sampled),))

    def group(self, task: Task, rollouts: Sequence[Rollout]) -> RolloutGroup:
        return RolloutGroup(
            swarm=self.membership.swarm,
            origin=self.identity.peer_id,
            task=task.ref,
            rollouts=tuple(rollouts),
            model=self.model,
            tokenizer=self.codec.fingerprint,
            sampling=self.sampling,
            created_at=self.wall_clock(),
            membership=self.membership.proof(self.identity.peer_id),
        )

    def announcement(self, name: str, addresses: tuple[str, ...], epoch: bytes, head: int) -> Announcement:
        """Of our log `epoch`, which goes up to `head`."""
        return Announcement(
            swarm=self.membership.swarm,
            peer=self.identity.peer_id,
            addresses=addresses,
            epoch=epoch,
            head=head,
            name=name,
            model=self.model,
            tokenizer=self.codec.fingerprint,
            issued_at=self.wall_clock(),
            values=self.worth(),
            membership=self.membership.proof(self.identity.peer_id),
        )

    def sign(self, group: RolloutGroup) -> SignedGroup:
        """The group as peers will see it. Token ids stay here: peers with our tokenizer find them by the lengths
        (`TextCodec.retrace`), and to the others they say nothing."""
        return seal(_without_ids(group), self.identity)


def _without_ids(group: RolloutGroup) -> RolloutGroup:
    def strip(turn: Turn) -> Turn:
        return turn if turn.sampled is None else replace(turn, sampled=replace(turn.sampled, ids=None))

    return replace(group, rollouts=tuple(replace(r, turns=tuple(map(strip, r.turns))) for r in group.rollouts))


class Producer:
    """Makes one group at a time; several tasks may ask at once. Failures are counted and the next task is taken."""

    def __init__(
        self,
        *,
        config: SamplerConfig,
        truncated: Truncated,
        sampler: TaskSampler,
        tracker: ValueTracker,
        judge: Judge,
        generator: Generator,
        author: Author,
        version: Callable[[], PolicyVersion],
        running: Holds,
        ledger: Ledger,
        times: Times | None = None,
    ) -> None:
        self.times = times or Times()
        self._config = config
        self._truncated: Truncated = truncated
        self._sampler = sampler
        self._tracker = tracker
        self._judge = judge
        self._generator = generator
        self._author = author
        self._version = version
        self._running = running
        self._ledger = ledger
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Returns once no group is being made; while the node is paused, none is begun."""
        await self._idle.wait()

    async def next_group(self, peers: Callable[[], Sequence[PeerInfo]] = tuple) -> Judged:
        """A group with at least one scored rollout. `peers`: who is there, should the sampler ask."""
        while True:
            with self.times.generator.during(PAUSED):
                await self._running.wait()
            with self._making():
                judged = await self._attempt(peers)
            if judged is not None:
                return judged

    @contextmanager
    def _making(self) -> Iterator[None]:
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _attempt(self, peers: Callable[[], Sequence[PeerInfo]]) -> Judged | None:
        """None for a group without a scored rollout."""
        with self.times.generator.during(TASKS):
            task, prompt = await self._next_task(peers)
        value = self._tracker.value(task, self._version())  # frozen at dispatch (SPO++ section 3)
        with self.times.generator.during(SAMPLING):
            completions = await self._generator.sample(prompt, self._config.group_size, self._author.sampling)
        whole = [c for c in completions if c.finish is not FinishReason.ERROR]
        rollouts = [self._author.rollout(completion) for completion in whole]
        with self.times.generator.during(SCORING):
            scores = await self._judge.score(task, [rollout.response for rollout in rollouts])
        answered = sum(score.status is ScoreStatus.OK for score in scores)
        self._ledger.counters["failed_rollouts"] += len(completions) - answered
        rewards, scored = rewards_of(rollouts, scores, self._truncated)
        if scored.any():
            return self._judged(task, value, rollouts, rewards, scored)
        if answered:
            self._ledger.warn(f"{task.ref.source}: a group of which every rollout was cut off is not used")
            return None
        reason = scores[0].detail if scores else "the engine failed on all of them"
        self._ledger.warn(f"{task.ref.source}: a group without any score: {reason}")
        return None

    def _judged(
        self, task: Task, value: float, rollouts: Sequence[Rollout], rewards: np.ndarray, scored: np.ndarray
    ) -> Judged:
        group = self._author.group(task, rollouts)
        signed = self._author.sign(group)
        experience = Experience(
            id=signed.id,
            group=group,
            task=task,
            rewards=rewards,
            scored=scored,
            own=True,
            value=value,
            version=group.oldest_version,
            arrived_at=asyncio.get_running_loop().time(),
        )
        return Judged(signed=signed, experience=experience)

    async def _next_task(self, peers: Callable[[], Sequence[PeerInfo]]) -> tuple[Task, np.ndarray]:
        """A training task whose prompt fits. Looks as long as it takes."""
        looks = 0
        while True:
            demand = self._sampler.demand(peers)
            refs = self._sampler.propose(self._version(), demand)
            tasks = await self._make(refs)
            if tasks:
                task = self._sampler.choose(tasks, self._version(), demand)
                prompt = self._author.codec.prompt(task)
                if self._fits(prompt):
                    return task, prompt
                self._ledger.counters["skipped_prompts"] += 1
            looks += 1
            if looks == FUTILE_LOOKS:
                self._ledger.warn(
                    "no task to train on: all are held out, cannot be made (failed_tasks) or are too long"
                    f" (skipped_prompts) for sampler.max_prompt_tokens = {self._config.max_prompt_tokens} or, with"
                    f" max_new_tokens = {self._author.sampling.max_new_tokens}, for"
                    f" the engine's {self._generator.max_length}"
                )
            # The judge answers at once for a task that it knows: without this, nobody else would ever run again.
            await asyncio.sleep(0 if looks < FUTILE_LOOKS else FUTILE_DELAY_S)

    def _fits(self, prompt: np.ndarray) -> bool:
        """Whether it is wanted, and leaves the engine room for the longest response."""
        whole = len(prompt) + self._author.sampling.max_new_tokens
        return len(prompt) <= self._config.max_prompt_tokens and whole <= self._generator.max_length

    async def _make(self, refs: Sequence[TaskRef]) -> list[Task]:
        """Without those of everybody's held-out set, and those that their source cannot make."""
        made = await self._judge.tasks(refs)
        tasks = [task for task in made if not isinstance(task, TaskError)]
        self._ledger.counters["failed_tasks"] += len(made) - len(tasks)
        return [task for task in tasks if not held_out(task.prompt)]
