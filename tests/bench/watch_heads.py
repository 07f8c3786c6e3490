"""Watch-time targets that models.watch_time is compared with; the same interface, numpy decoding.

Each learns from watches only, so all predict what is watched once a video was chosen.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import models.compat  # noqa: F401

import numpy as np
import tensorflow as tf

from models.watch_groups import NUM_BINS, DurationGroups, measured
from models.watch_time import WatchTime

Array = Any


class Head(Protocol):
    """What a watch-time target offers; see models.watch_time.WatchTime."""

    width: int

    @classmethod
    def fit(cls, watch_s: Array, duration_s: Array) -> Head: ...

    def loss(self, outputs: Array, watch_s: Array, duration_s: Array, watched: Array) -> Array: ...

    def decode(self, outputs: Array, duration_s: Array) -> tuple[Array, Array]: ...


class Regression:
    """Squared error of log(1 + seconds), standardised; seconds at the expected log."""

    width = 1

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = np.float32(mean), np.float32(std)

    @classmethod
    def fit(cls, watch_s: Array, duration_s: Array) -> Regression:
        logged = np.log1p(measured(watch_s, duration_s)[0])
        return cls(logged.mean(), max(logged.std(), 1e-3))

    def loss(self, outputs: Array, watch_s: Array, duration_s: Array, watched: Array) -> Array:
        target = (tf.math.log1p(watch_s) - self.mean) / self.std
        return tf.reduce_mean(tf.square(outputs[:, 0] - target))

    def decode(self, outputs: Array, duration_s: Array) -> tuple[Array, Array]:
        logged = np.maximum(outputs[:, 0] * self.std + self.mean, 0)
        return np.expm1(logged), logged


class WeightedLogistic:
    """Logistic regression whose odds are the expected seconds.

    Each watch counts as a positive weighted by its seconds and as a negative of weight 1, so that
    the odds are the mean over watches. (On impressions, as published, they would also hold the
    chance of a click, which is the label head's.)

    Source: Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016.
    """

    width = 1

    def __init__(self, mean: float) -> None:
        self.mean = np.float32(mean)

    @classmethod
    def fit(cls, watch_s: Array, duration_s: Array) -> WeightedLogistic:
        return cls(measured(watch_s, duration_s)[0].mean())

    def loss(self, outputs: Array, watch_s: Array, duration_s: Array, watched: Array) -> Array:
        logit, weight = outputs[:, 0], watch_s / self.mean
        return tf.reduce_mean(weight * tf.nn.softplus(-logit) + tf.nn.softplus(logit))

    def decode(self, outputs: Array, duration_s: Array) -> tuple[Array, Array]:
        return np.exp(outputs[:, 0]) * self.mean, outputs[:, 0]


class D2QCrossEntropy(WatchTime):
    """The quantile as a soft label: the same optimum as with squared error, other gradients."""

    def loss(self, outputs: Array, watch_s: Array, duration_s: Array, watched: Array) -> Array:
        target = self.quantile(watch_s, duration_s)
        errors = tf.nn.sigmoid_cross_entropy_with_logits(target, outputs[:, 0])
        return tf.reduce_mean(errors)


LEVELS = np.arange(1, NUM_BINS, dtype=np.float32) / NUM_BINS
PRIOR = np.log(1 / LEVELS - 1)  # logit of passing each threshold when nothing is known


class OrdinalInGroups(WatchTime):
    """One sigmoid per quantile threshold of the duration group, falling by construction.

    Relevance is the expected quantile; seconds are the median, where the fall crosses one half.

    Sources: thresholds and restored expectation as in CREAD (Sun et al., AAAI 2024); ordered
    thresholds as in McCullagh, Regression Models for Ordinal Data, 1980.
    """

    width = NUM_BINS - 1
    # softplus(FALL) is by how much PRIOR falls from one threshold to the next.
    FALL: ClassVar = np.log(np.expm1(-np.diff(PRIOR)))

    def loss(self, outputs: Array, watch_s: Array, duration_s: Array, watched: Array) -> Array:
        target = self.targets(watch_s, duration_s)
        falls = tf.nn.softplus(outputs[:, 1:] + self.FALL)
        first = outputs[:, :1] + PRIOR[0]
        logits = tf.concat([first, first - tf.cumsum(falls, axis=1)], axis=1)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(target, logits))

    def targets(self, watch_s: Array, duration_s: Array) -> Array:
        """Which thresholds a watch passes; equal watches pass a part of those they cover."""
        least, most = self.quantile_range(watch_s, duration_s)
        width = tf.maximum(most - least, 1e-6)
        return tf.clip_by_value((most[:, None] - LEVELS) / width[:, None], 0.0, 1.0)

    def passed(self, outputs: Array) -> Array:
        """Probability of passing each threshold, [n, NUM_BINS + 1], falling from 1 to 0."""
        falls = np.logaddexp(0, outputs[:, 1:] + self.FALL)
        first = outputs[:, :1] + PRIOR[0]
        logits = np.concatenate([first, first - np.cumsum(falls, axis=1)], axis=1)
        inner = np.exp(-np.logaddexp(0, -logits))
        return np.pad(inner, [(0, 0), (1, 1)], constant_values=((0, 0), (1, 0)))

    def decode(self, outputs: Array, duration_s: Array) -> tuple[Array, Array]:
        passed = self.passed(outputs)
        fall = np.maximum(passed[:, :-1] - passed[:, 1:], 1e-6)
        thresholds = self.groups.thresholds(duration_s)
        before_median = np.clip((passed[:, :-1] - 0.5) / fall, 0, 1)
        seconds = thresholds[:, 0] + (np.diff(thresholds, axis=1) * before_median).sum(axis=1)
        return seconds, (passed[:, 1:].sum(axis=1) + 0.5) / NUM_BINS


class OrdinalOfSeconds(OrdinalInGroups):
    """The same with thresholds in seconds, the same for all durations."""

    @classmethod
    def fit(cls, watch_s: Array, duration_s: Array) -> OrdinalOfSeconds:
        return cls(DurationGroups.fit(watch_s, np.full(len(watch_s), np.nan)))


HEADS: dict[str, type[Head]] = {
    "regression": Regression,
    "weighted_logistic": WeightedLogistic,
    "ordinal_seconds": OrdinalOfSeconds,
    "ordinal_groups": OrdinalInGroups,
    "d2q_cross_entropy": D2QCrossEntropy,
    "d2q": WatchTime,
}
