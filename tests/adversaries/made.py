"""Groups as adversaries make them: well-formed but for what they are about."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from swarm.types import FinishReason, Rollout, SamplingParams, SignedGroup, TaskRef
from swarm.wire.codec import encode_group, group_id, seal
from swarm.wire.identity import GROUP_DOMAIN, Identity
from tests.builders import group, rollout, signed, task_ref, tokens, turn

LONG = SamplingParams(max_new_tokens=4096)
_TEMPLATE = signed()


def made(
    author: Identity, index: int = 0, *texts: str, logprob: float = -0.5, age_s: float = 0.0, ref: TaskRef | None = None
) -> SignedGroup:
    """Of task number `index`: the right answer and a wrong one, unless `texts` are given."""
    rollouts = [said(text, logprob) for text in texts or (str(index), "no")]
    made = group(*rollouts, ref=ref or task_ref(index), origin=author.peer_id, created_at=time.time() - age_s)
    return seal(replace(made, sampling=LONG), author)


def said(text: str, logprob: float = -0.5) -> Rollout:
    """With the same log-probability for every token."""
    if logprob == -0.5:
        return rollout(text)
    sampled = tokens(text)
    sampled = replace(sampled, logprobs=np.full(len(sampled), logprob, np.float32))
    return Rollout(turns=(turn(text, FinishReason.STOP, sampled),))


def raw(body: bytes, signature: bytes = bytes(64)) -> SignedGroup:
    """For a log that is to send these bytes."""
    return SignedGroup(id=group_id(body), group=_TEMPLATE.group, body=body, signature=signature)


def signed_by(author: Identity, body: bytes) -> SignedGroup:
    return raw(body, author.sign(GROUP_DOMAIN, body))


def by_another(origin: Identity, signer: Identity, index: int) -> SignedGroup:
    """Says that it is `origin`'s, and is signed by `signer`."""
    return signed_by(signer, encode_group(made(origin, index).group))
