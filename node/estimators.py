"""What n sampled answers to each of many questions say about a policy: pass@k, majority@k, and how sure that is. Pure.

Samples of one question are alike, so a question is what counts as an observation: every estimate is a mean over
questions of a value in [0, 1], and its interval comes from how that value varies between questions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, variance

#: 97.5 % quantile of the normal distribution: 95 % intervals.
Z95 = 1.959963984540054


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k samples drawn without replacement from n, of which c are right, include a right one:
    1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374, eq. 1), unbiased for k <= n.

    Computed in integers of any size and rounded once, so that no n is too large and no value too small for it.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): expected 0 <= c <= n and 1 <= k <= n")
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def majority_at_k(answers: Sequence[str], right: Sequence[bool], k: int) -> float:
    """Probability that the answer which most of the first k samples give is right (self-consistency: Wang et al.,
    arXiv 2203.11171). `right` says so of each sample.

    Nothing is drawn: where several answers are given equally often, the value is the expectation over a fair choice
    between them, and where one answer was scored in several ways (its text is normalised here, but not by every
    scorer), over a fair choice between its samples. An empty answer is no vote; without any vote the value is 0.
    """
    if len(answers) != len(right) or not 1 <= k <= len(answers):
        raise ValueError(f"majority_at_k of {len(answers)} answers, {len(right)} marks, k={k}: expected 1 <= k <= both")
    votes = Counter(answer for answer in answers[:k] if answer)
    most = max(votes.values(), default=0)
    # The answers that lead have equally many samples: a fair choice between those is one between these.
    leading = [mark for answer, mark in zip(answers[:k], right, strict=False) if answer and votes[answer] == most]
    return fmean(leading) if leading else 0.0


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), here also for an effective, fractional n."""
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"wilson(successes={successes}, n={n}): expected 0 <= successes <= n and n > 0")
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # the ends are exactly 0 and 1 there; rounding would say 1e-17
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def stratified_mean(strata: Sequence[Sequence[float]]) -> float:
    """Of the strata's means: every family of questions counts the same."""
    return fmean(fmean(values) for values in strata)


def clustered_wilson(strata: Sequence[Sequence[float]], samples: int) -> tuple[float, float]:
    """95 % interval of `stratified_mean`: Wilson's, for an effective number of independent samples.

    `strata` has the questions' values in [0, 1], by family; `samples` is how many answers each question was given.
    Plain Wilson of all samples is too narrow, because samples of one question are alike. So the mean's variance is
    estimated from the questions' values, as a cluster-robust standard error is (Miller, arXiv 2411.00640, section 2.2:
    with equally large clusters it is that of the clusters' means), stratified by family, and Wilson's formula gets
    the n_eff of independent samples with that variance, p(1-p) / variance (Kish 1965; recommended of several by Dean &
    Pagano, J. Surv. Stat. Methodol. 3, 2015). Unlike the normal interval and the bootstrap it stays within [0, 1] and
    has a width where no question differs from another. n_eff is at most the number of samples that there are.
    """
    questions, rate = sum(map(len, strata)), stratified_mean(strata)
    if not 0 < rate < 1:
        return wilson(rate * questions, questions)
    of_mean = sum(_variance_of_mean(values, rate) for values in strata) / len(strata) ** 2
    most = questions * samples
    effective = most if of_mean == 0 else min(rate * (1 - rate) / of_mean, most)
    return wilson(min(rate * effective, effective), effective)


def _variance_of_mean(values: Sequence[float], rate: float) -> float:
    """Of one stratum's mean: s^2 / n, at most what values that are only ever 0 or 1 have. One value does not tell, and
    is taken for such a one at the overall `rate`."""
    n, mean = len(values), fmean(values)
    return rate * (1 - rate) if n == 1 else min(variance(values), mean * (1 - mean)) / n
