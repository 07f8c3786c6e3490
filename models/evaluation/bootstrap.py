"""Bootstrap over users: intervals of means and of paired differences of means.

Every metric comes as one value per user whose mean is the metric. Where a metric is no mean over
users (coverage, AUC, ...) the values are linearised: metric + what each user contributes to its
change (jackknife pseudo-values or influence values, centred), so that resampling users and
averaging gives the metric's interval without computing it anew.

Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals, chapter
13; paired samples by resampling units; jackknife and influence, chapters 11 and 22).
"""

from __future__ import annotations

import numpy as np

from models.metrics import Float64

SAMPLES, LEVEL = 1000, 0.95
_BATCH_VALUES = 4_000_000


def resampled_means(values: Float64, samples: int = SAMPLES, seed: int = 0) -> Float64:
    """Means over resampled users; all columns see the same resamples, so columns are paired.

    Args:
        values: float64 [users] or [users, columns].
    Returns:
        float64 [samples] or [samples, columns].
    """
    count = len(values)
    generator = np.random.default_rng(seed)
    batch = max(1, _BATCH_VALUES // max(count, 1))
    means = []
    for start in range(0, samples, batch):
        size = min(batch, samples - start)
        drawn = generator.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        means.append(weights.astype(np.float64) @ values / count)
    return np.concatenate(means)


def bounds(means: Float64, level: float = LEVEL) -> tuple[Float64, Float64]:
    """(low, high) percentile interval over the first axis."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def summary(name: str, values: Float64, resampled: Float64) -> dict[str, float]:
    """{name: mean of the values, "low", "high"}: the percentile interval of `resampled`."""
    low, high = bounds(resampled)
    return {name: float(values.mean()), "low": float(low), "high": float(high)}


def interval(values: Float64, samples: int = SAMPLES, seed: int = 0) -> dict[str, float]:
    """{"mean", "low", "high"} of values per user, float64 [users]."""
    return summary("mean", values, resampled_means(values, samples, seed))


def paired_interval(
    ours: Float64, theirs: Float64, samples: int = SAMPLES, seed: int = 0
) -> dict[str, float]:
    """{"difference", "low", "high"} of mean(ours) - mean(theirs), user by user."""
    values = ours - theirs
    return summary("difference", values, resampled_means(values, samples, seed))
