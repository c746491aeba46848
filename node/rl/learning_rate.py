"""How long an optimiser step may be. Pure."""

from __future__ import annotations

import math

from node.algorithms import LearnerConfig
from swarm.types import PolicyVersion


def learning_rate(learner: LearnerConfig, version: PolicyVersion, staleness: float, ess_share: float) -> float:
    """Of the update that follows on `version`: lr, warmed up, times what `lr_rule` makes of the batch.

    `staleness`: mean of own rows, in policy versions. `ess_share`: effective sample size of own rollouts' importance
    weights over their number, in (0, 1]. Both of what the update is trained on.
    """
    factor = 1.0
    if learner.lr_rule == "staleness":
        factor = staleness_factor(staleness)
    elif learner.lr_rule == "ess":
        factor = ess_factor(ess_share)
    return learner.lr * warmup_factor(learner, version) * factor


def warmup_factor(learner: LearnerConfig, version: PolicyVersion) -> float:
    """Linear in the policy version, so that a resumed learner does not warm up again. An optimiser that was made to
    forget does: without moments Adam's first steps are as long as the rate lets them be."""
    since = version % learner.reincarnate_every if learner.reincarnate_every else version
    return min(1.0, (since + 1) / max(1, learner.warmup_steps))


def staleness_factor(staleness: float) -> float:
    """min(1, 2 / (1 + S)): the bias of stale data grows with S lr, so the product is kept (arXiv 2607.01083)."""
    return min(1.0, 2.0 / (1.0 + max(0.0, staleness)))


def ess_factor(ess_share: float) -> float:
    """sqrt(min(1, ESS / B)): a batch in which few rollouts weigh anything is a small batch (VCPO, arXiv 2602.17616)."""
    return math.sqrt(min(1.0, ess_share))


def reincarnates(learner: LearnerConfig, version: PolicyVersion) -> bool:
    """Whether the optimiser forgets its moments before the update that follows on `version` (ReMix, arXiv 2507.06892:
    what they remember is of data that the policy has outgrown)."""
    return learner.reincarnate_every > 0 and version > 0 and version % learner.reincarnate_every == 0
