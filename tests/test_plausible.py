"""What log-probabilities rule out by themselves: exact bounds, and honest samplers that never reach them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from swarm.limits import Limits
from swarm.plausible import implausible
from swarm.types import FinishReason, PolicyVersion, Role, Rollout, SampledTokens, Turn, VersionSpan
from tests.builders import group

LIMITS = Limits()
STOP, LENGTH, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR


def said(text: str, probability: float, finish: FinishReason = STOP, version: int = 1) -> Rollout:
    """A response of one token, and how probable its author says it was."""
    sampled = SampledTokens(
        logprobs=np.array([math.log(probability)], dtype=np.float32),
        byte_lengths=np.array([len(text.encode())], dtype=np.int32),
        versions=(VersionSpan(version=PolicyVersion(version), length=1),),
    )
    return Rollout(turns=(Turn(role=Role.ASSISTANT, text=text, finish=finish, sampled=sampled),))


def complaint(*rollouts: Rollout, limits: Limits = LIMITS) -> str | None:
    return implausible(group(*rollouts), limits)


def test_distinct_responses_cannot_all_be_almost_certain() -> None:
    assert complaint(said("a", 1.0), said("b", 0.49)) is None
    assert complaint(said("a", 1.0), said("b", 0.51)) == (
        "distinct responses of a total probability of 1.51: at most 1.5"
    )
    assert complaint(*(said(str(i), 0.99) for i in range(8))) is not None


def test_one_response_counts_once_however_often_it_came() -> None:
    assert complaint(*[said("a", 1.0)] * 8) is None
    assert complaint(*[said("a", 0.9)] * 8) is None
    assert complaint(said("a", 0.3), said("a", 1.0), said("a", 0.9)) is None
    assert complaint(said("a", 1.0), said("a", 0.3), said("b", 0.6)) is not None  # the likeliest spelling


def test_how_a_response_ended_makes_it_another_one() -> None:
    assert complaint(said("a", 0.9), said("a", 0.9, LENGTH)) is not None


def test_what_was_not_one_whole_response_says_nothing() -> None:
    assert complaint(said("a", 0.9), said("b", 0.9, ERROR)) is None
    turn = said("b", 0.9).turns[0]
    conversation = Rollout(turns=(turn, Turn(role=Role.USER, text="?"), turn))
    assert complaint(said("a", 0.9), conversation) is None


def test_versions_are_added_up_apart() -> None:
    assert complaint(said("a", 0.9, version=1), said("b", 0.9, version=2)) is None
    assert complaint(said("a", 0.9, version=2), said("b", 0.9, version=2)) is not None


def test_what_is_hardly_ever_said_does_not_come_eight_times() -> None:
    # 8 of 8: (8 - 1) (-log p - log 8) nats
    p = math.exp(-40.0 / 7) / 8
    assert complaint(*[said("a", 1.01 * p)] * 8) is None
    assert complaint(*[said("a", 0.99 * p)] * 8) == "responses are alike by a coincidence of 40 nats: at most 40"


def test_two_of_many_that_are_alike_may_be_chance() -> None:
    rare = math.exp(-44.0)  # 44 - log 2 - log C(8, 2) = 40.0 nats
    distinct = [said(str(i), 1e-9) for i in range(6)]
    assert complaint(said("a", 1.1 * rare), said("a", 1.1 * rare), *distinct) is None
    assert complaint(said("a", 0.9 * rare), said("a", 0.9 * rare), *distinct) is not None
    assert complaint(said("a", 0.9 * rare), said("a", 1e-3), *distinct) is None  # the likelier one was meant


def test_limits_decide() -> None:
    loose = Limits(max_probability=1e9, max_coincidence=1e9)
    assert complaint(*(said(str(i), 1.0) for i in range(64)), limits=loose) is None
    assert complaint(*[said("a", 1e-30)] * 64, limits=loose) is None


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0])
def test_no_honest_sampler_is_refused(temperature: float) -> None:
    """Policies from a coin to near certainty, at every temperature, 64 responses of up to 4 tokens each."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        logits = rng.normal(size=(4, 8)) * rng.choice([0.1, 1.0, 10.0]) / temperature
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        assert implausible(group(*(_sampled(logp, rng) for _ in range(64))), LIMITS) is None


def _sampled(logp: np.ndarray, rng: np.random.Generator) -> Rollout:
    """Token 0 ends a response; position t has the distribution logp[t]."""
    tokens = list[int]()
    while len(tokens) < len(logp) and (not tokens or tokens[-1]):
        tokens.append(int(rng.choice(logp.shape[1], p=np.exp(logp[len(tokens)]))))
    finish = FinishReason.LENGTH if tokens[-1] else FinishReason.STOP
    made = said("".join(map(str, tokens)), 1.0, finish)
    turn = made.turns[0]
    assert turn.sampled is not None
    logprobs = np.array([logp[i, token] for i, token in enumerate(tokens)], dtype=np.float32)
    return Rollout(turns=(replace(turn, sampled=replace(turn.sampled, logprobs=logprobs)),))
