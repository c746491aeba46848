"""What a stronger peer's view of our own rollouts says of their tokens. Pure.

A rollout's reward says nothing of which of its tokens earned it. A policy that is better at the task has an opinion of
each: it would have said this more often than we do, and that less often. Moving towards such a policy on what we sample
ourselves is on-policy distillation (GKD, arXiv 2306.13649, whose reverse KL divergence this is a sample of; Thinking
Machines' "On-Policy Distillation", 2025, which uses the log-ratio as an advantage). Here it only redistributes what the
verified reward has to give: whoever answers may be wrong, or lying.

L = our own action tokens of a rollout, T = the peer's of the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from node.algorithms import PeerGuidance
from node.experience import PeerScores
from node.rl.correction import spread_chunk_log_ratios


def token_guidance(
    own_logp: np.ndarray,
    own_byte_lengths: np.ndarray,
    scores: PeerScores,
    advantage: float,
    config: PeerGuidance,
) -> np.ndarray:
    """float32 [L], what to add to `advantage` at each token:

        d_t = (log pi_peer(c) - log pi_own(c)) / own tokens in c, c the chunk that t is in
        g_t = clip(weight * clip(d_t, -+clip), -+bound * |advantage|)

    `own_logp` [L] is log mu of the tokens as they were sampled, `advantage` the rollout's normalised one. A chunk ends
    where both tokenisations have a boundary (`correction.chunk_log_ratios`, after ALM, arXiv 2503.20083): within it,
    nobody knows which of our tokens the peer would not have said, so all get the same part.

    `clip`: one token that the peer would hardly ever say (-20 nats is usual across tokenizers) says no more than a
    clear no. `bound`, at most 1: no token's advantage gets another sign than its rollout's, so that a liar can make
    learning up to 1 - bound slower or 1 + bound faster, token by token, and never turn it round; and where the reward
    says nothing, with an advantage of 0, nobody's word does.

    All zeros for scores that are not of this text, or no numbers: they are a stranger's.
    """
    if not _of_this_text(scores, int(own_byte_lengths.sum())):
        return np.zeros(len(own_logp), dtype=np.float32)
    gap = -spread_chunk_log_ratios(own_logp, own_byte_lengths, scores.logprobs, scores.byte_lengths)
    limit = config.bound * abs(advantage)
    return (config.weight * gap.clip(-config.clip, config.clip)).clip(-limit, limit).astype(np.float32)


def guidance_metrics(guidance: Sequence[np.ndarray | None]) -> dict[str, float]:
    """Of a batch's own rollouts: which share was guided, and by how much per guided token, on average."""
    guided = [g for g in guidance if g is not None]
    metrics = {"guided_share": len(guided) / len(guidance)} if guidance else {}
    return metrics | ({"guidance": float(np.abs(np.concatenate(guided)).mean())} if guided else {})


def _of_this_text(scores: PeerScores, num_bytes: int) -> bool:
    lengths = scores.byte_lengths
    fits = len(lengths) == len(scores.logprobs) and bool((lengths >= 0).all()) and int(lengths.sum()) == num_bytes
    return fits and bool(np.isfinite(scores.logprobs).all())
