"""Target policies that a log supports: draw K eligible videos at random, show the best by score.

"Show the best of all" is hardly supported by any log: its weight is 1 / propensity on the few
exposures that happen to show that very video, and 0 elsewhere. The best of K random eligible
videos spreads its probability over all of them by their rank: with N eligible videos, a video
with b lower-scored ones among the other N - 1 is shown with

    pi(v) = K / N * C(b, K - 1) / C(N - 1, K - 1),

so no weight exceeds K / (N p). K = 1 is the uniform policy. Where N is large, b is counted in a
uniform sample of the eligible videos instead: C(b, K - 1) / C(m, K - 1) over m sampled others is
an unbiased estimate (a U-statistic, Hoeffding 1948), so IPS and DR stay unbiased.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.metrics import Float64, Int64


def chance_of_winning(below: Int64, others: Int64, eligible: Int64, draws: Int64) -> Float64:
    """Probability that a video is drawn and has the best score of the drawn; float64 [n].

    Args:
        below: how many of the `others` have a lower score.
        others: size of the uniform sample of the other eligible videos (all of them, or fewer).
        eligible: how many videos are eligible, with this one.
        draws: K, at most eligible and others + 1.
    """
    chance: Float64 = draws / np.maximum(eligible, 1)
    for step in range(int(draws.max(initial=1)) - 1):
        still = step < draws - 1
        factor = np.maximum(below - step, 0) / np.maximum(others - step, 1)
        chance = np.where(still, chance * factor, chance)
    return chance


def win_shares(scores: Float64, ties: Float64, valid: npt.NDArray[np.bool_], k: int) -> Float64:
    """Probability that each sampled video is the best of K drawn from its row; [n, m].

    Args:
        scores: float64 [n, m].
        ties: float64 [n, m], decides between equal scores; distinct within a row.
        valid: bool [n, m], which entries are there; rows may have fewer than m.
        k: K; rows with fewer videos draw them all.
    Returns:
        float64 [n, m]; rows sum to 1 (to 0 where nothing is valid), 0 where not valid.
    """
    size = valid.sum(axis=1)
    order = np.lexsort((ties, scores, valid), axis=-1)
    below = np.empty(scores.shape, np.int64)
    np.put_along_axis(below, order, np.arange(scores.shape[1])[None, :], axis=1)
    below -= (scores.shape[1] - size)[:, None]
    full = np.broadcast_to(size[:, None], scores.shape)
    draws = np.minimum(k, full)
    shares = chance_of_winning(np.maximum(below, 0), full - 1, full, draws)
    return np.where(valid, shares, 0.0)


def logged_probability(
    score: Float64,
    tie: Float64,
    others: tuple[Float64, Float64, npt.NDArray[np.bool_]],
    eligible: Int64,
    k: int,
) -> Float64:
    """pi(v_i) of logged videos against a uniform sample of the other eligible ones; float64 [n].

    Args:
        score, tie: float64 [n], of the logged video.
        others: (scores, ties, valid), [n, m] each, of the sample without the logged video.
        eligible: int64 [n], N; 0 where the logged video itself is not eligible.
        k: K.
    """
    scores, ties, valid = others
    lower = (scores < score[:, None]) | ((scores == score[:, None]) & (ties < tie[:, None]))
    below, size = (lower & valid).sum(axis=1), valid.sum(axis=1)
    chance = chance_of_winning(below, size, eligible, np.minimum(k, np.maximum(eligible, 1)))
    return np.where(eligible > 0, chance, 0.0)
