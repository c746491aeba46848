"""Peers that say what they think of a node's own rollouts, in a simulated swarm: one forward pass of their learner's
present model, over the text in their own tokens and under their own chat template.

What is not the real thing: nothing is on the wire, an answer always comes and takes the same virtual time, and costs
the peer none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from node.engine.logprobs import action_logprobs
from node.engine.policy import Policy
from node.experience import Experience, PeerScores
from node.rl.average import Average
from swarm.types import PeerId, Rollout

#: What a group of a peer's is worth a group later, in the running mean of its rewards: about the last 20 count.
DECAY = 0.95
#: Lies are drawn from here, in nats per token.
LIES = (-20.0, 0.0)

#: A group of somebody else's -> what one peer says of each rollout; None for one that it has no tokens or room for.
Scorer = Callable[[Experience], tuple[PeerScores | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    latency_s: float = 1.0
    """Virtual seconds between a group and its scores; it goes into the pool with them."""
    liars: int = 0
    """Members, the last ones, that answer with random numbers; they learn and share like all others."""


class Guide:
    """One node's: remembers who does well at what, and asks the best. `scorers` may still grow."""

    def __init__(self, scorers: Mapping[PeerId, Scorer], latency_s: float) -> None:
        self._scorers = scorers
        self._latency_s = latency_s
        self._rewards: dict[str, dict[PeerId, Average]] = {}  # by source

    def observe(self, experience: Experience) -> None:
        """A peer's group, admitted and scored by us."""
        known = self._rewards.setdefault(experience.task.ref.source, {})
        origin = experience.group.origin
        known[origin] = known.get(origin, Average()).observe(experience.mean, DECAY)

    def best(self, source: str, value: float) -> PeerId | None:
        """Who has the highest mean reward there of those who can be asked; None where nobody's is above `value`."""
        rewards = {p: a.mean for p, a in self._rewards.get(source, {}).items() if p in self._scorers and a.mean > value}
        return max(rewards, key=rewards.__getitem__, default=None)

    async def guided(self, experience: Experience) -> Experience:
        """An own group with the scores of the best peer, after a while; at once and as it is where nobody is better.

        Whoever sampled it waits too, so that no more groups are on their way than without."""
        peer = self.best(experience.task.ref.source, experience.value)
        if peer is None:
            return experience
        scores = self._scorers[peer](experience)
        await asyncio.sleep(self._latency_s)
        return replace(experience, guidance=scores)


def honest(policy: Policy) -> Scorer:
    """What `policy` thinks, as it is when it is asked."""

    def score(experience: Experience) -> tuple[PeerScores | None, ...]:
        prompt, spelled = _spelled(policy, experience)
        texts = [ids for ids, _ in filter(None, spelled)]
        answers = iter(_logprobs(policy, prompt, texts, experience.group.sampling.temperature) if texts else [])
        return tuple(None if s is None else PeerScores(logprobs=next(answers), byte_lengths=s[1]) for s in spelled)

    return score


def lying(policy: Policy, rng: np.random.Generator) -> Scorer:
    """Anything, in the tokens of `policy`."""

    def lies(tokens: int) -> np.ndarray:
        return rng.uniform(*LIES, size=tokens).astype(np.float32)

    def score(experience: Experience) -> tuple[PeerScores | None, ...]:
        _, spelled = _spelled(policy, experience)
        return tuple(None if s is None else PeerScores(logprobs=lies(len(s[0])), byte_lengths=s[1]) for s in spelled)

    return score


def _spelled(policy: Policy, experience: Experience) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray] | None]]:
    """The prompt [P] and each rollout's (ids [T], byte lengths [T]), in the tokens of `policy`."""
    prompt = policy.codec.prompt(experience.task)
    room = policy.model.config.max_position_embeddings - len(prompt)
    return prompt, [_tokens(policy, rollout, room) for rollout in experience.group.rollouts]


def _tokens(policy: Policy, rollout: Rollout, room: int) -> tuple[np.ndarray, np.ndarray] | None:
    (turn,) = rollout.turns
    if turn.finish is None:
        return None
    ids = policy.codec.encode(turn.text, turn.finish)
    text, byte_lengths = policy.codec.decode(ids)
    return (ids, byte_lengths) if 0 < len(ids) <= room and text == turn.text else None


def _logprobs(policy: Policy, prompt: np.ndarray, texts: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
    """float32 [T] of each of `texts` [T] after `prompt` [P], at least one, in one forward pass."""
    rows = [torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64)) for ids in texts]
    input_ids = pad_sequence(rows, batch_first=True)
    width, device = input_ids.shape[1], policy.model.device
    starts = [n * width + len(prompt) - 1 for n in range(len(rows))]
    index = torch.cat([torch.arange(start, start + len(ids)) for start, ids in zip(starts, texts, strict=True)])
    targets = torch.cat([row[len(prompt) :] for row in rows])
    with torch.no_grad():
        logprobs = action_logprobs(
            policy.model,
            input_ids.to(device),
            pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device),
            torch.arange(width, device=device).expand(len(rows), width),
            index.to(device),
            targets.to(device),
            temperature,
            chunk=len(targets),
        )
    return np.split(logprobs.cpu().numpy(), np.cumsum([len(ids) for ids in texts])[:-1])
