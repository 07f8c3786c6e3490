"""Off-policy estimates: what another policy would have earned, from a log with propensities.

Everything here is over plain arrays, one entry per logged exposure i: context x_i, shown video
v_i, propensity p_i (the probability with which the logging policy showed it), reward r_i. With
w_i = pi(v_i | x_i) / p_i for a target policy pi and a direct model q:

    ips     (1/n) sum w_i r_i                                     Horvitz & Thompson 1952
    snips   sum w_i r_i / sum w_i                                 Swaminathan & Joachims 2015
    dr      (1/n) sum [ q(x_i, pi) + w_i (r_i - q(x_i, v_i)) ]    Dudik, Langford & Li 2011
    direct  (1/n) sum q(x_i, pi)

ips and dr are unbiased where the propensities are right and positive on every video that pi can
show; dr also where q is right instead. Nothing is clipped: clipping trades a bias that nobody
sees for variance that the interval shows. Intervals: percentile bootstrap over users, since the
exposures of a user belong together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.evaluation.bootstrap import bounds, resampled_means
from models.metrics import Float64, Int64

ESTIMATORS = ("ips", "snips", "dr", "direct")
Interval = dict[str, float | None]


@dataclass(frozen=True)
class Exposures:
    """What the logging policy showed and earned.

    Attributes:
        user: int64 [n], who was shown the video.
        propensity: float64 [n] in (0, 1].
        reward: float64 [n].
    """

    user: Int64
    propensity: Float64
    reward: Float64

    def take(self, chosen: Int64) -> Exposures:
        """The exposures at positions `chosen`."""
        return Exposures(self.user[chosen], self.propensity[chosen], self.reward[chosen])


@dataclass(frozen=True)
class Target:
    """A target policy at the logged exposures; float64 [n] each.

    Attributes:
        probability: of the logged video, or an unbiased estimate of it that knows no reward.
        direct_logged: the direct model's reward of the logged video.
        direct_value: the direct model's mean reward of the policy at this context.
    """

    probability: Float64
    direct_logged: Float64
    direct_value: Float64

    def take(self, chosen: Int64) -> Target:
        """The policy at the exposures at positions `chosen`."""
        arrays = (self.probability, self.direct_logged, self.direct_value)
        return Target(*(values[chosen] for values in arrays))


def estimate(log: Exposures, target: Target) -> dict[str, Interval]:
    """The value of a target policy: {estimator: {"mean", "low", "high"}}."""
    weight = target.probability / log.propensity
    ones = np.ones(len(weight))
    earned = weight * log.reward
    numerators = [earned, earned, doubly_robust(log, target), target.direct_value]
    intervals = ratio_intervals(numerators, [ones, weight, ones, ones], log.user)
    return dict(zip(ESTIMATORS, intervals, strict=True))


def doubly_robust(log: Exposures, target: Target) -> Float64:
    """The terms whose mean is the doubly robust estimate; float64 [n]."""
    weight = target.probability / log.propensity
    return target.direct_value + weight * (log.reward - target.direct_logged)


def logged_value(log: Exposures) -> Interval:
    """What the logging policy itself earned: {"mean", "low", "high"}."""
    return ratio_intervals([log.reward], [np.ones(len(log.reward))], log.user)[0]


def difference(log: Exposures, first: Target, second: Target | None) -> Interval:
    """First minus second policy, doubly robust; the logging policy where `second` is None.

    Returns:
        {"difference", "low", "high"}, paired: both on the same exposures and resampled users.
    """
    other = log.reward if second is None else doubly_robust(log, second)
    terms = doubly_robust(log, first) - other
    result = ratio_intervals([terms], [np.ones(len(terms))], log.user)[0]
    return {"difference": result.pop("mean"), **result}


def weight_summary(log: Exposures, target: Target) -> dict[str, Interval | float]:
    """Health of the weights: mean (1 where the log can show all that the policy wants), largest,
    and the effective sample size (sum w)^2 / sum w^2 (Kong 1992)."""
    weight = target.probability / log.propensity
    squares = float((weight**2).sum())
    return {
        "mean": ratio_intervals([weight], [np.ones(len(weight))], log.user)[0],
        "largest": float(weight.max()),
        "effective": float(weight.sum()) ** 2 / squares if squares else 0.0,
    }


def ratio_intervals(
    numerators: list[Float64], denominators: list[Float64], user: Int64
) -> list[Interval]:
    """Sum of each numerator over the sum of its denominator, with bootstrap intervals over users.

    Args:
        numerators, denominators: float64 [n] each, one pair per ratio.
        user: int64 [n].
    Returns:
        {"mean", "low", "high"} per ratio; None where a denominator is 0.
    """
    _, owner = np.unique(user, return_inverse=True)
    columns = [*numerators, *denominators]
    per_user = [np.bincount(owner, column) for column in columns]
    sums = np.stack(per_user, axis=1).astype(np.float64)
    values = _ratios(sums.mean(axis=0))
    low, high = bounds(_ratios(resampled_means(sums)))
    return [
        {"mean": _number(values[at]), "low": _number(low[at]), "high": _number(high[at])}
        for at in range(len(numerators))
    ]


def _ratios(means: Float64) -> Float64:
    above, below = np.split(means, 2, axis=-1)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def holds(interval: Interval, truth: float) -> bool:
    """Whether an interval contains the truth."""
    low, high = interval["low"], interval["high"]
    return low is not None and high is not None and low <= truth <= high
