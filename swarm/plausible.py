"""What an author's own log-probabilities rule out, whatever its model and temperature are.

Both bounds follow from what log-probabilities mean - those of the distribution that was really sampled - and from
nothing about models. L = sum of a response's log-probabilities, so exp(L) is how probable the author says it was.

* Complete responses of one policy version exclude each other, so the exp(L) of distinct ones add up to at most 1.
  Eight different texts that are "almost certain" were not sampled from anything.
* n of G independent responses are one text, which has probability p, with probability at most C(G, n) p^(n-1) (all
  texts no likelier than p together). Eight times the same text, "which I hardly ever say", was not sampled either.

What they cannot catch: one text repeated and said to be certain, which is what a converged policy does; distinct texts
that are said to be unlikely, or to be of a version each. Such lies gain little: what a peer says of itself can only
turn a response down (node/rl/foreign.py), and our own likelihood decides (node/rl/gate.py).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from swarm.limits import Limits
from swarm.types import FinishReason, Rollout, RolloutGroup, VersionSpan


class _Claim(NamedTuple):
    response: tuple[str, FinishReason]
    logprob: float
    """Of the whole response; <= 0."""
    versions: tuple[VersionSpan, ...]


def implausible(group: RolloutGroup, limits: Limits) -> str | None:
    """What is wrong with the group's log-probabilities together, or None."""
    claims = [claim for rollout in group.rollouts if (claim := _claim(rollout)) is not None]
    total = total_probability(claims)
    if total > limits.max_probability:
        return f"distinct responses of a total probability of {total:.3g}: at most {limits.max_probability:g}"
    nats = coincidence(claims)
    if nats > limits.max_coincidence:
        return f"responses are alike by a coincidence of {nats:.0f} nats: at most {limits.max_coincidence:g}"
    return None


def total_probability(claims: Iterable[_Claim]) -> float:
    """Of the distinct responses of one policy version, by their author's word: the largest over versions."""
    versions = defaultdict[tuple[str, ...], dict[tuple[str, FinishReason], float]](dict)
    for claim in claims:
        sampled_by = tuple(str(span.version) for span in claim.versions)
        responses = versions[sampled_by]
        # One text can be spelt in several ways: the likeliest counts, the others would only add to it.
        responses[claim.response] = max(claim.logprob, responses.get(claim.response, -math.inf))
    return max((math.fsum(map(math.exp, responses.values())) for responses in versions.values()), default=0.0)


def coincidence(claims: Iterable[_Claim]) -> float:
    """-log of a bound on the probability that a response came as often as it did, in nats; the largest over responses,
    at least 0."""
    claims = list(claims)
    times = Counter(claim.response for claim in claims)
    nats = 0.0
    for response, n in times.items():
        if n > 1:
            # n spellings of one text are together at most n times as likely as the likeliest.
            logprob = math.log(n) + max(claim.logprob for claim in claims if claim.response == response)
            nats = max(nats, -math.log(math.comb(len(claims), n)) - (n - 1) * min(logprob, 0.0))
    return nats


def _claim(rollout: Rollout) -> _Claim | None:
    """Of a response that its policy completed in one turn: others answer to somebody, or might have gone on."""
    if len(rollout.turns) != 1:
        return None
    turn = rollout.turns[0]
    if turn.sampled is None or turn.finish is None or turn.finish is FinishReason.ERROR:
        return None
    total = float(turn.sampled.logprobs.sum(dtype=np.float64))
    return _Claim((turn.text, turn.finish), total, turn.sampled.versions)
