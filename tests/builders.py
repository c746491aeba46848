"""Small things to test with. Everything has a default; what a test is about, it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from node.experience import Experience, Judged
from swarm.errors import TaskError, TaskTimeout
from swarm.manifest import AgreedSource, Manifest
from swarm.membership import Membership
from swarm.tasks.base import TaskSource, held_out
from swarm.types import (
    Announcement,
    CellValue,
    FinishReason,
    PeerId,
    PolicyVersion,
    Role,
    Rollout,
    RolloutGroup,
    SampledTokens,
    SamplingParams,
    Score,
    ScoreStatus,
    SignedGroup,
    Task,
    TaskRef,
    Turn,
    VersionSpan,
)
from swarm.wire.codec import seal
from swarm.wire.identity import Identity

NOW = 1_700_000_000.0
EOS = 256

MANIFEST = Manifest(name="test", sources=(AgreedSource(name="test/echo", version="1", config="{}"),))
MEMBERSHIP = Membership(swarm=MANIFEST.id)


def identity(number: int = 1) -> Identity:
    """The same key for the same number (1 to 255)."""
    return Identity(bytes([number]) * 32)


def task_ref(index: int = 0, seed: int = 0, source: str = "test/echo") -> TaskRef:
    return TaskRef(source=source, version="1", config="{}", seed=seed, index=index)


def task(ref: TaskRef | None = None) -> Task:
    """ "Say 7." and the answer "7"; never a held-out question."""
    ref = task_ref() if ref is None else ref
    prompt = f"Say {ref.index}."
    while held_out(prompt):
        prompt += " Please."
    return Task(ref=ref, prompt=prompt, answer=str(ref.index), difficulty="{}")


def tokens(
    text: str, finish: FinishReason = FinishReason.STOP, logprob: float = -0.5, version: int = 1
) -> SampledTokens:
    """One token per byte, and end-of-sequence where the policy stopped."""
    lengths = [1] * len(text.encode()) + [0] * (finish is FinishReason.STOP)
    return SampledTokens(
        logprobs=np.full(len(lengths), logprob, np.float32),
        byte_lengths=np.array(lengths, np.int32),
        versions=(VersionSpan(version=PolicyVersion(version), length=len(lengths)),),
        ids=np.array([*text.encode(), *[EOS] * (finish is FinishReason.STOP)], np.int32),
    )


def turn(text: str = "0", finish: FinishReason = FinishReason.STOP, sampled: SampledTokens | None = None) -> Turn:
    """A turn of the assistant."""
    sampled = tokens(text, finish) if sampled is None else sampled
    return Turn(role=Role.ASSISTANT, text=text, finish=finish, sampled=sampled)


def rollout(text: str = "0", finish: FinishReason = FinishReason.STOP) -> Rollout:
    return Rollout(turns=(turn(text, finish),))


def group(
    *rollouts: Rollout,
    ref: TaskRef | None = None,
    origin: PeerId | None = None,
    swarm: str = MANIFEST.id,
    sampling: SamplingParams | None = None,
    created_at: float = NOW,
) -> RolloutGroup:
    """Two rollouts of `task()`, one right and one wrong."""
    return RolloutGroup(
        swarm=swarm,
        origin=origin or identity().peer_id,
        task=ref or task_ref(),
        rollouts=rollouts or (rollout("0"), rollout("1")),
        model="model-a",
        tokenizer="bytes",
        sampling=sampling or SamplingParams(),
        created_at=created_at,
    )


def signed(index: int = 0, author: Identity | None = None) -> SignedGroup:
    """A sealed group of task number `index`."""
    author = author or identity()
    return seal(group(ref=task_ref(index), origin=author.peer_id), author)


def cell_value(source: str, value: float, mass: float = 1.0, difficulty: str = "{}") -> CellValue:
    return CellValue(source=source, difficulty=difficulty, value=value, mass=mass)


def announcement(
    author: Identity | None = None, head: int = 0, name: str = "node", values: tuple[CellValue, ...] = ()
) -> Announcement:
    return Announcement(
        swarm=MANIFEST.id,
        peer=(author or identity()).peer_id,
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        epoch=bytes(16),
        head=head,
        name=name,
        model="model-a",
        tokenizer="bytes",
        issued_at=NOW,
        values=values,
    )


@dataclass
class EchoJudge:
    """Judges the tasks of `task()` in place: 1 for the number itself, no score for "?"."""

    sources: Sequence[TaskSource] = ()
    size: int = 1000
    asked: int = 0
    """How often anything was asked of it."""

    async def task(self, ref: TaskRef) -> Task:
        self.asked += 1
        if ref.index >= self.size:
            raise TaskError(f"{ref.source} has no task {ref.index}")
        return task(ref)

    async def tasks(self, refs: Sequence[TaskRef]) -> list[Task | TaskError]:
        made: list[Task | TaskError] = []
        for ref in refs:
            try:
                made.append(await self.task(ref))
            except TaskTimeout as error:
                return made + [error] * (len(refs) - len(made))
            except TaskError as error:
                made.append(error)
        return made

    async def score(self, task: Task, responses: Sequence[str]) -> list[Score]:
        self.asked += 1
        return [
            Score(reward=0.0, status=ScoreStatus.FAILED, detail="no answer")
            if response == "?"
            else Score(reward=float(response == task.answer))
            for response in responses
        ]


class Characters:
    """A codec of one token per character."""

    fingerprint, eos_id, vocab_size = "characters", 0, 128

    def prompt(self, task: Task) -> np.ndarray:
        return self.encode(task.prompt, FinishReason.LENGTH)

    def next_turn(self, message: str) -> np.ndarray:
        return self.encode(message, FinishReason.LENGTH)

    def encode(self, text: str, finish: FinishReason) -> np.ndarray:
        return np.array([ord(character) for character in text] + [0] * (finish is FinishReason.STOP), np.int32)

    def retrace(self, text: str, byte_lengths: np.ndarray, finish: FinishReason) -> np.ndarray | None:
        ids = self.encode(text, finish)
        return ids if np.array_equal(ids > 0, byte_lengths) else None

    def decode(self, ids: np.ndarray) -> tuple[str, np.ndarray]:
        return "".join(chr(token) for token in ids if token), (ids > 0).astype(np.int32)


def judged(signed: SignedGroup, *, own: bool = True, value: float = 0.5, version: int = 0, at: float = 0.0) -> Judged:
    """A group of `task()`, scored as `EchoJudge` does."""
    answers = [rollout.response for rollout in signed.group.rollouts]
    answer = str(signed.group.task.index)
    experience = Experience(
        id=signed.id,
        group=signed.group,
        task=task(signed.group.task),
        rewards=np.array([float(text == answer) for text in answers], dtype=np.float32),
        scored=np.array([text != "?" for text in answers], dtype=bool),
        own=own,
        value=value,
        version=PolicyVersion(version),
        arrived_at=at,
    )
    return Judged(signed=signed, experience=experience)
